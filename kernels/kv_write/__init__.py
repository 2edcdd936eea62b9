"""Writing keys and values into the paged cache. This room knows nothing of sequences."""
