"""Where a noised picture lies, what is random about it, and what a velocity costs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from decero.data.image_rows import Pixels
from decero.execution.diffusion_objective import NoisedPictures, velocities
from decero.execution.image_objective import PictureCollator

PIXELS = Pixels((8, 12), 1, (0.5,), (0.5,))


def rows(count, epoch=0):
    draw = np.random.default_rng(3).integers(0, 256, (count, 8, 12, 1)).astype(np.uint8)
    return [{"pixels": draw[i].tobytes(), "labels": i % 3, "epoch": epoch, "index": i} for i in range(count)]


@pytest.fixture
def collate():
    return lambda **fields: NoisedPictures(PictureCollator(PIXELS), 3, **fields)


def test_a_batch_depends_on_seed_epoch_and_row_only(collate):
    made = collate(seed=5, class_dropout=0.5)
    first, again = made(rows(7)), made(rows(7)[::-1])
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name].flip(0)), name
    for other in (made(rows(7, epoch=1)), collate(seed=6)(rows(7))):
        assert not torch.equal(other["timestep"], first["timestep"])
        assert not torch.equal(other["velocity"], first["velocity"])
    frozen = collate(seed=5, frozen=True)
    assert torch.equal(frozen(rows(7, epoch=1))["pixel_values"], first["pixel_values"])


def test_pixels_lie_between_noise_and_picture(collate):
    made, given = collate(seed=1), rows(300)
    batch, pictures = made(given), PictureCollator(PIXELS)(given)["pixel_values"]
    noise = pictures - batch["velocity"]
    assert_close(noise[4].numpy(), made.draw(0, 4)[0])
    time = batch["timestep"][:, None, None, None]
    assert_close(batch["pixel_values"], (1 - time) * noise + time * pictures)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float(batch["timestep"].mean()) == pytest.approx(0.5, abs=0.05)


def test_a_share_of_the_classes_is_not_told(collate):
    given = rows(600)
    labels = torch.tensor([row["labels"] for row in given])
    told = collate(class_dropout=0.25)(given)["class_labels"]
    dropped = told == 3
    assert 0.2 < float(dropped.float().mean()) < 0.3
    assert torch.equal(told[~dropped], labels[~dropped])
    assert torch.equal(collate()(given)["class_labels"], labels)


def test_the_loss_is_the_sum_of_squared_errors(collate):
    objective = velocities(collate())
    batch = objective.collate(rows(3))
    zeros = lambda pixels, time, classes: SimpleNamespace(velocity=torch.zeros_like(pixels))  # noqa: E731
    assert_close(objective.loss(zeros, batch), batch["velocity"].square().sum())
    assert objective.count(batch) == 3 * 8 * 12
    assert objective.row_sizes(rows(3)) is not None
