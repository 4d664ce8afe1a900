"""Which patches are hidden, and what a reconstruction costs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import ViTConfig, ViTForMaskedImageModeling

from decero.data.augmentation import Augmentation
from decero.data.image_rows import Pixels
from decero.execution.image_objective import PictureCollator
from decero.execution.masked_image_objective import MaskedPictures, masked_pictures
from decero.models import DeceroVisionConfig, DeceroVisionForMaskedImageModeling

PIXELS = Pixels((8, 12), 1, (0.5,), (0.5,))


def rows(count, epoch=0):
    draw = np.random.default_rng(3).integers(0, 256, (count, 8, 12, 1)).astype(np.uint8)
    return [{"pixels": draw[i].tobytes(), "epoch": epoch, "index": i} for i in range(count)]


@pytest.fixture
def collate():
    return lambda **fields: MaskedPictures(PictureCollator(PIXELS), (4, 6), **fields)


def test_masks_depend_on_seed_epoch_and_row_only(collate):
    made = collate(seed=5)
    first, again = made(rows(7)), made(rows(7)[::-1])
    assert torch.equal(first["bool_masked_pos"], again["bool_masked_pos"].flip(0))
    assert not torch.equal(first["bool_masked_pos"][0], first["bool_masked_pos"][1])
    assert not torch.equal(made(rows(7, epoch=1))["bool_masked_pos"], first["bool_masked_pos"])
    assert not torch.equal(collate(seed=6)(rows(7))["bool_masked_pos"], first["bool_masked_pos"])
    frozen = collate(seed=5, frozen=True)
    assert torch.equal(frozen(rows(7, epoch=1))["bool_masked_pos"], first["bool_masked_pos"])


@pytest.mark.parametrize(("ratio", "hidden"), [(0.6, 14), (0.01, 1), (0.99, 23)])
def test_every_picture_hides_the_share_and_keeps_some(collate, ratio, hidden):
    assert collate(ratio=ratio)(rows(5))["bool_masked_pos"].sum(1).tolist() == [hidden] * 5


def test_squares_are_hidden_as_a_whole(collate):
    masks = collate(block=2)(rows(5))["bool_masked_pos"].view(5, 2, 2, 3, 2)
    assert (masks.sum((2, 4)) % 4 == 0).all()
    assert masks.sum().item() == 5 * 4 * 4  # 4 of 6 squares
    odd = MaskedPictures(PictureCollator(PIXELS), (3, 5), block=2)(rows(2))["bool_masked_pos"]
    assert odd.shape == (2, 15)


def test_the_loss_is_the_sum_over_hidden_pixels(collate):
    objective = masked_pictures(collate())
    batch = objective.collate(rows(3))
    zeros = lambda pixel_values, bool_masked_pos: SimpleNamespace(reconstruction=torch.zeros_like(pixel_values))  # noqa: E731
    total = 0.0
    for picture, mask in zip(batch["pixel_values"], batch["bool_masked_pos"].view(3, 4, 6), strict=True):
        for y, x in mask.nonzero().tolist():
            total += picture[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].abs().sum()
    assert_close(objective.loss(zeros, batch), total)
    assert objective.count(batch) == 3 * 14 * 4
    assert objective.row_sizes(rows(3)) is not None


@pytest.mark.parametrize("stock", [True, False], ids=["stock", "ours"])
def test_the_mean_is_the_loss_that_models_compute(stock):
    pixels = Pixels((8, 8), 1, (0.5,), (0.5,))
    collate = MaskedPictures(PictureCollator(pixels, Augmentation(True, 1, None, 0)), (4, 4))
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 6, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 5, "initializer_range": 0.3}
    if stock:
        model = ViTForMaskedImageModeling(ViTConfig(**sizes, encoder_stride=2))
    else:
        model = DeceroVisionForMaskedImageModeling(DeceroVisionConfig(**sizes))
    draw = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    objective = masked_pictures(collate)
    batch = objective.collate([{"pixels": draw[i].tobytes(), "epoch": 0, "index": i} for i in range(3)])
    assert_close(objective.loss(model, batch) / objective.count(batch), model(**batch).loss)
