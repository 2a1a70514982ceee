"""One iteration, what it is assembled from, and its health."""
