"""The experiments: a folder a paper, and ``shared`` for what several
papers' tasks need."""
