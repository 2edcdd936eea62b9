"""The worker: claims requests, computes their tokens over a paged KV cache, delivers them. It knows nothing of text."""
