"""Variants of the decoder with large weights, and a batch padded on the left."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from decero.models import (
    DeceroDecoderConfig,
    DeceroDecoderForCausalLM,
    DeceroDecoderForQuestionAnswering,
    DeceroDecoderForSequenceClassification,
    DeceroDecoderForTokenClassification,
    DeceroDecoderModel,
)

BACKENDS = ["eager", "sdpa"]
POSITIONS = ["sinusoidal", "sinusoidal_halves", "learned", "rotary", "relative", "none"]
AUTO = {
    AutoModel: DeceroDecoderModel,
    AutoModelForCausalLM: DeceroDecoderForCausalLM,
    AutoModelForSequenceClassification: DeceroDecoderForSequenceClassification,
    AutoModelForTokenClassification: DeceroDecoderForTokenClassification,
    AutoModelForQuestionAnswering: DeceroDecoderForQuestionAnswering,
}
HEADS = [head for auto, head in AUTO.items() if auto is not AutoModel]
BUCKETS = {"relative_attention_num_buckets": 7, "relative_attention_max_distance": 11}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}
VARIANTS = {
    "gpt2": {"position_embedding_type": "learned"},
    "llama": {
        "position_embedding_type": "rotary", "norm_type": "rmsnorm", "gated_mlp": True, "hidden_act": "silu",
        "num_key_value_heads": 1, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    },
    "waves": {
        "position_embedding_type": "sinusoidal", "norm_placement": "post", "scale_embeddings": True,
        "tie_word_embeddings": False,
    },
    "halves": {"position_embedding_type": "sinusoidal_halves", "norm_placement": "post", "embedding_norm": True},
    "buckets": {"position_embedding_type": "relative", "scale_attn_weights": False, "norm_type": "rmsnorm", **BUCKETS},
    "blind": {"position_embedding_type": "none", "lm_head_bias": True, "tie_word_embeddings": False},
    "sliding": {"position_embedding_type": "rotary", "sliding_window": 4},
    "hybrid": {"position_embedding_type": "rotary", "num_key_value_heads": 1, "local_rope_theta": 50, **SLIDING},
    "hybrid_buckets": {"position_embedding_type": "relative", **BUCKETS, **SLIDING},
}  # fmt: skip
LABELS = {
    DeceroDecoderForCausalLM: {"labels": torch.full((3, 7), -100).index_fill(1, torch.tensor([0, 1, 4]), 5)},
    DeceroDecoderForSequenceClassification: {"labels": torch.tensor([1, 0, 1])},
    DeceroDecoderForTokenClassification: {"labels": torch.tensor([[1, 0, 1, -100, 0, 1, 1]] * 3)},
    DeceroDecoderForQuestionAnswering: {
        "start_positions": torch.tensor([1, 0, 2]),
        "end_positions": torch.tensor([3, 1, 2]),
    },
}


@pytest.fixture
def make_model(make_config, randomize):
    """A model of prime sizes with large weights, in eval mode."""

    def make(model_class=DeceroDecoderForCausalLM, backend="sdpa", seed=11, **fields):
        model = randomize(model_class(make_config(DeceroDecoderConfig, **fields)), seed=seed).eval()
        model.set_attn_implementation(backend)
        return model

    return make


@pytest.fixture
def left(batch):
    """The batch padded on the left, and the positions that its texts have alone."""
    mask = batch["attention_mask"].flip(1)
    input_ids = torch.zeros(3, 7, dtype=torch.long)
    input_ids[mask.bool()] = batch["input_ids"][batch["attention_mask"].bool()]
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@pytest.fixture
def prompt(left):
    """Return the arguments for `generate`."""
    return {name: left[name] for name in ("input_ids", "attention_mask")}
