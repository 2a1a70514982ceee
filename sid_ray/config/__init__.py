"""The configuration of a run: its fields, their ranges, and what of it is confidential."""
