"""A model reads as many tokens as `positions_of` says, and not one more."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from decero.execution.positions import first_position, positions_of
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig

SIZES = {"vocab_size": 37, "hidden_size": 36, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 41}
# stock type -> the position of its first token, which RoBERTa's family counts from the padding id on
FIRST = {
    "bert": 0, "roberta": 4, "roberta-prelayernorm": 4, "xlm-roberta": 4, "xlm-roberta-xl": 4, "camembert": 4,
    "mpnet": 2, "longformer": 4, "data2vec-text": 4, "ibert": 4, "electra": 0, "distilbert": 0,
}  # fmt: skip


def build(kind, auto_class=AutoModel):
    """20 rows of positions, and 3 as the id of padding: not the one that a list would guess."""
    fields = SIZES | {"max_position_embeddings": 20, "pad_token_id": 3}
    if kind == "longformer":
        fields |= {"attention_window": [4]}
    return auto_class.from_config(AutoConfig.for_model(kind, **fields)).eval()


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForMaskedLM])
@pytest.mark.parametrize("kind", FIRST)
def test_a_model_reads_exactly_its_positions(kind, auto_class):
    model = build(kind, auto_class)
    positions = positions_of(model)
    assert positions == 20 - FIRST[kind]
    ids = torch.randint(5, 37, (1, positions + 1))
    model(ids[:, :positions])
    with pytest.raises((IndexError, RuntimeError)):
        model(ids)


@pytest.mark.parametrize("kind", FIRST)
def test_given_positions_equal_those_the_model_counts(kind):
    model = build(kind)
    if kind == "distilbert":
        pytest.skip("its forward pass takes no positions")
    ids = torch.randint(5, 37, (2, 7))
    given = (torch.arange(7) + first_position(model)).expand(2, -1)
    own, told, other = (
        model(ids, **how).last_hidden_state for how in ({}, {"position_ids": given}, {"position_ids": given + 1})
    )
    assert torch.equal(own, told)
    assert not torch.allclose(own, other, atol=1e-4)


@pytest.mark.parametrize("config_class", [DeceroEncoderConfig, DeceroDecoderConfig])
def test_ours_count_from_zero_whatever_their_offset(config_class):
    fields = SIZES | {"max_position_embeddings": 17, "position_embedding_type": "learned", "position_offset": 2}
    model = AutoModel.from_config(config_class(**fields)).eval()
    assert (first_position(model), positions_of(model)) == (0, 17)
    model(torch.ones(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="18 tokens"):
        model(torch.ones(1, 18, dtype=torch.long))


def test_distances_know_no_end():
    config = AutoConfig.for_model("t5", vocab_size=37, d_model=36, d_kv=12, d_ff=41, num_layers=1, num_heads=3)
    assert positions_of(AutoModel.from_config(config)) is None
