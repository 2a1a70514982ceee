"""Tensors from any file that people share, without running code from it."""
