"""What `sid-ray bench` is made of: an iteration measured in processes, and the search."""
