"""The solver against a closed form, guidance, and what a picture depends on."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from decero.errors import UserError
from decero.inference.diffusion_sampling import guided_velocity, integrate, sample_pictures
from decero.models import DeceroDiffusionConfig, DeceroDiffusionModel, DeceroVisionConfig, DeceroVisionModel

MEAN, SPREAD = 1.7, 0.3  # of a Gaussian that stands for the pictures


def exact_velocity(x, time):
    """Between noise N(0, 1) and N(MEAN, SPREAD²), x_t is Gaussian, so its velocity is known: Lipman et al., thm. 3."""
    spread = ((1 - time) ** 2 + (time * SPREAD) ** 2) ** 0.5
    growth = (time * SPREAD**2 - (1 - time)) / spread
    return MEAN + growth / spread * (x - time * MEAN)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_a_gaussian_is_reached_with_the_order_of_the_method(method, order):
    start = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors, counts = [], (16, 32, 64, 128)
    for steps in counts:
        found = integrate(exact_velocity, start, steps, method)
        errors.append(float((found - (MEAN + SPREAD * start)).abs().max()))
    slopes = -np.diff(np.log2(errors))
    assert slopes[-1] == pytest.approx(order, abs=0.15), (errors, slopes)
    assert errors == sorted(errors, reverse=True)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(found.std()) == pytest.approx(SPREAD, abs=0.02)


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"image_size": [8, 12], "patch_size": 4, "num_channels": 3, "hidden_size": 14, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 1, "intermediate_size": 11, "num_labels": 3, "time_frequency_size": 6}
    model = DeceroDiffusionModel(DeceroDiffusionConfig(**sizes))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def test_guidance_leads_away_from_no_class(model):
    pixels, labels = torch.randn(2, 3, 8, 12), torch.tensor([0, 2])
    with torch.no_grad():
        of_class, of_none = (model(pixels, torch.full((2,), 0.4), each).velocity for each in (labels, None))
        for guidance in (0, 1, 2.5):
            found = guided_velocity(model, pixels, 0.4, labels, guidance)
            assert_close(found, of_none + guidance * (of_class - of_none))
    assert float((of_class - of_none).abs().max()) > 0.01


def test_a_picture_depends_on_its_seed_number_and_label_alone(model):
    labels = torch.tensor([0, 1, 2] * 7)
    many = sample_pictures(model, labels, steps=3, seed=4)
    assert many.shape == (21, 8, 12, 3)
    assert many.dtype == torch.uint8
    for count in (1, 5, 18):
        assert torch.equal(sample_pictures(model, labels[:count], steps=3, seed=4), many[:count])
    others = labels.clone()
    others[0] = 2
    assert torch.equal(sample_pictures(model, others, steps=3, seed=4)[1:], many[1:])
    assert not torch.equal(sample_pictures(model, others, steps=3, seed=4)[0], many[0])
    assert not torch.equal(sample_pictures(model, labels, steps=3, seed=5), many)
    assert sample_pictures(model, labels[:0]).shape == (0, 8, 12, 3)


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ([0, 4], {}, "label 4: the model knows the classes 0 to 2"),
        ([-1], {}, "label -1"),
        ([0], {"steps": 0}, "0 steps: give at least 1"),
        ([0], {"guidance": float("nan")}, "guidance nan: give a number from 0 to 1000"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(model, labels, options, said):
    with pytest.raises(UserError, match=said):
        sample_pictures(model, torch.tensor(labels), **options)


def test_models_that_draw_nothing_are_refused(model):
    config = DeceroVisionConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(UserError, match="this decero_vision model draws no pictures"):
        sample_pictures(DeceroVisionModel(config), torch.tensor([0]))
    model.decoder.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN or infinity"):
        sample_pictures(model, torch.tensor([0]), steps=1)
