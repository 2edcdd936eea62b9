"""Products with packed weights. This room knows nothing of layers or files."""
