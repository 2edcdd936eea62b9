"""The services. They meet only in protos/ and shared/: each knows nothing of the others' code."""
