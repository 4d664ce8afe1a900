"""Noise pictures and predict the velocity that leads back: flow matching (Lipman et al. 2023; Liu et al. 2023)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from decero.execution.image_objective import PictureCollator, of_pictures
from decero.execution.objective import Batch, Objective


@dataclass(frozen=True)
class NoisedPictures:
    """Make a batch of pictures on the straight way from noise to the picture, with others each epoch.

    no_class: the id that replaces the class of a share of the pictures, `class_dropout` (Ho & Salimans 2022, algorithm
    1). frozen: treat every epoch as epoch 0, for evaluation.
    Noise, time and dropped class are pure functions of (seed, epoch, index).
    """

    pictures: PictureCollator
    no_class: int
    class_dropout: float = 0.0
    seed: int = 0
    frozen: bool = False

    def draw(self, epoch: int, index: int) -> tuple[np.ndarray, float, bool]:
        """Return noise (channels, height, width), the time in [0, 1), and whether the class is dropped."""
        pixels = self.pictures.pixels
        rng = np.random.default_rng([self.seed, 0 if self.frozen else epoch, index, 3])  # 1 and 2 are of other streams
        time, chance = rng.random(2)
        return rng.standard_normal((pixels.channels, *pixels.size), dtype=np.float32), time, chance < self.class_dropout

    def __call__(self, rows: list[dict]) -> Batch:
        """Return `pixel_values` between noise and picture, `timestep`, `class_labels`, and `velocity`.

        Pixels and velocity: (batch, channels, height, width); the others (batch,). With t the time:
        pixels = (1 - t) noise + t picture, velocity = picture - noise (Liu et al. 2023, eq. 1).
        """
        given = self.pictures(rows)
        drawn = [self.draw(row["epoch"], row["index"]) for row in rows]
        noise_BCYX = torch.from_numpy(np.stack([noise for noise, _, _ in drawn]))
        time_B = torch.tensor([time for _, time, _ in drawn], dtype=torch.float32)
        dropped_B = torch.tensor([dropped for _, _, dropped in drawn])
        velocity_BCYX = given["pixel_values"] - noise_BCYX
        return {
            "pixel_values": noise_BCYX + time_B[:, None, None, None] * velocity_BCYX,
            "timestep": time_B,
            "class_labels": given["labels"].masked_fill(dropped_B, self.no_class),
            "velocity": velocity_BCYX,
        }


def values_of(batch: Batch) -> int:
    """Return the number of predicted values, of all channels."""
    return batch["velocity"].numel()


def velocity_errors(model: nn.Module, batch: Batch) -> Tensor:
    """Return the squared differences of velocities, summed by picture: (batch,), in fp32."""
    found = model(batch["pixel_values"], batch["timestep"], batch["class_labels"]).velocity
    return (found.float() - batch["velocity"]).square().sum(dim=(1, 2, 3))


def velocities(collate: NoisedPictures) -> Objective:
    """Sum the squared differences of velocities: Lipman et al. 2023, eq. 23."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return velocity_errors(model, batch).sum()

    return of_pictures(collate, loss, values_of)
