"""What attention did with a picture: recorded, painted over it, as a page."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from decero.cli.main import main
from decero.data.image_rows import Pixels
from decero.errors import UserError
from decero.explain.picture_record import from_patches, picture_views, record_picture
from decero.inference.image_answers import LoadedPictures
from decero.models import (
    DeceroDetectionConfig,
    DeceroDetectionForObjectDetection,
    DeceroVisionConfig,
    DeceroVisionForImageClassification,
    DeceroVisionForMaskedImageModeling,
    DeceroVisionForSemanticSegmentation,
)

SIZES = {"image_size": [8, 12], "patch_size": 4, "num_channels": 3, "hidden_size": 6, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 5, "initializer_range": 0.5}


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8))


@pytest.fixture
def load():
    def build(kind="ours", **fields):
        torch.manual_seed(0)
        if kind == "stock":
            model = ViTForImageClassification(ViTConfig(**SIZES))
        else:
            model = DeceroVisionForImageClassification(DeceroVisionConfig(**SIZES | fields))
        return LoadedPictures(kind, model.eval(), Pixels((8, 12), 3))

    return build


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_all_layers_are_recorded_and_the_model_stays_as_it_was(load, picture, kind):
    loaded = load(kind)
    found = record_picture(loaded, picture, "a.png").attentions["self"]
    assert [weights.shape for weights in found.weights.values()] == [(2, 7, 7)] * 2
    assert [piece.text for piece in found.keys] == ["[0]", "0,0", "0,1", "0,2", "1,0", "1,1", "1,2"]
    assert [piece.special for piece in found.keys] == [True] + [False] * 6
    _, inputs = next(loaded.batches([picture], 1))
    assert loaded.model.config._attn_implementation == "sdpa"
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = loaded.model(**inputs, output_attentions=True).attentions
    assert_close(torch.tensor(found.weights[1]), expected[1][0])


def test_the_class_token_or_the_mean_looks_at_patches(load, picture):
    weights = record_picture(load(), picture, "a").attentions["self"].weights[1][0]
    assert_close(from_patches(weights, (2, 3)), weights[0, 1:].reshape(2, 3))
    weights = record_picture(load(pooling="mean"), picture, "a").attentions["self"].weights[1][0]
    assert_close(from_patches(weights, (2, 3)), weights.mean(axis=0).reshape(2, 3))


def test_what_cannot_be_shown_of_a_picture_is_one_line(load, picture):
    loaded = load()
    recording = record_picture(loaded, picture, "a.png")
    with pytest.raises(UserError, match="--view lens: a picture has the views attention, rollout and dream"):
        picture_views(loaded, recording, picture, ["lens"], None, "en")
    with pytest.raises(UserError, match="--layer 2: there are 2 layers of self attention, from 0 to 1"):
        picture_views(loaded, recording, picture, ["attention"], 2, "en")
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic")
    resnet = LoadedPictures("r", ResNetForImageClassification(config).eval(), Pixels((8, 12), 3))
    with pytest.raises(UserError, match="this resnet model has no patches to show"):
        record_picture(resnet, picture, "a.png")


def test_the_places_of_a_backbone_are_shown():
    torch.manual_seed(0)
    backbone = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 4], "depths": [1, 1]}
    backbone |= {"layer_type": "basic", "out_features": ["stage2"]}
    sizes = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 5, "decoder_ffn_dim": 5}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 3}
    config = DetrConfig(backbone_config=backbone, **sizes)
    loaded = LoadedPictures("d", DetrForObjectDetection(config).eval(), Pixels((10, 20), 3))
    picture = Image.effect_noise((20, 10), 90).convert("RGB")
    recording = record_picture(loaded, picture, "a.png")
    found = recording.attentions["self"]
    assert [piece.text for piece in found.keys] == ["0,0", "0,1", "0,2", "1,0", "1,1", "1,2"]  # stride 8, rounded up
    _, inputs = next(loaded.batches([picture], 1))
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = loaded.model(**inputs, output_attentions=True).encoder_attentions
    assert_close(torch.tensor(found.weights[1]), expected[1][0])
    assert len(picture_views(loaded, recording, picture, ["attention", "rollout"], None, "en")) == 2


def test_the_command_writes_pages_and_pictures(load, picture, tmp_path, capsys):
    loaded = load()
    loaded.model.save_pretrained(tmp_path / "model")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 12}}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    picture.save(tmp_path / "a.png")
    words = ["explain", str(tmp_path / "model"), str(tmp_path / "a.png")]
    main([*words, "--out", str(tmp_path / "p.html"), "--view", "attention", "--view", "rollout", "--language", "es"])
    text = (tmp_path / "p.html").read_text()
    assert text.count("data:image/svg+xml") == 2
    assert "Rollout sobre la imagen" in text
    main([*words, "--png", str(tmp_path / "p.png"), "--layer", "1"])
    assert Image.open(tmp_path / "p.png").width > 900
    with pytest.raises(SystemExit) as ended:
        main([*words, "--png", str(tmp_path / "q.png"), "--layer", "0", "--head", "1"])
    assert ended.value.code == 2
    assert "--head has no effect on a picture; remove it" in capsys.readouterr().err


def saved(model, folder):
    model.save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 12}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def refused(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["explain", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_only_a_classifier_of_whole_pictures_dreams(picture, tmp_path, capsys):
    picture.save(tmp_path / "a.png")
    boxes = DeceroDetectionConfig(patch_size=4, hidden_size=8, num_attention_heads=1, num_hidden_layers=1,
                                  decoder_layers=1, intermediate_size=5, num_queries=3)  # fmt: skip
    models = {
        "masks": DeceroVisionForSemanticSegmentation(DeceroVisionConfig(**SIZES, decoder_hidden_size=4)),
        "boxes": DeceroDetectionForObjectDetection(boxes),
        "hidden": DeceroVisionForMaskedImageModeling(DeceroVisionConfig(**SIZES)),
    }
    for name, model in models.items():
        folder = saved(model, tmp_path / name)
        for goal in ([], ["--layer", "0"]):
            words = "--view", "dream", *goal, "--png", str(tmp_path / "d.png")
            said = refused(capsys, folder, str(tmp_path / "a.png"), *words)
            assert "--view dream: " in said
            assert "gives no classes of whole pictures" in said
        main(["explain", folder, str(tmp_path / "a.png"), "--view", "rollout", "--png", str(tmp_path / f"{name}.png")])
        assert (tmp_path / f"{name}.png").is_file()


def test_other_commands_send_a_masked_image_model_to_explain(picture, tmp_path, capsys):
    picture.save(tmp_path / "a.png")
    folder = saved(DeceroVisionForMaskedImageModeling(DeceroVisionConfig(**SIZES)), tmp_path / "model")
    with pytest.raises(SystemExit):
        main(["classify", folder, str(tmp_path / "a.png")])
    assert "fills in hidden patches of pictures; use decero explain" in capsys.readouterr().err


def test_a_text_for_a_model_of_pictures_is_one_line(load, tmp_path, capsys):
    folder = saved(load().model, tmp_path / "model")
    said = refused(capsys, folder, "a text", "--out", str(tmp_path / "p.html"))
    assert "this decero_vision model classifies pictures, and reads no texts; give a picture" in said
