"""Sequence-length warm-up: rows of the first steps are cut, and later ones are whole."""

import numpy as np
import pytest

from decero.data.causal import CausalLanguageModeling
from decero.data.collators import IGNORED, MaskedLanguageModeling
from decero.data.corruption import SpanCorruption
from decero.data.packing import Packed
from decero.data.sizes import sizes_of
from decero.data.warmup import LengthWarmup


def row(length, progress, **more):
    words = [True] * length
    ids = list(range(20, 20 + length))
    return {"input_ids": ids, "starts_word": words, "epoch": 0, "index": 3, "progress": progress} | more


@pytest.mark.parametrize(("progress", "length"), [(0.0, 10), (0.1, 18), (0.2, 25), (0.4, 40), (0.9, 40)])
def test_rows_grow_from_a_quarter_to_all(tokenizer, progress, length):
    warm = LengthWarmup(MaskedLanguageModeling(tokenizer), 40, 0.4)
    batch = warm([row(40, progress), row(7, progress)])
    assert batch["input_ids"].shape == (2, length)
    assert batch["attention_mask"].sum() == length + 7
    assert warm.cut({"input_ids": [5] * 40})["input_ids"] == [5] * 40  # no progress: evaluation, trials


def test_a_cut_document_has_no_end(sentinel_tokenizer):
    warm = LengthWarmup(CausalLanguageModeling(sentinel_tokenizer), 40, 0.5)
    whole, cut = (warm([row(21, progress, ends=True)])["labels"][0] for progress in (1.0, 0.0))
    assert whole[-1] == sentinel_tokenizer.eos_token_id
    assert (len(cut), int(cut[-1])) == (10, IGNORED)


def test_both_sides_of_a_cut_row_fit_its_known_size(sentinel_tokenizer):
    collate = SpanCorruption(sentinel_tokenizer, 0, max_length=47)
    warm = Packed(LengthWarmup(collate, 48, 0.5), 128)
    most = sizes_of(warm, np.array([40]), np.array([0])).most[0]
    assert most == sizes_of(collate, np.array([40]), np.array([0])).most[0]
    tokens = [int(warm([row(40, p)])["attention_mask"].sum()) for p in (0.0, 0.25, 0.5)]
    assert tokens[0] < tokens[1] < tokens[2] < most
