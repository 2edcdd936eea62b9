"""Gated activations. This room knows nothing of the products around them."""
