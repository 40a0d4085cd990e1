"""The experiments of CLIP."""
