"""Ways to attend over a paged KV cache, all with the two methods of base.py. It knows nothing of models."""
