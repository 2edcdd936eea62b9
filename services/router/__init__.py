"""The front door: requests in, tokens out. It knows nothing of models or devices."""
