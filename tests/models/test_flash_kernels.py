"""Flash attention has no mask: windows and packed texts reach it as numbers. Its kernels are played by plain torch.

Names inside transformers: `lazy_import_flash_attention`, `fa_peft_integration_check`.
"""

from collections import defaultdict
from itertools import pairwise

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash

from decero.hub.stock import to_stock
from decero.models import (
    DeceroDecoderConfig,
    DeceroDecoderForCausalLM,
    DeceroEncoderConfig,
    DeceroEncoderDecoderConfig,
    DeceroEncoderDecoderForConditionalGeneration,
    DeceroEncoderForMaskedLM,
)

SIZES = {"vocab_size": 53, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 41}
LLAMA = {"norm_type": "rmsnorm", "gated_mlp": True, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
MODERN = {"gated_mlp": True, "attention_bias": False, "mlp_bias": False, "norm_bias": False, "embedding_norm": True}
MODERN |= {"classifier_head": "prediction", "lm_head_transform_bias": False, "layer_norm_eps": 1e-5}


def attend(q, k, v, causal, scale, window):
    """What the kernels compute: (..., length, heads, head size). window: most tokens before and after; -1 for all."""
    k, v = (each.repeat_interleave(q.shape[-2] // each.shape[-2], -2) for each in (k, v))
    q, k, v = (each.transpose(-2, -3) for each in (q, k, v))
    L, M = q.shape[-2], k.shape[-2]
    ahead = torch.arange(M)[None] - (torch.arange(L) + M - L)[:, None]
    seen = ahead <= 0 if causal else torch.ones(L, M, dtype=torch.bool)
    for limit, far in zip(window, (-ahead, ahead), strict=True):
        seen = seen & (far <= limit) if limit >= 0 else seen
    scores = (q @ k.mT) * (scale or q.shape[-1] ** -0.5)
    return (scores.masked_fill(~seen, -1e30).softmax(-1) @ v).transpose(-2, -3)


def whole(q, k, v, causal=False, softmax_scale=None, window_size=(-1, -1), **_):
    return attend(q, k, v, causal, softmax_scale, window_size)


def packed(q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, softmax_scale=None, window_size=(-1, -1), **_):
    texts = zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_k), strict=True)
    return torch.cat([attend(q[a:b], k[c:d], v[c:d], causal, softmax_scale, window_size) for (a, b), (c, d) in texts])


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    def settings(**given):
        return flash._process_flash_attention_kwargs(**given, supports_mapping=defaultdict(lambda: True))

    kernels = (whole, packed, None, flash._pad_input, flash._unpad_input)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_, **__: (kernels, (settings, None)))
    monkeypatch.setattr(flash, "fa_peft_integration_check", lambda q, k, v, _: (q, k, v))


def use(model, kernel):
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = kernel
    return model.eval()


def decoder(**fields):
    torch.manual_seed(0)
    return DeceroDecoderForCausalLM(DeceroDecoderConfig(**SIZES, **LLAMA, initializer_range=0.3, **fields))


@torch.no_grad()
@pytest.mark.parametrize("whose", ["ours", "stock"])
def test_packed_texts_do_not_see_each_other(whose):
    model = decoder()
    model = model if whose == "ours" else to_stock(model, "llama")
    ids, places = torch.randint(1, 53, (1, 12)), torch.cat([torch.arange(7), torch.arange(5)])[None]
    alone = use(model, "sdpa")(ids[:, 7:]).logits
    found = use(model, "flash_attention_2")(ids, position_ids=places, use_cache=False).logits
    torch.testing.assert_close(found[:, 7:], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("whose", ["ours", "stock"])
def test_a_window_of_an_encoder_is_as_wide_as_with_a_mask(whose):
    torch.manual_seed(0)
    layers = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 2, "local_rope_theta": 10000.0}
    model = DeceroEncoderForMaskedLM(DeceroEncoderConfig(**SIZES, **MODERN, **layers, initializer_range=0.3))
    model = model if whose == "ours" else to_stock(model, "modernbert")
    ids = torch.randint(1, 53, (2, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = use(model, "sdpa")(**batch).logits
    torch.testing.assert_close(use(model, "flash_attention_2")(**batch).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_window_of_a_decoder_is_as_wide_as_with_a_mask():
    model, ids = decoder(sliding_window=3), torch.randint(1, 53, (2, 12))
    expected = use(model, "sdpa")(ids, use_cache=False).logits
    found = use(model, "flash_attention_2")(ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_encoder_decoder_is_the_same_with_flash_kernels():
    torch.manual_seed(0)
    config = DeceroEncoderDecoderConfig(**SIZES, initializer_range=0.3)
    model, ids = DeceroEncoderDecoderForConditionalGeneration(config), torch.randint(3, 53, (1, 12))
    batch = {"input_ids": ids, "decoder_input_ids": ids[:, :7], "use_cache": False}
    expected = use(model, "sdpa")(**batch).logits
    torch.testing.assert_close(use(model, "flash_attention_2")(**batch).logits, expected, atol=1e-4, rtol=1e-4)
