"""One step of training timed side by side: ours, transformers as its own examples run it, and transformers tuned."""
