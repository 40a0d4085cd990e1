"""The experiments of VLCounter."""
