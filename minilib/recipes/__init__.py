"""One file per paper: the experiment. Values per profile, data, model, training and evaluation."""
