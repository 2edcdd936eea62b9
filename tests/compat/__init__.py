"""Other people's clients and their own tests, against a real server. It knows nothing of how a server works."""
