"""OpenAI's Responses: chats whose turns are items, kept, and going on without a client if wanted. It knows nothing of tokens."""
