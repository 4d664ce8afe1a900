"""Masks have the shares of the paper and depend only on (seed, epoch, example)."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from decero.data.collators import IGNORED, ClassificationCollator, MaskedLanguageModeling, ReplacedTokens
from decero.errors import UserError


@pytest.fixture(scope="module")
def mlm(tokenizer):
    return MaskedLanguageModeling(tokenizer, mlm_probability=0.15, seed=7)


def ordinary_row(mlm, length, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.concatenate([[mlm.tokenizer.cls_token_id], rng.choice(mlm.ordinary, length), [mlm.tokenizer.sep_token_id]])
    return ids, np.concatenate([[True], rng.random(length) < 0.6, [True]])


@settings(max_examples=100, deadline=None)
@given(length=st.integers(0, 97), epoch=st.integers(0, 5), index=st.integers(0, 10**9))
def test_a_mask_is_a_pure_function_and_skips_special_tokens(mlm, length, epoch, index):
    ids, starts = ordinary_row(mlm, length, index % 1000)
    before = ids.copy()
    read, labels = mlm.mask(ids, starts, epoch, index)
    again, _ = mlm.mask(ids, starts, epoch, index)
    assert (ids == before).all()
    assert (read == again).all()
    scored = labels != IGNORED
    assert (labels[scored] == ids[scored]).all()
    assert (read[~scored] == ids[~scored]).all()
    assert not scored[[0, -1]].any()
    assert scored.any() == (length > 0)
    drawn = read[scored]
    specials = set(mlm.tokenizer.all_special_ids) - {mlm.tokenizer.mask_token_id}
    assert not specials & set(drawn.tolist())


def test_shares_are_15_percent_scored_of_which_80_10_10(mlm):
    scored = masked = kept = total = 0
    for index in range(2000):
        ids, starts = ordinary_row(mlm, 83, index)
        read, labels = mlm.mask(ids, starts, 0, index)
        hit = labels != IGNORED
        total += 83
        scored += hit.sum()
        masked += (read[hit] == mlm.tokenizer.mask_token_id).sum()
        kept += (read[hit] == ids[hit]).sum()
    assert scored / total == pytest.approx(0.15, abs=0.003)
    assert masked / scored == pytest.approx(0.8, abs=0.01)
    by_chance = 0.1 / len(mlm.ordinary)  # a random token may equal the original
    assert kept / scored == pytest.approx(0.1 + by_chance, abs=0.01)


def test_the_share_of_masks_moves_with_the_progress_of_the_run(tokenizer):
    mlm = MaskedLanguageModeling(tokenizer, mlm_probability=0.4, final_mlm_probability=0.1, whole_word=False)
    shares = []
    for progress in ({}, {"progress": 0.0}, {"progress": 0.5}, {"progress": 1.0}):
        rows = [{"epoch": 0, "index": i} | progress for i in range(200)]
        for each in rows:
            each["input_ids"], each["starts_word"] = ordinary_row(mlm, 50, each["index"])
        shares.append(float((mlm(rows)["labels"] != IGNORED).sum()) / 200 / 50)
    assert shares == pytest.approx([0.4, 0.4, 0.25, 0.1], abs=0.005)
    assert shares[0] == shares[1]


def test_whole_words_are_scored_or_left_together(mlm, tokenizer):
    for index in range(200):
        ids, starts = ordinary_row(mlm, 61, index)
        starts[1] = True
        _, labels = mlm.mask(ids, starts, 1, index)
        words = np.cumsum(starts)[1:-1]
        hit = (labels != IGNORED)[1:-1]
        for word in set(words.tolist()):
            assert len(set(hit[words == word].tolist())) == 1
    tokens = MaskedLanguageModeling(tokenizer, whole_word=False, seed=7)
    split = 0
    for index in range(50):
        ids, starts = ordinary_row(mlm, 61, index)
        words, hit = np.cumsum(starts)[1:-1], (tokens.mask(ids, starts, 1, index)[1] != IGNORED)[1:-1]
        split += sum(len(set(hit[words == word].tolist())) == 2 for word in set(words.tolist()))
    assert split > 0


def test_a_word_longer_than_the_budget_can_still_be_chosen(mlm):
    ids, _ = ordinary_row(mlm, 30)
    starts = np.zeros(32, dtype=bool)  # one single word
    assert (mlm.mask(ids, starts, 0, 0)[1] != IGNORED).sum() == 30


def test_masks_change_by_epoch_and_seed_unless_frozen(mlm, tokenizer):
    ids, starts = ordinary_row(mlm, 59)
    draws = {tuple(mlm.mask(ids, starts, epoch, 3)[1].tolist()) for epoch in range(4)}
    assert len(draws) == 4
    other = MaskedLanguageModeling(tokenizer, seed=8)
    assert tuple(other.mask(ids, starts, 0, 3)[1].tolist()) not in draws
    frozen = MaskedLanguageModeling(tokenizer, seed=7, frozen=True)
    assert len({tuple(frozen.mask(ids, starts, epoch, 3)[0].tolist()) for epoch in range(4)}) == 1


def test_a_row_does_not_depend_on_the_rest_of_its_batch(mlm):
    rows = []
    for index, length in enumerate((17, 5, 29)):
        ids, starts = ordinary_row(mlm, length, index)
        rows.append({"input_ids": ids.tolist(), "starts_word": starts.tolist(), "epoch": 2, "index": index})
    together = mlm(rows)
    assert together["input_ids"].shape == (3, 31)
    assert together["attention_mask"].sum(dim=1).tolist() == [19, 7, 31]
    for b, row in enumerate(rows):
        alone = mlm([row])
        length = len(row["input_ids"])
        for name in ("input_ids", "labels"):
            assert torch.equal(together[name][b, :length], alone[name][0])
        assert (together["input_ids"][b, length:] == mlm.tokenizer.pad_token_id).all()
        assert (together["labels"][b, length:] == IGNORED).all()


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer):
    from copy import deepcopy

    maskless = deepcopy(tokenizer)
    maskless.mask_token = None
    with pytest.raises(UserError, match="needs a mask and a pad token"):
        MaskedLanguageModeling(maskless)


def test_classification_pads_to_the_longest_and_keeps_labels(tokenizer):
    rows = [{"input_ids": [2, 9, 3], "labels": 1}, {"input_ids": [2, 9, 8, 7, 3], "labels": 0}]
    batch = ClassificationCollator(tokenizer)(rows)
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["labels"].dtype == torch.int64
    many = ClassificationCollator(tokenizer)([{"input_ids": [2, 3], "labels": [0.0, 1.0]}])
    assert many["labels"].dtype == torch.float32


def test_a_generators_holes_are_all_masked_and_have_draws(tokenizer):
    """A row has the same holes and draws in any batch; other epochs, rows and seeds have others."""
    made = [ReplacedTokens(tokenizer, 0.3, seed=seed) for seed in (7, 8)]
    rows = []
    for index in range(9):
        ids, starts = ordinary_row(made[0], 11 + index, index)
        rows.append({"input_ids": ids, "starts_word": starts, "epoch": 2, "index": index})
    together, alone = made[0](rows), made[0](rows[4:5])
    for name in ("input_ids", "labels", "draws"):
        assert torch.equal(together[name][4, :17], alone[name][0])
    hole = together["labels"] != IGNORED
    assert (together["input_ids"][hole] == tokenizer.mask_token_id).all()
    assert not (together["input_ids"][~hole] == tokenizer.mask_token_id).any()
    assert not together["draws"][~hole].any()
    assert 0.3 < together["draws"][hole].mean() < 0.7
    assert len(together["draws"][hole].unique()) == int(hole.sum())
    plain = MaskedLanguageModeling(tokenizer, 0.3, whole_word=False, seed=7)(rows)
    assert torch.equal(plain["labels"], together["labels"])  # the holes of masked language modelling
    changed = [row | {"epoch": 3} for row in rows]
    frozen = ReplacedTokens(tokenizer, 0.3, seed=7, frozen=True)
    assert torch.equal(frozen(rows)["draws"], frozen(changed)["draws"])
    for other in (made[0](changed), made[1](rows)):
        assert not torch.equal(other["draws"], together["draws"])
