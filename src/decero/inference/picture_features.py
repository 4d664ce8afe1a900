"""Read from an image classifier its classes of pictures, and the features that its last layer reads."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from decero.errors import UserError
from decero.inference.image_answers import LoadedPictures, Picture


def last_layer(loaded: LoadedPictures) -> nn.Linear:
    """Return the linear layer that makes the logits. Raises UserError where there is none."""
    labels = loaded.model.config.num_labels
    layers = [each for each in loaded.model.modules() if isinstance(each, nn.Linear) and each.out_features == labels]
    if not layers:
        raise UserError(f"{loaded.name}: its last layer is not linear, so it gives no features; use another classifier")
    return layers[-1]


@torch.no_grad()
def classes_and_features(
    loaded: LoadedPictures, pictures: Iterable[Picture], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return class ids, (N,), and float32 features, (N, D), of pictures."""
    found: list[np.ndarray] = []
    seen: list[np.ndarray] = []

    def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].float().cpu().numpy())

    handle = last_layer(loaded).register_forward_pre_hook(keep)
    try:
        for _, inputs in loaded.batches(pictures, batch_size):
            found.append(loaded.model(**inputs).logits.argmax(dim=-1).cpu().numpy())
    finally:
        handle.remove()
    return np.concatenate(found), np.concatenate(seen)
