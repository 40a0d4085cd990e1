"""One file per paper: the method, its losses and how its released weights load."""
