"""A dream raises its goal, repeats exactly, and does not change the model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from decero.cli.main import main
from decero.data.image_rows import Pixels
from decero.errors import UserError
from decero.explain.dream import Goal, dream, dream_view, noise_picture, total_variation
from decero.inference.image_answers import LoadedPictures
from decero.models import DeceroVisionConfig, DeceroVisionForImageClassification

pytestmark = pytest.mark.long

NAMES = {0: "bag", 1: "coat", 2: "boot"}
SIZES = {"image_size": [8, 12], "patch_size": 4, "num_channels": 1, "hidden_size": 12, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 9, "initializer_range": 0.2, "id2label": NAMES}


def examples(count):
    """Light pictures, dark ones and stripes, with their classes; anywhere, so that a shift changes no class."""
    draw = torch.Generator().manual_seed(1)
    classes = torch.arange(count) % 3
    pictures = 0.3 * torch.randn(count, 1, 8, 12, generator=draw)
    stripes = torch.stack([torch.where((torch.arange(8) + shift) % 4 < 2, 1.0, -1.0) for shift in range(4)])
    pictures[classes == 0] += 0.6
    pictures[classes == 1] -= 0.6
    chosen = stripes[torch.randint(0, 4, (int((classes == 2).sum()),), generator=draw)]
    pictures[classes == 2] += 0.6 * chosen[:, None, :, None]
    return pictures, classes


@pytest.fixture(scope="module")
def trained():
    """Train both kinds for a second; a network without training has no direction that holds when pictures shift."""
    found = {}
    for kind in ("ours", "stock"):
        torch.manual_seed(0)
        if kind == "stock":
            model = ViTForImageClassification(ViTConfig(**SIZES))
        else:
            model = DeceroVisionForImageClassification(DeceroVisionConfig(**SIZES))
        pictures, classes = examples(48)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(pictures).logits, classes)
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < 0.1
        found[kind] = model.eval()
    return found


@pytest.fixture
def load(trained):
    return lambda kind="ours": LoadedPictures(kind, trained[kind], Pixels((8, 12), 1, (0.5,), (0.5,)))


@pytest.mark.parametrize(("kind", "label"), [("ours", "bag"), ("ours", "coat"), ("stock", "boot")])
def test_the_logit_of_a_class_rises_and_the_class_wins(load, kind, label):
    loaded = load(kind)
    before = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
    found = dream(loaded, noise_picture(loaded, 3), Goal(label, seed=3))
    parts = np.array([part.mean() for part in np.array_split(found.values, 6)])
    assert (np.diff(parts) > -0.2).all(), parts  # smoothing may lower the goal a little
    number = list(NAMES.values()).index(label)
    assert found.values[-1] > found.values[0] + (0.5 if found.before[number] < 0.5 else 0)
    assert found.after[number] > 0.9
    assert found.picture.shape == (8, 12, 1)
    assert 0 <= found.picture.min() <= found.picture.max() <= 1
    for name, weight in loaded.model.named_parameters():
        assert weight.requires_grad
        assert torch.equal(weight, before[name])


def test_a_dream_is_a_function_of_picture_goal_and_seed(load):
    loaded = load()
    first, again, other = (
        dream(loaded, noise_picture(loaded, 3), Goal("coat", seed=seed), 8).picture for seed in (3, 3, 4)
    )
    assert np.array_equal(again, first)
    assert not np.array_equal(other, first)


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_the_output_of_a_head_grows(load, kind):
    loaded = load(kind)
    start = noise_picture(loaded, 1)
    for head in (1, None):
        found = dream(loaded, start, Goal(layer=1, head=head), 32)
        assert found.values[-16:].mean() > 1.1 * found.values[0]
    kernel = loaded.model.config._attn_implementation
    assert kernel == "sdpa"


def test_total_variation_is_that_of_neighbours():
    assert float(total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]]))) == (0 + 4 + 1 + 9) / 2


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal("bagg"), r"--target bagg: ours has no such class; did you mean bag\?"),
        (Goal(layer=2), "--layer 2: there are 2 layers of attention, from 0 to 1"),
        (Goal(layer=0, head=2), "--head 2: there are 2 heads in a layer, from 0 to 1"),
    ],
)
def test_a_goal_that_is_not_there_is_one_line(load, goal, said):
    loaded = load()
    with pytest.raises(UserError, match=said):
        dream(loaded, noise_picture(loaded, 0), goal)


def test_a_dream_is_told_in_both_languages(load, monkeypatch):
    monkeypatch.setattr("decero.explain.dream.STEPS", 8)
    loaded = load()
    for language, words in (("en", "the logit of boot"), ("es", "el logit de boot")):
        view = dream_view(loaded, noise_picture(loaded, 0), Goal("boot"), language)
        assert words in view.about
        assert [type(panel).__name__ for panel in view.panels] == ["Drawing", "Curves", "Table"]


def test_the_command_dreams_from_noise_and_pictures(load, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("decero.explain.dream.STEPS", 16)
    load().model.save_pretrained(tmp_path / "model")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 12}}
    processor |= {"image_mean": [0.5], "image_std": [0.5]}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    Image.new("L", (12, 8), 90).save(tmp_path / "a.png")
    words, dreams = ["explain", str(tmp_path / "model")], ["--view", "dream"]
    main([*words, "noise", *dreams, "--target", "coat", "--seed", "2", "--out", str(tmp_path / "p.html")])
    assert "the logit of coat" in (tmp_path / "p.html").read_text()
    main([*words, str(tmp_path / "a.png"), *dreams, "--layer", "1", "--head", "0", "--png", str(tmp_path / "p.png")])
    assert Image.open(tmp_path / "p.png").width > 900
    for wrong, said in (
        (["a text", *dreams], "--view dream needs a picture or the word noise, not a text"),
        (["noise", *dreams, "--target", "boots"], "did you mean boot?"),
        (["noise", *dreams, "--target", "boot", "--layer", "1"], "give --target, or --layer and --head"),
        ([str(tmp_path / "a.png"), "--seed", "1"], "--seed is for --view dream"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, *wrong, "--png", str(tmp_path / "q.png")])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "q.png").exists()
