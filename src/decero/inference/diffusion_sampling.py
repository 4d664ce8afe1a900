"""Draw pictures with a diffusion Transformer: solve the differential equation from noise to a picture.

Dimensions: N pictures, C channels, Y and X height and width in pixels.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from decero.errors import UserError
from decero.models import DeceroDiffusionConfig

AT_ONCE = 16  # pictures of a pass, always: other sizes of matrices round otherwise
Method = Literal["euler", "heun"]
Velocity = Callable[[Tensor, float], Tensor]


def sample_pictures(
    model: PreTrainedModel, labels: Tensor, *, steps: int = 50, guidance: float = 2.0, seed: int = 0,
    method: Method = "heun", done: Callable[[int], Any] = lambda pictures: None,
) -> Tensor:  # fmt: skip
    """Draw a picture for each label and return them as uint8, (N, height, width, channels).

    labels: (N,) class ids; `config.num_labels` draws a picture of any class. steps: of the solver. guidance: 1 follows
    the class as it was learnt, larger numbers exaggerate it; 0 forgets it (Ho & Salimans 2022, eq. 6, with w + 1).
    method: as in `integrate`. done: called with the number of pictures after each pass.
    Picture i depends on the model, its label, `seed` and i alone: not on N, nor on the other labels.

    Raises UserError for a model of another kind, an unknown label, steps below 1, a guidance that is no finite number
    from 0, and a model that computes NaN or infinity.
    """
    config: Any = model.config
    if config.model_type != DeceroDiffusionConfig.model_type:
        raise UserError(f"this {config.model_type} model draws no pictures; train one with pretrain_image_diffusion")
    if steps < 1:
        raise UserError(f"{steps} steps: give at least 1")
    if not 0 <= guidance <= 1000:
        raise UserError(f"guidance {guidance}: give a number from 0 to 1000")
    ids_N = labels.to("cpu", torch.long)
    if wrong := [each for each in ids_N.tolist() if not 0 <= each <= config.num_labels]:
        raise UserError(f"label {wrong[0]}: the model knows the classes 0 to {config.num_labels - 1}")
    trains = model.training
    model.eval()
    try:
        parts = []
        for start in range(0, len(ids_N), AT_ONCE):
            parts.append(_draw(model, ids_N[start : start + AT_ONCE], start, steps, guidance, seed, method))
            done(len(parts[-1]))
    finally:
        model.train(trains)
    height, width = config.picture_size
    return torch.cat(parts) if parts else torch.zeros(0, height, width, config.num_channels, dtype=torch.uint8)


@torch.no_grad()
def _draw(
    model: Any, ids_N: Tensor, start: int, steps: int, guidance: float, seed: int, method: Method
) -> Tensor:  # fmt: skip
    """Draw the pictures `start`, `start + 1` ..., one for each of at most AT_ONCE labels."""
    padded_N = torch.cat((ids_N, ids_N.new_full((AT_ONCE - len(ids_N),), model.no_class))).to(model.device)
    noise_NCYX = np.stack([first_noise(model.config, seed, start + i) for i in range(AT_ONCE)])

    def velocity(pixels_NCYX: Tensor, time: float) -> Tensor:
        return guided_velocity(model, pixels_NCYX, time, padded_N, guidance)

    found_NCYX = integrate(velocity, torch.from_numpy(noise_NCYX).to(model.device), steps, method)[: len(ids_N)]
    if not found_NCYX.isfinite().all():
        raise UserError("the model computes NaN or infinity, which is no picture; use another one")
    return ((found_NCYX + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8).movedim(1, -1).contiguous()


def first_noise(config: Any, seed: int, number: int) -> np.ndarray:
    """Return the noise that picture `number` begins with: float32 (channels, height, width)."""
    rng = np.random.default_rng([seed, number])
    return rng.standard_normal((config.num_channels, *config.picture_size), dtype=np.float32)


def guided_velocity(model: Any, pixels_NCYX: Tensor, time: float, labels_N: Tensor, guidance: float) -> Tensor:
    """Return velocities in fp32, led away from those without a class: Ho & Salimans 2022, eq. 6.

    With guidance 1 or 0 there is one pass, else two: v(none) + guidance x (v(class) - v(none)).
    """
    time_N = torch.full((len(pixels_NCYX),), time, device=pixels_NCYX.device)
    none_N = torch.full_like(labels_N, model.no_class)
    if guidance in (0, 1):
        return model(pixels_NCYX, time_N, labels_N if guidance else none_N).velocity.float()
    of_class, of_none = (model(pixels_NCYX, time_N, each).velocity.float() for each in (labels_N, none_N))
    return of_none + guidance * (of_class - of_none)


def integrate(velocity: Velocity, start: Tensor, steps: int, method: Method = "heun") -> Tensor:
    """Follow dx/dt = velocity(x, t) from t = 0 to 1 in equal steps.

    method: `euler`, one evaluation a step, an error of order 1; `heun`, the mean of both ends of a step, two
    evaluations, order 2 (Karras et al. 2022, algorithm 1).
    """
    x, size = start, 1 / steps
    for step in range(steps):
        slope = velocity(x, step / steps)
        ahead = x + size * slope
        x = ahead if method == "euler" else x + size / 2 * (slope + velocity(ahead, (step + 1) / steps))
    return x
