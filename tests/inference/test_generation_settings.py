"""The generation settings of a checkpoint act as in transformers."""

import copy
import functools

import pytest
import torch
from tests.inference.conftest import COMMAND_OF, WRITERS
from transformers import T5Config

from decero.errors import UserError
from decero.inference import generate, generation, load, translate
from decero.inference.decode import decode
from decero.inference.generation import encode_prompt

pytestmark = pytest.mark.long

# What a checkpoint may say of how it generates. Each is tried with a decoder and an encoder-decoder, with one beam and
# three, on a batch of several lengths.
OWN = {
    "max_length": {"max_length": 17},
    "max_new_tokens": {"max_new_tokens": 13, "max_length": 31},
    "more than half": {"max_new_tokens": 35},
    "min_length": {"max_length": 30, "min_length": 15},
    "min_new_tokens": {"max_length": 30, "min_new_tokens": 9},
    "no_repeat_ngram_size": {"max_length": 20, "no_repeat_ngram_size": 2},
    "no_repeat_1": {"max_length": 20, "no_repeat_ngram_size": 1},
    "repetition_penalty": {"max_length": 20, "repetition_penalty": 1.7},
    "length_penalty": {"max_length": 20, "length_penalty": 3.0, "early_stopping": True},
    "early_never": {"max_length": 20, "early_stopping": "never"},
    "forced_eos": {"max_length": 20, "forced_eos_token_id": 31},
    "forced_bos": {"max_length": 20, "forced_bos_token_id": 23},
    "suppress": {"max_length": 20, "suppress_tokens": list(range(20, 60)), "begin_suppress_tokens": [61, 62]},
    "bad_words": {"max_length": 20, "bad_words_ids": [[20], [31, 40], [40, 41, 42]]},
    "several ends": {"max_length": 30, "eos_token_id": [3, 20, 31, 42, 60]},
    "no end": {"max_length": 20, "eos_token_id": None},
    "all": {"max_length": 25, "min_length": 12, "no_repeat_ngram_size": 3, "length_penalty": 2.0, "num_beams": 4,
            "early_stopping": True, "repetition_penalty": 1.3, "forced_bos_token_id": 20, "forced_eos_token_id": 3},
    "other": {"max_length": 20, "use_cache": False, "return_dict_in_generate": True, "output_scores": True},
}  # fmt: skip
# with an encoder-decoder, others are slow: its answers are written without a cache
QUICK = ("max_new_tokens", "forced_bos", "several ends", "early_never", "all")
LENGTHS = ["banks", "the market rose sharply on monday after", ""]


@pytest.fixture(scope="module")
def loaded_of(checkpoint):
    """Load a checkpoint once."""
    return functools.cache(lambda kind, whose: load(checkpoint(kind, whose), COMMAND_OF[kind]))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=pytest.mark.slow if kind == "seq2seq" and name not in QUICK else ())
        for kind in ("seq2seq", "causal")
        for name in OWN
    ],
)
@pytest.mark.parametrize("whose", ["stock", pytest.param("ours", marks=pytest.mark.slow)])
def test_a_checkpoints_settings_give_transformers_texts(whose, kind, name, loaded_of):
    own = OWN[name]
    loaded, write = loaded_of(kind, whose), WRITERS[COMMAND_OF[kind]][0]
    before = copy.deepcopy(loaded.model.generation_config)
    try:
        for beams in (1, 3):
            loaded.model.generation_config.update(**{"num_beams": beams} | own)
            expected = [stock_answer(loaded, kind, text) if text else "" for text in LENGTHS]
            assert list(write(loaded, LENGTHS)) == expected
    finally:
        loaded.model.generation_config = before


def stock_answer(loaded, kind, text):
    ids = encode_prompt(loaded, "", "", text) if kind == "causal" else loaded.tokenizer(text)["input_ids"]
    written = loaded.model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
        return_dict_in_generate=False, use_cache=not isinstance(loaded.model.config, T5Config),  # it miscounts layers
    )[0]  # fmt: skip
    start = len(ids) if kind == "causal" else 1
    return loaded.tokenizer.decode(written[start:], skip_special_tokens=True).strip()


def test_a_prompt_longer_than_max_length_is_cut(checkpoint):
    loaded, said = load(checkpoint("causal", "ours"), "generate"), []
    before = loaded.model.generation_config
    loaded.model.generation_config = copy.deepcopy(before)
    loaded.model.generation_config.max_length = 12
    try:
        assert len(list(generate(loaded, ["banks gained " * 9], warn=said.append))) == 1
        with pytest.raises(UserError, match="has 20 tokens, and max_length 12 of the model's generation_config counts"):
            decode(loaded.model, [[7] * 20], max_new_tokens=None)
    finally:
        loaded.model.generation_config = before
    assert "line 1: cut; its " in said[0]
    assert "exceed the limit of 6 of" in said[0]


def test_samples_depend_on_seed_and_line_not_on_the_window(checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    texts = ["banks gained", "", "banks gained", "shares fell", "banks gained"]
    drawn = list(generate(loaded, texts, max_new_tokens=9, temperature=1.5, seed=3))
    assert list(generate(loaded, texts, max_new_tokens=9, temperature=1.5, seed=3, first_window=1)) == drawn
    assert len({drawn[0], drawn[2], drawn[4]}) == 3
    assert list(generate(loaded, texts, max_new_tokens=9, temperature=1.5, seed=4)) != drawn
    with pytest.raises(UserError, match=r"temperature 0\.0 must be from 0\.0001 to 10,000"):
        next(generate(loaded, texts, temperature=0.0))
    with pytest.raises(UserError, match="seed has no effect without --temperature"):
        next(generate(loaded, texts, seed=3))
    with pytest.raises(UserError, match="seed -1 is negative"):
        next(generate(loaded, texts, temperature=1.0, seed=-1))


def test_a_line_without_tokens_stops_no_other(checkpoint, monkeypatch):
    """A tokenizer that cleans texts makes nothing of a zero-width space."""
    loaded, said = load(checkpoint("causal", "ours"), "generate"), []
    texts = ["banks gained", "\u200b", "shares fell"]

    def encode(loaded, prefix, suffix, text):
        return encode_prompt(loaded, prefix, suffix, text) if text != texts[1] else []

    monkeypatch.setattr(generation, "encode_prompt", encode)
    found = list(generate(loaded, texts, max_new_tokens=5, warn=said.append))
    alone = [next(generate(loaded, [text], max_new_tokens=5)) for text in (texts[0], texts[2])]
    assert found == [alone[0], "", alone[1]]
    assert said == ["line 2: the tokenizer makes no token of it, so there is no answer"]


def test_settings_that_have_no_effect_are_said_once(checkpoint):
    loaded = load(checkpoint("causal", "stock"), "generate")
    plain = list(generate(loaded, ["the market"], max_new_tokens=4))
    loaded.generation_checked, said = False, []
    loaded.model.generation_config.penalty_alpha, loaded.model.generation_config.max_time = 0.6, 1e-9
    assert list(generate(loaded, ["the market"], max_new_tokens=4, warn=said.append)) == plain
    assert [line.partition(": ")[2] for line in said] == [
        "generation_config.json: no effect without beams: max_time, penalty_alpha"
    ]
    with pytest.raises(UserError, match="is loaded, so bf16, revision and code have no effect; remove them"):
        load(loaded, "generate", bf16=True)
    with pytest.raises(TypeError, match="translate has no chat"):
        translate(loaded, ["the market"], chat=True)
