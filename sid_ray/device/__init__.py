"""The GPUs of this machine: which can be used, and how they compute."""
