"""`sid-ray doctor --device`: the checks that verify a machine with GPUs, and their report."""
