"""The services; they meet only in protos/ and shared/."""
