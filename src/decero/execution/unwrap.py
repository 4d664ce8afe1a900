"""The model inside its wrappers."""

from typing import Any

from torch import nn


def unwrap(model: nn.Module) -> Any:
    """The model itself, without DistributedDataParallel or `Sharded` around it."""
    return getattr(model, "module", model)
