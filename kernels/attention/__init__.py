"""Paged attention. This room knows nothing of who shares a block."""
