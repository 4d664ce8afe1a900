"""Answers about pictures: right numbers from checkpoints that others saved, or one line."""

import pytest
import torch
from PIL import Image
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DetrImageProcessorPil,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from decero.cli.main import main
from decero.errors import UserError
from decero.inference.image_answers import detect

BACKBONE = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}
BACKBONE |= {"layer_type": "basic", "out_features": ["stage2"]}
DETECTOR = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "num_queries": 3}
DETECTOR |= {"decoder_attention_heads": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "num_labels": 2}


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((56, 40), 90).convert("RGB").save(path)
    return path


@pytest.fixture
def refused(capsys):
    """Run a command that is refused; return its last line."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        assert ended.value.code == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        return line

    return run


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize("words", [["--bf16"], ["--batch-tokens", "99"], ["--too-long", "cut"], ["--column", "text"]])
def test_options_of_texts_are_refused_for_pictures(classifier, picture, refused, words):
    assert f"{words[0]} is for texts, and {classifier} reads pictures; remove it" in refused(
        "classify", classifier, picture, *words
    )


@pytest.mark.parametrize("inside", [".", "painted"])
def test_a_command_does_not_write_into_what_it_reads(tmp_path, inside, picture, refused):
    (tmp_path / "photos").mkdir()
    picture.rename(tmp_path / "photos" / "a.png")
    config = SegformerConfig(depths=[1], num_encoder_blocks=1, sr_ratios=[1], hidden_sizes=[16], patch_sizes=[3],
                             strides=[2], num_attention_heads=[1], mlp_ratios=[1], decoder_hidden_size=16)  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    SegformerImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "model")
    words = "segment", tmp_path / "model", tmp_path / "photos", "--out"
    assert "whose pictures are all read, also those that are written there; give a folder outside of it" in refused(
        *words, tmp_path / "photos" / inside
    )
    assert [each.name for each in (tmp_path / "photos").iterdir()] == ["a.png"]
    main([*map(str, words), str(tmp_path / "photos_painted")])
    assert len(list((tmp_path / "photos_painted").iterdir())) == 2


def test_sigmoid_detectors_are_refused(picture, tmp_path):
    torch.manual_seed(0)
    config = ConditionalDetrConfig(backbone_config=BACKBONE, **DETECTOR)
    ConditionalDetrForObjectDetection(config).save_pretrained(tmp_path / "model")
    DetrImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match='head has 2 columns for 2 classes, and none for "no object"; use a model'):
        list(detect(tmp_path / "model", [picture], threshold=0.0))


def test_pictures_before_a_torn_one_are_answered(classifier, picture, tmp_path, capsys):
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(classifier)
    (tmp_path / "photos").mkdir()
    for name in "abd":
        (tmp_path / "photos" / f"{name}.png").write_bytes(picture.read_bytes())
    (tmp_path / "photos" / "c.png").write_bytes(picture.read_bytes()[:400])
    with pytest.raises(SystemExit) as ended:
        main(["classify", str(classifier), str(tmp_path / "photos")])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert [line.split("\t")[0][-5:] for line in out.splitlines()] == ["a.png", "b.png"]
    assert "c.png" in err.strip().splitlines()[-1]
