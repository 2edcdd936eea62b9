"""Rotary positions. This room knows nothing of frequencies or scaling laws."""
