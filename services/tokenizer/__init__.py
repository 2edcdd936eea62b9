"""The tokenizer: the only room that knows text. It knows nothing of models, queues or clients."""
