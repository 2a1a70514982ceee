"""The state of a run: written, found again, restored, given away."""
