"""Windows of question and context: every token keeps its characters, every answer survives, no question is cut."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from decero.config.finetune_answers import AnswerData
from decero.data.answer_rows import read_answers
from decero.data.answer_windows import AnswerCollator, Windows, pair_layout, tokenize_answers
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.inference.question_answers import merged, read_window

PIECES = ["market", "Rose", "é", "e\u0301", "🙂", "👩\u200d👧", "数字", "[SEP]", "İ", "ﬁ", "it's", "x"]
GAPS = [" ", "  ", "\r\n", "\t", "\n\n", ", ", "\u00a0"]


@pytest.fixture(scope="module")
def tokenizers_(tokenizer, texts):
    """WordPiece (lower case, no accents), byte-level BPE with BERT-like and with no special tokens, Unigram."""
    plain = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    made = {"wordpiece": tokenizer, "plain": PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")}
    for name in ("byte_level_bpe", "unigram"):
        corpus = [*texts, " ".join(PIECES)]
        sizes = {"vocab_size": 330, "model_max_length": 64, "min_frequency": 1}
        made[name] = train_tokenizer(corpus, algorithm=name, **sizes, show_progress=False)
    return made


def context_of(drawn):
    """A context of pieces, and the characters of each piece."""
    text, places = "", []
    for piece, gap in drawn:
        places.append((len(text), piece))
        text += piece + gap
    return text, places


@pytest.mark.parametrize("name", ["wordpiece", "byte_level_bpe", "unigram"])
def test_a_short_pair_is_what_the_tokenizer_makes_of_it(tokenizers_, name):
    tokenizer = tokenizers_[name]
    (window,) = Windows(tokenizer, 64, 8)(["rose fell"], ["the market in london"], ["q"])[0]
    stock = tokenizer("rose fell", "the market in london")
    assert window.input_ids == stock["input_ids"]
    if "token_type_ids" in stock:
        assert window.token_type_ids == stock["token_type_ids"]


def test_a_tokenizer_without_special_tokens_gets_its_end_token(tokenizers_):
    layout = pair_layout(tokenizers_["plain"])
    assert layout == ([], [1], [1], (0, 0, 0, 0, 0))
    (window,) = Windows(tokenizers_["plain"], 16, 2)(["a"], ["a a"], ["q"])[0]
    assert window.input_ids == [0, 1, 0, 0, 1]
    tokenizers_["plain"].eos_token = None
    with pytest.raises(UserError, match="it has neither sep_token nor eos_token to put between question and context"):
        pair_layout(tokenizers_["plain"])
    tokenizers_["plain"].eos_token = "</s>"


def rows_of(tokenizer, context, answers, max_length, stride):
    found = {"text": [text for _, text in answers], "answer_start": [start for start, _ in answers]}
    rows = [{"context": context, "question": "rose fell", "answers": found}]
    dataset = read_answers(Dataset.from_list(rows), AnswerData(name="x"), "train")
    columns = {"question_column": "question", "context_column": "context"}
    return tokenize_answers(dataset, tokenizer, max_length=max_length, stride=stride, **columns)


def answer_of(rows, context, no_answer, collate):
    """The answer of a model that has learnt the labels by heart."""
    readings = []
    for row in rows:
        labels = collate([row])["labels"][0].numpy()
        logits = (labels[:, None] == [[1, 2]]) | (labels[:, None] == 3)
        place = 0 if no_answer == "first" else len(labels) - 1
        characters = row["starts"], row["ends"]
        readings.append(
            read_window(10.0 * logits, row["context_first"], np.array(characters), context, place, len(labels))
        )
    return merged(readings)


@pytest.mark.long
@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), min_size=1, max_size=30), st.data())
@pytest.mark.parametrize("name", ["wordpiece", "byte_level_bpe", "unigram"])
def test_gold_answers_survive_short_windows(tokenizers_, name, drawn, data):
    """Labels in, the same answer out, through windows of few tokens, whatever the tokenizer makes of a character."""
    tokenizer, (context, places) = tokenizers_[name], context_of(drawn)
    start, text = data.draw(st.sampled_from(places))
    rows = rows_of(tokenizer, context, [(start, text)], max_length=40, stride=18)
    collate = AnswerCollator(tokenizer)
    found = answer_of(rows, context, "first", collate)
    assert any(row["answer_first"] >= 0 for row in rows)
    best = found.candidates[0]
    assert context[best.start : best.end].strip() == text
    assert all(len(row["input_ids"]) <= 40 for row in rows)


def test_neighbouring_windows_share_the_stride_and_hold_all(tokenizers_):
    context = " ".join(["market rose fell"] * 20)
    windows = Windows(tokenizers_["wordpiece"], 16, 4)(["rose"], [context], ["q"])[0]
    assert [w.bounds for w in windows] == [(0, 12), (8, 20), (16, 28), (24, 36), (32, 44), (40, 52), (48, 60)]
    assert {len(w.input_ids) for w in windows} == {16}
    starts, ends = windows[2].characters
    assert context[starts[0] : ends[0]] == "rose"


def test_a_window_has_the_first_answer_that_lies_in_it(tokenizers_):
    context = " ".join(["market"] * 20 + ["rose"] + ["market"] * 20 + ["fell"])
    answers = [
        (context.index("fell"), "fell"),
        (context.index("rose"), "rose"),
        (context.index("rose") - 7, "market rose"),
    ]
    rows = rows_of(tokenizers_["wordpiece"], context, answers, 24, 4)
    said = [context[r["starts"][a] : r["ends"][b]] if (a := r["answer_first"] - r["context_first"]) >= 0 else ""
            for r in rows for b in [r["answer_last"] - r["context_first"]]]  # fmt: skip
    assert [text for text in said if text] == ["rose", "fell"]
    labels = AnswerCollator(tokenizers_["wordpiece"])(list(rows))["labels"]
    marked = [[int(n) for n in row[row > 0]] for row in labels]
    assert all(row == [3] for row in marked)
    assert [int(row[0]) for row in labels] == [0 if text else 3 for text in said], "no answer: the first token"
    last = AnswerCollator(tokenizers_["wordpiece"], no_answer="last")(list(rows))
    ends = last["attention_mask"].sum(dim=1) - 1
    assert [int(row[end]) for row, end in zip(last["labels"], ends, strict=True)] == [0 if text else 3 for text in said]


@pytest.mark.parametrize(
    ("before", "stride", "held"), [(9, 0, [0]), (10, 0, []), (10, 1, [1]), (9, 2, [0, 1]), (11, 0, [1])]
)
def test_an_answer_is_in_a_window_that_holds_all_of_it(tokenizers_, before, stride, held):
    """The first window ends after 11 context tokens."""
    context = " ".join(["market"] * before + ["rose", "fell", "market"])
    rows = rows_of(tokenizers_["wordpiece"], context, [(context.index("rose"), "rose fell")], 16, stride)
    assert [n for n, row in enumerate(rows) if row["answer_first"] >= 0] == held
    assert {row["answer_tokens"] for row in rows} == {2}


def test_a_long_question_is_refused_not_cut(tokenizers_):
    with pytest.raises(UserError, match=r"q 7: the question has 9 tokens; windows of 16 tokens then have 4 for the"):
        Windows(tokenizers_["wordpiece"], 16, 4)(["rose " * 9], ["market"], ["q 7"])


def test_an_empty_context_gives_one_window_without_an_answer(tokenizers_):
    rows = rows_of(tokenizers_["wordpiece"], "", [], 16, 4)
    assert len(rows) == 1
    assert (rows[0]["starts"], rows[0]["answer_first"]) == ([], -1)


def test_a_stride_as_long_as_a_window_is_refused():
    with pytest.raises(ValueError, match=r"data\.stride 60 leaves no new context in a window of data\.max_length 64"):
        AnswerData(name="x", max_length=64, stride=60)
