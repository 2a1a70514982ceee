"""Ray before it runs: its environment, starting it, joining it."""
