"""A page and an HTTP interface in front of generators: a Ray Serve application."""
