"""Time training steps and decoding: decero, stock transformers, and tuned transformers."""
