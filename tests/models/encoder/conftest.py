"""An encoder with large weights, and what its tests share."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from decero.models import (
    DeceroEncoderForMaskedLM,
    DeceroEncoderForQuestionAnswering,
    DeceroEncoderForSequenceClassification,
    DeceroEncoderForTokenClassification,
    DeceroEncoderModel,
)

BACKENDS = ["eager", "sdpa"]
POSITIONS = ["sinusoidal", "sinusoidal_halves", "learned", "rotary", "relative", "none"]
AUTO = {
    AutoModel: DeceroEncoderModel,
    AutoModelForMaskedLM: DeceroEncoderForMaskedLM,
    AutoModelForSequenceClassification: DeceroEncoderForSequenceClassification,
    AutoModelForTokenClassification: DeceroEncoderForTokenClassification,
    AutoModelForQuestionAnswering: DeceroEncoderForQuestionAnswering,
}
HEADS = [head for auto, head in AUTO.items() if auto is not AutoModel]
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 2}
LABELS = {
    DeceroEncoderForMaskedLM: {"labels": torch.full((3, 7), -100).index_fill(1, torch.tensor([1, 4]), 5)},
    DeceroEncoderForSequenceClassification: {"labels": torch.tensor([1, 0, 1])},
    DeceroEncoderForTokenClassification: {"labels": torch.ones(3, 7, dtype=torch.long)},
    DeceroEncoderForQuestionAnswering: {
        "start_positions": torch.tensor([2, 0, 1]), "end_positions": torch.tensor([6, 3, 1])
    },
}  # fmt: skip


@pytest.fixture
def make_model(make_config, randomize):
    """A model of prime sizes with large weights, in eval mode."""

    def make(model_class=DeceroEncoderModel, backend="sdpa", **fields):
        model = randomize(model_class(make_config(**fields))).eval()
        model.set_attn_implementation(backend)
        return model

    return make
