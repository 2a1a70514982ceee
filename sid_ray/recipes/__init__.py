"""Every published configuration as data."""
