"""Unwrap models."""

from typing import Any

from torch import nn


def unwrap(model: nn.Module) -> Any:
    """Return the model inside DistributedDataParallel or `Sharded`."""
    return getattr(model, "module", model)
