"""Choosing tokens. This room knows nothing of sequences or stop conditions."""
