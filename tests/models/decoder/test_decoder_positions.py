"""Which positions know where a text starts, and which end."""

import pytest
import torch
from tests.models.decoder.conftest import POSITIONS


@pytest.mark.parametrize(
    ("positions", "blind"),
    [("rotary", True), ("relative", True), ("none", True), ("learned", False), ("sinusoidal", False)],
)
def test_only_relative_positions_ignore_where_a_text_starts(make_model, positions, blind):
    model, input_ids = make_model(position_embedding_type=positions), torch.arange(3, 10)[None]
    shifted = model(input_ids, position_ids=torch.arange(5, 12)[None]).logits
    assert torch.allclose(shifted, model(input_ids).logits, atol=2e-5) is blind


@pytest.mark.parametrize("past", [0, 16])
def test_a_text_beyond_the_learned_positions_is_an_error(make_model, past):
    model = make_model(position_embedding_type="learned")
    cache = model(torch.ones(1, past, dtype=torch.long)).past_key_values if past else None
    with pytest.raises(ValueError, match="19 tokens exceed the 17 learned positions"):
        model(torch.ones(1, 19 - past, dtype=torch.long), past_key_values=cache)


def test_generating_beyond_the_learned_positions_is_an_error(make_model):
    model = make_model(position_embedding_type="learned")
    assert model.generate(torch.ones(1, 11, dtype=torch.long), max_new_tokens=7).shape == (
        1,
        18,
    )  # the 18th is not read
    with pytest.raises(ValueError, match="exceed the 17 learned positions"):
        model.generate(torch.ones(1, 11, dtype=torch.long), max_new_tokens=8)


@pytest.mark.parametrize("positions", [kind for kind in POSITIONS if kind != "learned"])
def test_other_positions_have_no_limit(make_model, positions):
    model = make_model(position_embedding_type=positions)
    assert model(torch.ones(1, 101, dtype=torch.long)).logits.isfinite().all()
