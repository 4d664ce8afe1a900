"""One cast for all projections: as autocast does it, on any device and for any type."""

import pytest
import torch
from torch.testing import assert_close

from decero.models import DeceroEncoderConfig, DeceroEncoderModel
from decero.models.attention import cast_once

CONFIG = DeceroEncoderConfig(
    vocab_size=31, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=11, gated_mlp=True
)


def test_casts_follow_autocast():
    x = torch.randn(2, 3)
    assert cast_once(x) is x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cast_once(x).dtype == torch.bfloat16
        assert cast_once(x.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.float16):
        assert cast_once(x).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_encoder_runs_under_autocast(dtype):
    torch.manual_seed(0)
    model, tokens = DeceroEncoderModel(CONFIG).eval().to(dtype), torch.randint(31, (2, 7))
    expected = model(tokens).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(tokens).last_hidden_state
    assert found.dtype == dtype
    assert_close(found, expected, atol=0.1 if dtype == torch.float32 else 1e-9, rtol=0)


def test_an_encoder_runs_without_memory():
    model = DeceroEncoderModel(CONFIG).to("meta")
    assert model(torch.zeros(2, 7, dtype=torch.long, device="meta")).last_hidden_state.shape == (2, 7, 12)
