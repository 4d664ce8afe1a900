"""Packing puts texts in few rows, and loses, cuts and mixes none."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decero.data.packing import Packed, best_fit, lay_out

LENGTHS = st.lists(st.integers(1, 17), min_size=1, max_size=41)


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 23))
def test_every_text_has_one_row_within_its_capacity(lengths, capacity):
    rows = best_fit([[n] for n in lengths], [capacity])
    assert sorted(text for row in rows for text in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[text] for text in row) <= capacity for row in rows)


@settings(max_examples=200, deadline=None)
@given(LENGTHS)
def test_best_fit_needs_at_most_11_9_of_the_fewest_rows(lengths):
    """Compare with the lower bound L2 of Martello & Toth 1990, section 8.3: a long text has a row of its own, and short
    texts fill what the others leave free.
    """
    capacity, fewest = 17, 0
    for cut in range(capacity // 2 + 1):
        alone = sum(n > capacity - cut for n in lengths)
        large = [n for n in lengths if capacity // 2 < n <= capacity - cut]
        small = sum(n for n in lengths if cut <= n <= capacity // 2)
        free = len(large) * capacity - sum(large)
        fewest = max(fewest, alone + len(large) + max(0, -(-(small - free) // capacity)))
    assert len(best_fit([[n] for n in lengths], [capacity])) <= 11 / 9 * fewest + 1


def test_rows_of_real_lengths_are_full():
    lengths = np.random.default_rng(5).gamma(2.0, 30.0, size=512).clip(3, 128).astype(int)
    rows = best_fit([[int(n)] for n in lengths], [128])
    assert lengths.sum() / (128 * len(rows)) > 0.95


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 11), st.integers(1, 7)), min_size=1, max_size=23))
def test_two_sides_of_a_text_share_a_row_that_holds_both(sizes):
    rows = best_fit([list(s) for s in sizes], [13, 11])
    for row in rows:
        if len(row) > 1:
            assert sum(sizes[t][0] for t in row) <= 13
            assert sum(sizes[t][1] for t in row) <= 11
    assert sorted(t for row in rows for t in row) == list(range(len(sizes)))


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.booleans(), st.integers(1, 23))
def test_what_is_packed_can_be_unpacked(lengths, left_padded, capacity):
    L = max(lengths)
    place = torch.arange(L)
    real = place >= L - torch.tensor(lengths)[:, None] if left_padded else place < torch.tensor(lengths)[:, None]
    tokens = torch.arange(1, real.numel() + 1).view(real.shape) * real
    packed = lay_out({"input_ids": tokens}, real, best_fit([[n] for n in lengths], [capacity]))
    for text, row in enumerate(tokens):
        there = packed["text_ids"] == text + 1
        assert torch.equal(packed["input_ids"][there], row[real[text]])  # in order, and in one row
        assert torch.equal(packed["position_ids"][there], torch.arange(lengths[text]))
        assert there.any(dim=1).sum() == 1
        assert there.nonzero()[:, 1].diff().eq(1).all()
    assert (packed["text_ids"] == 0).sum() == packed["text_ids"].numel() - sum(lengths)
    assert packed["input_ids"][packed["text_ids"] == 0].eq(0).all()


def batch_of(lengths, **more):
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, 37, real.shape, generator=torch.Generator().manual_seed(1)) * real
    return {"input_ids": ids, "attention_mask": real.long()} | more


def test_text_labels_keep_order_and_token_labels_move():
    labels = torch.tensor([4, 2, 0, 1])
    packed = Packed(lambda rows: batch_of([5, 2, 7, 3], labels=labels), 8, per_text=("labels",))([])
    assert torch.equal(packed["labels"], labels)
    batch = batch_of([5, 2, 7, 3])
    scored = torch.where(batch["attention_mask"].bool() & (batch["input_ids"] % 2 == 0), batch["input_ids"], -100)
    packed = Packed(lambda rows: batch | {"labels": scored}, 8)([])
    assert (packed["labels"] != -100).sum() == (scored != -100).sum()
    asked = packed["labels"] != -100
    assert torch.equal(packed["labels"][asked], packed["input_ids"][asked])
    assert torch.equal(packed["attention_mask"].bool(), packed["text_ids"] > 0)


def test_a_packed_batch_is_the_same_each_time():
    pack = Packed(lambda rows: batch_of([5, 2, 7, 3, 3, 3]), 8)
    first, second = pack([]), pack([])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_full_rows_stay_unchanged_and_short_ones_are_packed():
    whole, short = batch_of([8, 8, 8]), batch_of([4, 4, 4])
    assert Packed(lambda rows: whole, 8)([]) is whole
    assert Packed(lambda rows: short, 8)([])["input_ids"].shape == (2, 8)
    ragged = batch_of([8, 7, 8])
    assert "text_ids" in Packed(lambda rows: ragged, 8)([])
