"""Continuous batching in plain Python: integers in, integers out. It knows nothing of torch, Redis or gRPC."""
