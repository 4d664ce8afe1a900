"""Targets and orders are a pure function of (seed, epoch, row); the batch says who sees whom."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from transformers import DataCollatorForPermutationLanguageModeling

from decero.data.collators import IGNORED
from decero.data.packing import Packed
from decero.data.permutation import UNSEEN, PermutationLanguageModeling, add_queries


@pytest.fixture(scope="module")
def plm(tokenizer):
    return PermutationLanguageModeling(tokenizer, seed=7)


def row_of(plm, length, index=0, epoch=0):
    ids = np.random.default_rng(index).choice(plm.ordinary, length)
    ids = np.concatenate([[plm.tokenizer.cls_token_id], ids, [plm.tokenizer.sep_token_id]])
    return {"input_ids": ids, "index": index, "epoch": epoch}


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(0, 97), epoch=st.integers(0, 5), index=st.integers(0, 10**9), share=st.sampled_from([0.1, 0.9])
)
def test_targets_are_a_pure_function_and_ordinary(tokenizer, length, epoch, index, share):
    plm = PermutationLanguageModeling(tokenizer, plm_probability=share, seed=7)
    row = row_of(plm, length, index % 1000)
    targets = plm.targets(row["input_ids"], epoch, index)
    assert (targets == plm.targets(row["input_ids"], epoch, index)).all()
    assert len(targets) == len(set(targets.tolist())) == (max(1, round(share * length)) if length else 0)
    assert not {0, length + 1} & set(targets.tolist())
    assert len(row["input_ids"]) + len(targets) <= plm.example_sizes(np.array([length + 2]), np.zeros(1, int)).most[0]


def test_targets_change_with_epoch_row_and_seed_unless_frozen(plm, tokenizer):
    ids = row_of(plm, 41)["input_ids"]
    draws = {tuple(plm.targets(ids, epoch, index)) for epoch in range(3) for index in range(3)}
    draws.add(tuple(PermutationLanguageModeling(tokenizer, seed=8).targets(ids, 0, 0)))
    assert len(draws) == 10
    frozen = PermutationLanguageModeling(tokenizer, seed=7, frozen=True)
    assert (frozen.targets(ids, 5, 2) == plm.targets(ids, 0, 2)).all()


def test_targets_stand_in_spans_and_all_places_and_orders_occur(tokenizer):
    plm = PermutationLanguageModeling(tokenizer, plm_probability=0.2, max_span_length=3, seed=1)
    ids = row_of(plm, 25)["input_ids"]
    drawn = [plm.targets(ids, 0, index) for index in range(2000)]
    sorted_targets = [np.sort(targets) for targets in drawn]
    runs = [len(run) for t in sorted_targets for run in np.split(t, np.flatnonzero(np.diff(t) > 1) + 1)]
    assert set(runs) == {1, 2, 3}  # spans are apart
    share = np.bincount(np.concatenate(drawn), minlength=27)[1:-1] / 2000
    assert share == pytest.approx(np.full(25, 0.2), abs=0.045)
    first_is_left = np.mean([t[0] < t[1] for t in drawn])
    assert first_is_left == pytest.approx(0.5, abs=0.03)


def test_a_row_without_room_for_a_target_has_none(plm):
    lone = {"input_ids": np.array([plm.ordinary[0]]), "index": 0, "epoch": 0}
    batch = plm([lone, row_of(plm, 0)])
    assert (batch["labels"] == IGNORED).all()
    assert batch["input_ids"].shape == (2, 2)


def test_queries_state_the_order_by_hand():
    row = add_queries(np.array([5, 6, 7, 8, 9]), np.array([3, 1]), query_id=4)
    assert row["input_ids"].tolist() == [5, 6, 7, 8, 9, 4, 4]
    assert row["position_ids"].tolist() == [0, 1, 2, 3, 4, 1, 3]
    assert row["labels"].tolist() == [IGNORED] * 5 + [6, 8]
    sees = row["ranks"][None] <= row["horizons"][:, None]
    rest = [1, 0, 1, 0, 1]  # what is no target
    assert sees.astype(int).tolist() == [
        [*rest, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],  # predicted last
        [*rest, 0, 0],
        [1, 0, 1, 1, 1, 0, 0],  # predicted first
        [*rest, 0, 0],
        [1, 0, 1, 1, 1, 0, 0],  # the query of the last target sees the first one, and not itself
        [*rest, 0, 0],
    ]
    assert row["ranks"][-1] == UNSEEN


def test_a_batch_gives_each_row_what_it_has_alone(plm):
    rows = [row_of(plm, length, index, 3) for index, length in enumerate([17, 5, 29])]
    together = plm(rows)
    for b, row in enumerate(rows):
        alone = plm([row])
        for name in ("input_ids", "labels", "position_ids", "ranks", "horizons"):
            assert torch.equal(together[name][b, : alone[name].shape[1]], alone[name][0])
    packed = Packed(plm, 53).pack(together)
    assert len(packed["input_ids"]) == 2
    for text, row in enumerate(rows, start=1):
        for name, values in plm([row]).items():
            if name not in ("attention_mask", "text_ids"):
                assert torch.equal(packed[name][packed["text_ids"] == text], values[0])


def test_the_stock_collator_hides_targets_from_each_other(plm, tokenizer):
    """Why there is a collator of our own: theirs writes masks over all targets, so none can depend on another."""
    theirs = DataCollatorForPermutationLanguageModeling(tokenizer)
    inputs, _, _, labels = theirs.torch_mask_tokens(torch.tensor(row_of(plm, 28)["input_ids"])[None])
    assert (inputs[labels != IGNORED] == tokenizer.mask_token_id).all()
    ours = plm([row_of(plm, 28)])
    assert torch.equal(ours["input_ids"][0, :30], torch.tensor(row_of(plm, 28)["input_ids"]))


def test_the_batch_of_xlnet_says_the_same(tokenizer):
    one, two = (PermutationLanguageModeling(tokenizer, seed=7, for_xlnet=each) for each in (False, True))
    rows = [row_of(one, length, index) for index, length in enumerate([29, 12])]
    ours, theirs = one(rows), two(rows)
    for b, row in enumerate(rows):
        n = len(row["input_ids"])
        ranks, horizons = ours["ranks"][b, :n], ours["horizons"][b, :n]
        sees = (ranks[None] <= horizons[:, None]) & ~torch.eye(n, dtype=torch.bool)
        hidden = theirs["perm_mask"][b, :n, :n].bool()
        assert torch.equal(~hidden & ~torch.eye(n, dtype=torch.bool), sees)
        assert hidden.diagonal().equal(ranks > 0)  # a target's query does not see the target
        asked = theirs["labels"][b] != IGNORED
        at = theirs["target_mapping"][b].argmax(dim=1)[asked]
        assert torch.equal(at, ours["position_ids"][b][ours["labels"][b] != IGNORED])
        assert torch.equal(theirs["labels"][b][asked], theirs["input_ids"][b][at])
    assert theirs["attention_mask"].sum(dim=1).tolist() == [31, 14]
