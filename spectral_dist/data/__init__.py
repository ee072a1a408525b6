"""Text to tokens to batches; knows nothing of the model."""
