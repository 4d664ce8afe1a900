"""Recipes and commands give a checkpoint its pictures in one form: size, crop, numbers of pixels."""

import json

import pytest
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    ConvNextConfig,
    DeiTConfig,
    DetrConfig,
    SwinConfig,
    ViTConfig,
    YolosConfig,
)

from decero.config.sections import ModelSection
from decero.data.image_rows import Pixels
from decero.errors import UserError
from decero.execution.image_models import pixels_for, processor_for, saved_pixels

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT = ViTConfig(**SMALL, image_size=32, patch_size=8)
DEIT = DeiTConfig(**SMALL, image_size=32, patch_size=8)
BEIT = BeitConfig(**SMALL, image_size=32, patch_size=8, use_relative_position_bias=True)
YOLOS = YolosConfig(**SMALL, image_size=[48, 64], patch_size=16)
CONVNEXT = ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)  # image_size 224 is a mere default
SWIN = SwinConfig(embed_dim=8, depths=[1], num_heads=[1], window_size=4, patch_size=4, image_size=32)
DETR = DetrConfig(backbone_config={"model_type": "resnet", "out_features": ["stage2"]})


def square(side):
    return {"height": side, "width": side}


@pytest.fixture
def read(tmp_path):
    """Return what reads the form of pictures as a recipe and as a command do."""

    def read(config, saved, size=None):
        config.save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
        recipe = pixels_for(ModelSection(name_or_path=str(tmp_path)), size, lambda: (40, 56))
        return recipe, saved_pixels("model", saved, config) if size is None else recipe

    return read


@pytest.mark.parametrize(
    ("config", "saved", "size"),
    [
        (CONVNEXT, {"size": square(32)}, (32, 32)),
        (CONVNEXT, {"size": {"shortest_edge": 48}}, (48, 48)),
        (CONVNEXT, {}, (224, 224)),
        (VIT, {"size": square(32)}, (32, 32)),
        (VIT, {"size": square(224)}, (32, 32)),  # of a processor that was never fitted
        (DEIT, {"size": square(40), "crop_size": square(32), "do_center_crop": True}, (32, 32)),
        (DEIT, {"size": square(32), "crop_size": square(24), "do_center_crop": False}, (32, 32)),
        (VIT, {"size": 36, "crop_size": 32, "do_center_crop": True}, (32, 32)),  # as old processors write it
        (YOLOS, {"size": {"shortest_edge": 48, "longest_edge": 99}}, (48, 64)),
    ],
)
def test_recipes_and_commands_read_one_size(read, config, saved, size):
    recipe, command = read(config, saved)
    assert recipe == command
    assert recipe.size == size


@pytest.mark.parametrize(
    ("config", "free"), [(CONVNEXT, True), (SWIN, True), (BEIT, True), (YOLOS, True), (VIT, False), (DEIT, False)]
)
def test_only_bound_models_refuse_another_size(read, config, free):
    if free:
        assert read(config, {"size": square(32)}, size=64)[0].size == (64, 64)
        return
    with pytest.raises(UserError, match=r"data.image_size: .* reads pictures of 32 x 32; remove this setting"):
        read(config, {"size": square(32)}, size=64)


@pytest.mark.parametrize("saved", [{"size": {"shortest_edge": 80, "longest_edge": 133}}, {"size": 80, "max_size": 133}])
def test_a_range_of_sizes_needs_a_choice(read, saved):
    with pytest.raises(UserError, match=r"gives a range of sizes.*: all pictures get one size here; write \"size\":"):
        read(DETR, saved)
    assert read(DETR, saved, size=64)[0].size == (64, 64)


def test_values_that_are_not_normalized_stay_so(read):
    _, pixels = read(VIT, {"size": square(32), "do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    assert (pixels.mean, pixels.std) == ((0.0,) * 3, (1.0,) * 3)
    again = processor_for(AutoModelForImageClassification, pixels).to_dict()
    assert again["do_normalize"] is False
    assert read(VIT, again)[1] == pixels
    assert processor_for(AutoModelForImageClassification, Pixels((32, 32))).do_normalize is True


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"do_rescale": False}, "pixels are not divided by 255"),
        ({"rescale_factor": 1 / 127.5}, "pixels are not divided by 255"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is true; decero reads only RGB"),
    ],
)
def test_pixels_that_decero_cannot_make_are_refused(read, saved, said):
    with pytest.raises(UserError, match=said):
        read(VIT, {"size": square(32)} | saved)
    assert read(VIT, {"size": square(32), "rescale_factor": 0.00392156862745098})
