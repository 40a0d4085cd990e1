"""The experiments of DenseCLIP."""
