"""The objectives that ship, a file each: what the house asks of them, light to load."""
