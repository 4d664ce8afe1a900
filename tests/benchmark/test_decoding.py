"""Decoding workload: all arms write the same tokens with the given lengths."""

import numpy as np
import pytest
import torch

from decero.benchmark.batches import describe, make_texts
from decero.benchmark.decoding import answer_lengths, build_decoders, check_equal_answers, sources_of
from decero.benchmark.workloads import build_pair
from decero.config.benchmark import Workload
from decero.errors import UserError

pytestmark = pytest.mark.long

SIZES = {"vocab_size": 211, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 12}
SIZES |= {"intermediate_size": 41, "initializer_range": 0.5}
MARIAN = {"pad_token_id": 210, "position_embedding_type": "sinusoidal_halves"}
FAMILIES = {"t5": ("t5_small", {}), "marian": ("marian", MARIAN)}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prepared(family, **changes):
    preset, overrides = FAMILIES[family]
    model = {"config": f"configs/model/{preset}.yaml", "overrides": SIZES | overrides}
    settings = {"kind": "decode", "model": model, "stock": family, "batch_size": 5, "batches": 3, "length": 41}
    work = Workload.model_validate(settings | {"fill": 0.3} | changes)
    pair = build_pair("decode", work, seed=3)
    return work, pair, make_texts("decode", work, pair[0].config, seed=3)


def shares(work, arms):
    for arm in arms.values():
        arm()
    return check_equal_answers("decode", work, {name: arm.written for name, arm in arms.items()})


@pytest.mark.parametrize("family", FAMILIES)
def test_both_arms_write_the_same_with_the_given_lengths(family):
    work, pair, texts = prepared(family)
    sources = sources_of(texts)
    arms = build_decoders(work, pair, sources, torch.device("cpu"), seed=3)
    assert shares(work, arms) == {"stock fp32": 1.0, "ours": 1.0}
    written = arms["ours"].written
    assert written == arms["stock fp32"].written
    assert [len(answer) for answer in written] == answer_lengths(work, sources, 3)
    assert len({token for answer in written for token in answer}) > 10, "all write the same few: equal says nothing"
    assert type(arms["ours"].model).__name__ != type(arms["stock fp32"].model).__name__


def test_different_answers_in_fp32_are_an_error():
    work, pair, texts = prepared("t5")
    arms = build_decoders(work, pair, sources_of(texts), torch.device("cpu"), seed=3)
    with torch.no_grad():
        pair[0].model.decoder.layers[1].mlp.up_proj.weight.mul_(-3)
    with pytest.raises(UserError, match=r"works\.decode: the arms write different answers, share of equal tokens"):
        shares(work, arms)


def test_both_arms_have_bf16_weights_if_configured():
    work, pair, texts = prepared("t5", bf16=True)
    assert work.arms() == ("stock bf16", "ours")
    arms = build_decoders(work, pair, sources_of(texts), torch.device("cpu"), seed=3)
    assert {arm.model.dtype for arm in arms.values()} == {torch.bfloat16}
    assert list(arms) == list(work.arms())
    assert shares(work, arms)["ours"] == 1.0


def test_lengths_are_skewed_and_written_tokens_are_counted():
    work, pair, texts = prepared("t5", batches=40)
    sources = sources_of(texts)
    lengths = np.array([len(source) for source in sources])
    assert lengths.max() <= 41
    assert lengths.mean() == pytest.approx(0.3 * 41, rel=0.15)
    assert np.median(lengths) < lengths.mean() < lengths.max() / 2
    facts, written = describe(work, texts, pair[0], 3), answer_lengths(work, sources, 3)
    assert facts["useful_tokens"] == sum(written)
    most = [5 * max(written[start : start + 5]) for start in range(0, 200, 5)]
    assert facts["fill"] == pytest.approx(sum(written) / sum(most))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_equal_without_cache_and_by_generate(family):
    work, pair, texts = prepared(family, tricks=False, uncached=True, answer_length=13)
    arms = build_decoders(work, pair, sources_of(texts), torch.device("cpu"), seed=3)
    seen: list[bool] = []
    pair[0].register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["decoder_input_ids"].shape[1] > 1), with_kwargs=True
    )
    assert shares(work, arms) == {"stock fp32": 1.0, "ours": 1.0, "uncached": 1.0}
    assert {len(answer) for answer in arms["uncached"].written} == {13}
    assert seen == [False] * 3 * 13 + ([False] + [True] * 12) * 3, "ours reads one token a step, uncached all of them"
