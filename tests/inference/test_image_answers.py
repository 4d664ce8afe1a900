"""Answers about pictures: right numbers from checkpoints that others saved, or one line."""

import pytest
import torch
from PIL import Image
from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection, DetrImageProcessorPil

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


def test_sigmoid_detectors_are_refused(picture, tmp_path):
    torch.manual_seed(0)
    config = ConditionalDetrConfig(backbone_config=BACKBONE, **DETECTOR)
    ConditionalDetrForObjectDetection(config).save_pretrained(tmp_path / "model")
    DetrImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match='head has 2 columns for 2 classes, and none for "no object"; use a model'):
        list(detect(tmp_path / "model", [picture], threshold=0.0))
