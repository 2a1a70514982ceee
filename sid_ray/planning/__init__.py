"""Memory that a run needs, and what fits."""
