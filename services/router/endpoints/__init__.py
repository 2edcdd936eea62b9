"""One module per endpoint: what it reads, what it answers. It knows nothing of servers and sockets."""
