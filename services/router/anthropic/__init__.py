"""Anthropic's messages: their bodies as chats, answers as their content blocks and events. It knows nothing of how chats run."""
