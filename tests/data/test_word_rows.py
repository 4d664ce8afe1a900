"""Words survive windows of tokens: each is scored once, whatever it is made of."""

import itertools

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from decero.data.tag_schemes import read_spans, write_tags
from decero.data.tokenizer import train_tokenizer
from decero.data.word_rows import WordWindows, split_spaces, split_tokens, split_words, tokenize_words
from decero.errors import UserError

ODD = [
    "e\u0301", "\u0301", "👩\u200d👩\u200d👧", "❤\ufe0f", "\u200b", "\x00", "\x07", "\u202e", "ñ", "market\u0301",
    "x" * 300, "数字", "...", "I'm",
]  # fmt: skip
SPACES = [" ", "\r\n", "\t", "\u00a0", "  "]


@pytest.fixture(scope="module")
def tokenizers(texts, tokenizer):
    """WordPiece, which drops control characters; byte-level BPE; and one without pre-tokenizer, which joins words."""
    common = {"model_max_length": 64, "min_frequency": 1, "show_progress": False}
    bpe = train_tokenizer(texts, algorithm="byte_level_bpe", vocab_size=293, **common)
    pieces = [("<unk>", 0.0), ("<pad>", 0.0), *((c, -5.0) for c in "abcdefghijklmnopqrstuvwxyz "), ("t r", -1.0)]
    joining = Tokenizer(models.Unigram(pieces, unk_id=0))
    joining.normalizer, joining.decoder = normalizers.NFC(), decoders.Fuse()
    whole = PreTrainedTokenizerFast(tokenizer_object=joining, unk_token="<unk>", pad_token="<pad>")
    return {"wordpiece": tokenizer, "bpe": bpe, "joining": whole}


WORDS = st.lists(st.one_of(st.sampled_from([*ODD, "market", "the", "t", "rose", ""]), st.text(min_size=1, max_size=7)))


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "joining"])
@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
@given(words=WORDS.filter(len), data=st.data())
@settings(max_examples=25)
def test_gold_tags_survive_windows_of_16_tokens(tokenizers, kind, scheme, words, data):
    """F1 1.0: the labels of all windows give back every span, word by word."""
    words = [word.encode("utf-8", "replace").decode() for word in words]
    text, bounds = "", []
    for word in words:
        bounds.append((len(text), len(text) + len(word)))
        text += word + data.draw(st.sampled_from(SPACES))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(words)))))
    spans = [(a, b, data.draw(st.sampled_from("XY"))) for a, b in itertools.pairwise(cuts)]
    tags = write_tags(spans, len(words), scheme)
    found = [None] * len(words)
    for window in next(iter(WordWindows(tokenizers[kind], 16, data.draw(st.integers(0, 9)))([text], [bounds]))):
        assert len(window.input_ids) <= 16
        assert len(set(window.places.tolist())) == len(window.places) == len(window.words)
        for word in window.words:
            assert found[word] is None, "scored twice"
            found[word] = tags[word]
    assert read_spans(found, scheme) == spans


def test_rows_hold_each_tag_at_the_first_token_of_its_word(tokenizer):
    words = ["marketmarket", "\x00", "rose", "fell"]
    text = " ".join(words)
    starts = [text.index(word) for word in words]
    data = {
        "text": [text, ""],
        "starts": [starts, []],
        "stops": [[s + len(w) for s, w in zip(starts, words, strict=True)], []],
    }
    data |= {"tags": [["A", "B", "C", "D"], []], "example": [0, 1]}
    rows = tokenize_words(Dataset.from_dict(data), tokenizer, ["A", "B", "C", "D"], max_length=8, stride=2)
    assert set(rows["example"]) == {0}
    said = {}
    for row in rows:
        tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
        places = [place for place, label in enumerate(row["labels"]) if label >= 0]
        for place, word in zip(places, row["words"], strict=True):
            said[word] = tokens[place], row["labels"][place]
        assert tokens[0] == tokenizer.cls_token
        assert tokens[-1] == tokenizer.sep_token
    unknown = tokenizer.unk_token
    assert said == {0: (tokenizer.tokenize(words[0])[0], 0), 1: (unknown, 1), 2: ("rose", 2), 3: ("fell", 3)}


def test_a_word_is_scored_where_it_has_most_context(tokenizer):
    text = " ".join(["rose"] * 30)
    windows = next(iter(WordWindows(tokenizer, 12, 4)([text], [split_spaces(text)])))
    assert [window.words.tolist() for window in windows] == [
        [*range(8)], [*range(8, 14)], [*range(14, 20)], [*range(20, 26)], [*range(26, 30)],
    ]  # fmt: skip
    assert windows[1].places.tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("max_length", "stride"), [(4, 2), (16, 14)])
def test_a_stride_without_a_new_token_is_refused(tokenizer, max_length, stride):
    with pytest.raises(UserError, match=f"data.stride: {stride} is not below the {max_length - 2} tokens"):
        WordWindows(tokenizer, max_length, stride)


@pytest.mark.parametrize(
    ("split", "text", "words"),
    [
        (split_words, "U.S.-based e\u0301t\u0301 5 %", ["U", ".", "S", ".", "-", "based", "e\u0301t\u0301", "5", "%"]),
        (split_words, "数字 ab市", ["数", "字", "ab", "市"]),
        (split_words, "a\r\n\tb\u200bc", ["a", "b", "\u200b", "c"]),
        (split_tokens, '"The U.S. won (again)."', ['"', "The", "U.S.", "won", "(", "again", ")", ".", '"']),
        (split_tokens, "John's e-mail, ... AT&T", ["John", "'s", "e-mail", ",", "...", "AT&T"]),
        (split_spaces, "a,b  c.\t'd'", ["a,b", "c.", "'d'"]),
    ],
)  # fmt: skip
def test_texts_are_split_into_words(split, text, words):
    assert [text[start:stop] for start, stop in split(text)] == words


@given(st.text())
def test_words_lie_in_order_and_hold_every_character_but_space(text):
    for split in (split_words, split_tokens, split_spaces):
        bounds = split(text)
        assert all(start < stop for start, stop in bounds)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(bounds))
        kept = "".join(text[start:stop] for start, stop in bounds)
        assert kept == "".join(text.split()) or split is not split_spaces
        assert len(kept) == np.sum([not c.isspace() for c in text])
