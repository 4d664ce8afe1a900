"""Rows for likelihoods: words by offsets with any tokenizer, masks by method, every token scored once."""

import numpy as np
import pytest

from decero.data.collators import IGNORED
from decero.data.likelihood_rows import CausalRows, MaskedRows
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError

TEXT = "the markets, unbanked:  profits rose"
ALGORITHMS = ("wordpiece", "byte_level_bpe", "unigram")


@pytest.fixture(scope="module")
def tokenizers(texts):
    return {
        algorithm: train_tokenizer(
            texts, algorithm=algorithm, vocab_size=290 if algorithm == "byte_level_bpe" else 61, model_max_length=64,
            min_frequency=1, show_progress=False,
        )
        for algorithm in ALGORITHMS
    }  # fmt: skip


def hidden(rows, passage, number):
    """Numbers of the tokens that a row hides."""
    inside = rows.row(passage, number).input_ids[len(rows.before) : len(rows.before) + len(passage.ids)]
    return np.flatnonzero(inside == rows.tokenizer.mask_token_id).tolist()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_method_hides_what_its_paper_says(algorithm, tokenizers):
    tokenizer = tokenizers[algorithm]
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    offsets = tokenizer(TEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    begins = [begin + len(TEXT[begin:end]) - len(TEXT[begin:end].lstrip()) for begin, end in offsets]
    spaces = algorithm == "unigram"  # SentencePiece splits at spaces only, the others at punctuation too
    gaps = [place for place, letter in enumerate(TEXT) if (letter == " " if spaces else not letter.isalnum())]
    word = [sum(gap <= begin for gap in gaps) for begin in begins]
    found = {name: MaskedRows(tokenizer, name) for name in ("original", "within_word_l2r", "sentence_l2r")}
    (text,) = found["original"].cut([TEXT], None)
    (passage,) = text.passages
    last = len(passage.ids)
    assert last == len(offsets) > len(TEXT.split())
    for k in range(last):
        if TEXT[begins[k]].isalnum():
            later = [j for j in range(k + 1, last) if word[j] == word[k] and (spaces or TEXT[begins[j]].isalnum())]
            assert hidden(found["within_word_l2r"], passage, k) == [k, *later]
        assert hidden(found["original"], passage, k) == [k]
        assert hidden(found["sentence_l2r"], passage, k) == list(range(k, last))
        for rows in found.values():
            labels = rows.row(passage, k).labels
            assert labels[labels != IGNORED].tolist() == [passage.ids[k]]
            assert labels[len(rows.before) + k] == passage.ids[k]


def test_causal_rows_score_each_token_after_a_start(tokenizers):
    rows = CausalRows(tokenizers["byte_level_bpe"])
    (text,) = rows.cut([TEXT], None)
    row = rows.row(text.passages[0], 0)
    assert row.input_ids.tolist() == [rows.tokenizer.bos_token_id, *text.passages[0].ids[:-1]]
    assert row.labels.tolist() == list(text.passages[0].ids)
    assert text.size == len(TEXT.encode())


def test_long_texts_are_cut_and_special_tokens_are_text(tokenizers):
    rows = MaskedRows(tokenizers["byte_level_bpe"])
    mask = rows.tokenizer.mask_token
    whole, again = (rows.cut([f"{TEXT} {mask} ñandú"], limit)[0] for limit in (None, 9))
    assert rows.tokenizer.mask_token_id not in whole.passages[0].ids
    assert [i for passage in again.passages for i in passage.ids] == list(whole.passages[0].ids)
    assert all(len(rows.row(passage, 0).input_ids) <= 9 for passage in again.passages)
    assert rows.cut([""], 9)[0].passages == []
    assert whole.size == again.size == len(f"{TEXT} {mask} ñandú".encode())
    with pytest.raises(UserError, match="2 tokens leave no room for text"):
        rows.cut([TEXT], 2)


def test_a_tokenizer_that_cannot_serve_is_refused(tokenizers):
    with pytest.raises(UserError, match="unknown token <S>"):
        CausalRows(tokenizers["byte_level_bpe"], "<S>")
    with pytest.raises(UserError, match="no bos_token and no eos_token"):
        CausalRows(tokenizers["wordpiece"])
