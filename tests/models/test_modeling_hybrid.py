"""A decoder that fills holes reads both ways and predicts each token at the token before it."""

import pytest
import torch
from torch.testing import assert_close

from decero.models import (
    DeceroDecoderConfig,
    DeceroDecoderForCausalLM,
    DeceroDecoderForMaskedLM,
    DeceroEncoderConfig,
    DeceroEncoderModel,
)

SLOTS = {"rotary": {}, "learned": {"position_embedding_type": "learned", "norm_placement": "post"}}


@pytest.fixture(params=SLOTS)
def pair(request, make_config, randomize):
    """A filler and a writer with the same weights."""
    config = make_config(DeceroDecoderConfig, **SLOTS[request.param])
    filler = randomize(DeceroDecoderForMaskedLM(config)).eval()
    writer = DeceroDecoderForCausalLM(config).eval()
    writer.load_state_dict(filler.state_dict())
    return filler, writer


def test_it_equals_an_encoder_with_shifted_outputs(pair, make_config):
    filler, _ = pair
    fields = {n: getattr(filler.config, n) for n in ("position_embedding_type", "norm_placement")}
    encoder = DeceroEncoderModel(make_config(DeceroEncoderConfig, **fields)).eval()
    encoder.load_state_dict({n.removeprefix("model."): t for n, t in filler.state_dict().items() if "lm_head" not in n})
    ids_BL = torch.randint(3, 37, (2, 7))
    mask_BL = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    got = filler(ids_BL, mask_BL).logits
    expected = filler.lm_head(encoder(ids_BL, mask_BL).last_hidden_state)
    assert_close(got[0, 1:], expected[0, :-1], atol=1e-5, rtol=1e-5)
    assert_close(got[1, 1:4], expected[1, :3], atol=1e-5, rtol=1e-5)
    assert_close(filler(ids_BL[1:, :4]).logits[0], got[1, :4], atol=1e-5, rtol=1e-5)


def test_with_a_causal_mask_it_gives_the_writers_logits(pair):
    filler, writer = pair
    ids_BL = torch.randint(3, 37, (3, 7))
    causal = torch.ones(3, 1, 7, 7, dtype=torch.bool).tril()
    assert_close(filler(ids_BL, causal).logits[:, 1:], writer(ids_BL).logits[:, :-1], atol=1e-5, rtol=1e-5)


def test_the_loss_is_that_of_the_labelled_tokens(pair):
    filler, _ = pair
    ids_BL = torch.randint(3, 37, (2, 7))
    labels_BL = torch.full_like(ids_BL, -100)
    labels_BL[:, 3] = ids_BL[:, 3]
    out = filler(ids_BL, labels=labels_BL)
    expected = torch.nn.functional.cross_entropy(out.logits[:, 3], ids_BL[:, 3])
    assert_close(out.loss, expected)
