"""Sentences: where they end, where their marks stand, which are chosen."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decero.data.sentences import choose_sentences, mark_sentences, sentences_of


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("A line\nbreak inside.\n\nA title\n\nText 3.5 here.", ["A line break inside.", "A title", "Text 3.5 here."]),
        ("一。二！三", ["一。", "二！", "三"]),
        ("... -- !\n\n¿Qué? Sí…  e.g. this", ["¿Qué?", "Sí…", "e.g.", "this"]),
        ("", []),
        (" \r\n\r\n ", []),
    ],
)
def test_a_document_ends_its_sentences_where_readers_do(text, sentences):
    assert sentences_of(text) == sentences


@given(st.text(alphabet='ab .!?\n"。…é'))
def test_sentences_keep_every_word_in_order(text):
    assert re.findall(r"\w+", " ".join(sentences_of(text))) == re.findall(r"\w+", text)


def test_each_sentence_is_marked_at_its_first_token(tokenizer):
    sentences = ["The market rose.", "Banks in London fell.", "Tokyo"]
    ids, places, cut = mark_sentences(tokenizer, sentences, 64)
    assert not cut
    assert [ids[place] for place in places] == [tokenizer.cls_token_id] * 3
    assert ids == [token for text in sentences for token in tokenizer(text)["input_ids"]]
    for size in range(1, len(ids) + 1):
        shorter, fewer, cut = mark_sentences(tokenizer, sentences, size)
        assert (shorter, fewer) == (ids[:size], [place for place in places if place < size])
        assert cut is (size < len(ids))
    assert mark_sentences(tokenizer, [], 9)[1] == []
    assert mark_sentences(tokenizer, ["the [SEP] market"], 64)[0].count(tokenizer.sep_token_id) == 1


def test_the_best_sentences_come_in_the_order_of_the_text():
    texts = ["a b c d", "e f g", "x a b c", "h i"]
    assert choose_sentences(texts, [1.0, 3.0, 2.0, 0.0], 2) == [1, 2]
    assert choose_sentences(texts, [3.0, 1.0, 2.0, 0.0], 2) == [0, 1], "the third shares `a b c` with the first"
    assert choose_sentences(texts, [3.0, 1.0, 2.0, 0.0], 2, trigram_blocking=False) == [0, 2]
    assert choose_sentences(texts, [1.0, 1.0], 3) == [0, 1], "the others were not read"
    assert choose_sentences([], [], 3) == []
