"""Samples follow the distribution of transformers and depend only on seed and source."""

import pytest
import torch
from transformers import AutoModelForCausalLM, XLNetConfig
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from decero.errors import UserError
from decero.inference.decode import decode
from decero.inference.sampling import Sampling
from decero.models import DeceroDecoderConfig

SIZES = {"vocab_size": 101, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 14}
SIZES |= {"intermediate_size": 41, "eos_token_id": 1, "max_position_embeddings": 61, "initializer_range": 0.3}
SOURCES = [list(range(3, 3 + length)) for length in (5, 17, 2, 11, 23, 3)]
SEEDS = [(7, line) for line in range(len(SOURCES))]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(DeceroDecoderConfig(**SIZES)).eval()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8), (1.0, 0.3), (0.5, 1e-6)])
def test_even_numbers_sample_the_transformers_distribution(temperature, top_p):
    logits_V = torch.randn(11, generator=torch.Generator().manual_seed(3)) * 2
    warped = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits_V[None]))
    count = 9973
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = Sampling((), temperature, top_p).pick(logits_V.expand(count, -1), uniform)
    shares = torch.bincount(drawn, minlength=11) / count
    torch.testing.assert_close(shares, warped.softmax(-1)[0], atol=2 / count, rtol=0)


def test_an_answer_depends_on_its_seed_and_not_on_its_batch(model):
    how = {"temperature": 0.9, "top_p": 0.95}
    whole = decode(model, SOURCES, max_new_tokens=13, sampling=Sampling(SEEDS, **how))
    for source, seed, answer in zip(SOURCES, SEEDS, whole, strict=True):
        assert decode(model, [source], max_new_tokens=13, sampling=Sampling([seed], **how)) == [answer]
    other = decode(model, SOURCES, max_new_tokens=13, sampling=Sampling([(8, line) for _, line in SEEDS], **how))
    assert sum(a != b for a, b in zip(whole, other, strict=True)) >= 5
    same = [SOURCES[0]] * 4
    assert len(set(map(tuple, decode(model, same, max_new_tokens=13, sampling=Sampling(SEEDS[:4], **how))))) == 4


def test_a_tiny_top_p_takes_the_likeliest_token(model):
    assert decode(model, SOURCES, max_new_tokens=13, sampling=Sampling(SEEDS, top_p=1e-9)) == decode(
        model, SOURCES, max_new_tokens=13
    )


def test_invalid_sampling_is_an_error(model):
    for wrong in (
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-300},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Sampling((), **wrong)
    with pytest.raises(UserError, match="cannot sample with 3 beams; remove them or set one beam"):
        decode(model, SOURCES, max_new_tokens=3, num_beams=3, sampling=Sampling(SEEDS))
    torch.manual_seed(5)
    xlnet = AutoModelForCausalLM.from_config(XLNetConfig(vocab_size=101, d_model=42, n_layer=1, n_head=3, d_inner=41))
    with pytest.raises(UserError, match="cannot sample from xlnet; remove them"):
        decode(xlnet, SOURCES[:1], max_new_tokens=3, sampling=Sampling(SEEDS[:1]))
