"""Files and batches: many requests in one file, answered in the lowest band while there is room. It knows nothing of HTTP."""
