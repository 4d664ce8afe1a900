"""decero: pretrain a Transformer from zero, compare it fairly, publish it. Importing it registers its models."""

from decero import models

__version__ = "0.1.0"
__all__ = ["models"]
