"""The experiments of LSeg."""
