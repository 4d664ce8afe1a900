"""Denoising objectives: the target holds the removed tokens, in the shares of the paper, reproducibly."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from decero.data.collators import IGNORED
from decero.data.corruption import OBJECTIVES, PrefixLanguageModeling, SpanCorruption, TextInfilling, sentinels_of
from decero.data.pairs import PairCollator, ShuffledSources
from decero.errors import UserError

START = 0
lengths, seeds = st.integers(2, 113), st.integers(0, 2**31)


def row(length, index=5, epoch=2):
    """A row of different ordinary tokens, so that tests see a lost or repeated one."""
    return {"input_ids": list(range(60, 60 + length)), "index": index, "epoch": epoch}


@pytest.fixture(scope="module")
def of_sentinels(sentinel_tokenizer):
    return set(sentinels_of(sentinel_tokenizer).tolist())


@given(length=lengths, seed=seeds)
@settings(deadline=None)
def test_source_and_target_together_give_the_text(sentinel_tokenizer, of_sentinels, length, seed):
    damage = SpanCorruption(sentinel_tokenizer, START, max_length=113, seed=seed)
    read, written = damage.pair(row(length))
    assert read[-1] == written[-1] == sentinel_tokenizer.eos_token_id
    spans, name = {}, None
    for token in written[:-1].tolist():
        if token in of_sentinels:
            spans[name := token] = []
        else:
            spans[name].append(token)
    rebuilt = [t for token in read[:-1].tolist() for t in spans.get(token, [token])]
    assert rebuilt == row(length)["input_ids"]
    order = [token for token in read.tolist() if token in of_sentinels]
    assert order == list(spans) == sentinels_of(sentinel_tokenizer)[: len(order)].tolist()
    assert all(spans.values())
    noise, count = damage.sizes(length)
    assert (sum(map(len, spans.values())), len(spans)) == (noise, count)


@pytest.mark.parametrize("length", [2, 3, 20, 100])
def test_sizes_are_those_of_the_paper(sentinel_tokenizer, length):
    noise, spans = SpanCorruption(sentinel_tokenizer, START, max_length=100).sizes(length)
    assert (noise, spans) == {2: (1, 1), 3: (1, 1), 20: (3, 1), 100: (15, 5)}[length]


def test_all_cuts_into_spans_are_equally_likely(sentinel_tokenizer):
    """12 tokens, 6 of them noise, in 2 spans: 5 x 5 ways, all drawn about equally often."""
    damage = SpanCorruption(sentinel_tokenizer, START, max_length=12, mlm_probability=0.5)
    seen = {tuple(damage.pair(row(12, index=i))[0].tolist()) for i in range(400)}
    assert len(seen) == 25
    often = np.unique([str(damage.pair(row(12, index=i))[0]) for i in range(2500)], return_counts=True)[1]
    assert 60 < often.min() <= often.max() < 145


@given(length=lengths, seed=seeds)
@settings(deadline=None)
def test_infilling_masks_whole_spans_and_writes_the_text(sentinel_tokenizer, length, seed):
    damage = TextInfilling(sentinel_tokenizer, START, max_length=113, seed=seed)
    read, written = damage.pair(row(length))
    assert written[:-1].tolist() == row(length)["input_ids"]
    kept = [token for token in read[:-1].tolist() if token != damage.mask]
    assert kept == sorted(set(kept))  # in order, without repeats
    assert set(kept) <= set(written.tolist())
    assert length - len(kept) <= max(1, round(0.3 * length))
    assert damage.mask in read


@given(length=st.integers(2, 24), seed=seeds, mean=st.sampled_from([1.0, 1.5, 3.0]))
@settings(deadline=None)
def test_infilling_stays_within_max_length(sentinel_tokenizer, length, seed, mean):
    """An empty span inserts a mask; a row of full length has no position for it."""
    damage = TextInfilling(sentinel_tokenizer, START, max_length=24, seed=seed, mean_noise_span_length=mean)
    read, _ = damage.pair(row(length))
    assert len(read) <= 24 + 1


def test_infilling_removes_its_share(sentinel_tokenizer):
    damage = TextInfilling(sentinel_tokenizer, START, max_length=100)
    gone = [100 - sum(t != damage.mask for t in damage.pair(row(100, index=i))[0][:-1]) for i in range(200)]
    assert 26 < np.mean(gone) <= 30  # an empty span counts as one token and removes none


@given(length=lengths, seed=seeds)
@settings(deadline=None)
def test_a_prefix_and_the_rest_are_the_text(sentinel_tokenizer, length, seed):
    read, written = PrefixLanguageModeling(sentinel_tokenizer, START, max_length=113, seed=seed).pair(row(length))
    assert [*read[:-1], *written[:-1]] == row(length)["input_ids"]
    assert len(read) > 1
    assert len(written) > 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_corruption_is_a_function_of_seed_epoch_and_example(sentinel_tokenizer, name):
    def read(seed=1, frozen=False, **where):
        damage = OBJECTIVES[name](sentinel_tokenizer, START, max_length=60, seed=seed, frozen=frozen)
        damage.pair(row(60, index=9))  # an earlier row changes nothing
        return [side.tolist() for side in damage.pair(row(60, **where))]

    assert read() == read()
    assert read() != read(seed=2)
    assert read() != read(epoch=3)
    assert read() != read(index=6)
    assert read(frozen=True, epoch=1) == read(frozen=True, epoch=8)


def test_sentinels_are_ordered_by_name():
    """The ids of T5's sentinels fall from the top of the vocabulary."""

    class T5:
        def get_vocab(self):
            return {"<extra_id_1>": 97, "a": 3, "<extra_id_0>": 98, "<extra_id_10>": 88, "<extra_id_2>": 96}

    assert sentinels_of(T5()).tolist() == [98, 97, 96, 88]


def test_a_tokenizer_without_the_needed_tokens_is_refused(tokenizer, sentinel_tokenizer):
    with pytest.raises(UserError, match=r"needs 15 sentinels \(<extra_id_0> ...\) and it has 13; train one with"):
        SpanCorruption(sentinel_tokenizer, START, max_length=300)
    with pytest.raises(UserError, match="no eos_token, which a decoder needs"):
        SpanCorruption(tokenizer, START, max_length=20)


def test_a_batch_of_pairs_is_padded(sentinel_tokenizer):
    pad = sentinel_tokenizer.pad_token_id
    rows = [{"input_ids": [60, 61, 1], "labels": [70, 1]}, {"input_ids": [62, 1], "labels": [71, 72, 73, 1]}]
    batch = {name: tensor.tolist() for name, tensor in PairCollator(sentinel_tokenizer, 7)(rows).items()}
    assert batch == {
        "input_ids": [[60, 61, 1], [62, 1, pad]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "decoder_input_ids": [[7, 70, pad, pad], [7, 71, 72, 73]],
        "labels": [[70, 1, IGNORED, IGNORED], [71, 72, 73, 1]],
    }
    strangers = ShuffledSources(PairCollator(sentinel_tokenizer, 7), Dataset.from_list(rows))
    swapped = strangers([row | {"epoch": 0, "index": i} for i, row in enumerate(rows)])
    assert swapped["input_ids"].tolist() == [[62, 1, pad], [60, 61, 1]]
    assert swapped["labels"].tolist() == batch["labels"]


def test_sources_are_swapped_after_the_corruption(sentinel_tokenizer):
    """Each target gets the source that is half of all rows away, in any batch."""
    pairs = SpanCorruption(sentinel_tokenizer, START, max_length=20, frozen=True)
    rows = [{"input_ids": list(range(50 + i, 60 + i))} for i in range(5)]
    strangers = ShuffledSources(pairs, Dataset.from_list(rows))
    rows = [row | {"index": i, "epoch": 0} for i, row in enumerate(rows)]
    batch, swapped = pairs(rows), strangers(rows)
    assert swapped["labels"].equal(batch["labels"])
    assert swapped["input_ids"].equal(batch["input_ids"].roll(-2, dims=0))
    assert strangers(rows[3:4])["input_ids"].equal(swapped["input_ids"][3:4])
