"""A model's tokens as its files state them. This room knows nothing of encoding, and nothing of grammars."""
