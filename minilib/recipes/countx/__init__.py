"""The experiments of CounTX."""
