"""Networks by name, and networks from files of weights."""
