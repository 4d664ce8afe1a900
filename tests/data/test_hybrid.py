"""The mode and the masks of a hybrid row are a pure function of (seed, epoch, row)."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from decero.data.causal import CausalLanguageModeling
from decero.data.collators import IGNORED
from decero.data.hybrid import HybridLanguageModeling
from decero.errors import UserError


def row_of(index, length=19, epoch=0, ends=True):
    ids = [2, *np.random.default_rng(index).integers(8, 60, length)]
    return {"input_ids": ids, "index": index, "epoch": epoch, "ends": ends}


@pytest.mark.long
@pytest.mark.parametrize("share", [1 / 16, 0.5, 0.9])
def test_any_share_of_rows_is_causal(tokenizer, share):
    hybrid = HybridLanguageModeling(tokenizer, causal_fraction=share, seed=3)
    modes = [[hybrid.is_causal(row_of(index, epoch=epoch)) for index in range(2000)] for epoch in (0, 1)]
    assert np.mean(modes, axis=1) == pytest.approx(share, abs=0.03)
    assert modes[0] != modes[1]
    assert modes[0] == [hybrid.is_causal(row_of(index)) for index in range(2000)]
    frozen = HybridLanguageModeling(tokenizer, causal_fraction=share, seed=3, frozen=True)
    assert modes[0] == [frozen.is_causal(row_of(index, epoch=4)) for index in range(2000)]


def test_both_modes_predict_the_next_token(tokenizer):
    tokenizer = deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.sep_token
    hybrid, mask = HybridLanguageModeling(tokenizer, mlm_probability=0.3, seed=3), tokenizer.mask_token_id
    rows = [row_of(index, length=7 + index) for index in range(12)]
    batch, causal = hybrid(rows), CausalLanguageModeling(tokenizer)(rows)
    modes = [hybrid.is_causal(row) for row in rows]
    assert {True, False} == set(modes)
    for b, row in enumerate(rows):
        n, ids = len(row["input_ids"]), torch.tensor(row["input_ids"])
        ranks, labels, read = batch["ranks"][b, :n], batch["labels"][b, :n], batch["input_ids"][b, :n]
        assert torch.equal(batch["horizons"][b, :n], ranks)
        assert batch["attention_mask"][b].sum() == n
        if modes[b]:
            assert torch.equal(ranks, torch.arange(n))
            assert torch.equal(read, ids)
            assert torch.equal(labels, causal["labels"][b, :n])
            continue
        assert not ranks.any()
        scored = labels != IGNORED
        assert torch.equal(labels[scored], ids[1:][scored[:-1]])
        assert not scored[-1]
        assert read[0] == ids[0]
        unscored = ~scored[:-1]
        assert torch.equal(read[1:][unscored], ids[1:][unscored])
        assert scored.sum() == pytest.approx(0.3 * (n - 1), abs=1)
    assert (batch["input_ids"] == mask).any()


def test_a_tokenizer_without_a_mask_token_makes_no_hybrid(tokenizer):
    maskless = deepcopy(tokenizer)
    maskless.mask_token = None
    with pytest.raises(UserError, match="hybrid_lm needs a mask and a pad token"):
        HybridLanguageModeling(maskless)
