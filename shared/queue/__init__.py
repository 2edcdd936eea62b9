"""The queue: requests, leases and who holds what, in Redis. It knows nothing of tokens, models or sockets to clients."""
