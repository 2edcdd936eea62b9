"""From Step to StepResult on a device: batch, forward, sampling. It knows nothing of requests, queues or connections."""
