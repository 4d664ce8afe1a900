"""Models of pictures, and heads over words, have no vocabulary to check, or another Auto class: that is no damage."""

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForTokenClassification

from decero.data.image_rows import Pixels
from decero.doctor.model_files import model_damage
from decero.execution.image_models import processor_for
from decero.models import DeceroDiffusionConfig, DeceroEncoderConfig, DeceroVisionConfig

SIZES = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 9}


@pytest.mark.parametrize(
    ("auto_class", "config"),
    [
        (AutoModel, DeceroDiffusionConfig(**SIZES, image_size=8, patch_size=4)),
        (AutoModelForImageClassification, DeceroVisionConfig(**SIZES, image_size=8, patch_size=4)),
    ],
)
def test_an_intact_model_of_pictures_has_no_damage(auto_class, config, tmp_path):
    auto_class.from_config(config).save_pretrained(tmp_path)
    processor_for(auto_class, Pixels((8, 8))).save_pretrained(tmp_path)
    assert model_damage(tmp_path) == []
    (tmp_path / "model.safetensors").unlink()
    assert model_damage(tmp_path)


def test_a_head_over_words_is_a_head(house, tmp_path):
    config = DeceroEncoderConfig(**SIZES, vocab_size=113)
    torch.manual_seed(0)
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    for path in (house / "wordpiece").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert model_damage(tmp_path) == []
