"""RMSNorm. This room knows nothing of models."""
