"""Answers of a model: the best spans of all windows, no answer by the threshold, and the command `decero answer`."""

import io
import json
import sys

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForQuestionAnswering, BertConfig

from decero.cli.main import main
from decero.errors import UserError
from decero.inference import answer, load
from decero.inference.question_answers import Candidate, Reading, best_spans, decided, merged, trimmed
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig

SIZES = {"vocab_size": 97, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41}
CONFIGS = {
    "ours": lambda: DeceroEncoderConfig(**SIZES, head_dim=14, max_position_embeddings=53),
    "decoder": lambda: DeceroDecoderConfig(**SIZES, head_dim=14, max_position_embeddings=53, pad_token_id=0),
    "bert": lambda: BertConfig(**SIZES, max_position_embeddings=53),
}
CONTEXT = "the market rose sharply on monday as banks gained\nshares fell in tokyo after news from london " * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """Save a tiny model; return its folder."""
    made = {}

    def build(name, **settings):
        key = (name, *settings.items())
        if key not in made:
            transformers.set_seed(5)
            model = AutoModelForQuestionAnswering.from_config(CONFIGS[name]()).eval()
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.dim() > 1:
                        weight.normal_(std=0.3)
            if settings:
                model.config.question_answering = settings
            made[key] = tmp_path_factory.mktemp("models") / name
            model.save_pretrained(made[key])
            tokenizer.save_pretrained(made[key])
        return str(made[key])

    return build


@given(
    st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(-9, 9, width=32)), max_size=9), st.integers(1, 12),
    st.integers(1, 9),
)  # fmt: skip
def test_the_best_spans_are_those_of_all_valid_ones(logits, longest, n):
    start, end = np.array(logits, dtype=np.float32).reshape(-1, 2).T
    every = [(start[a] + end[b], a, b) for a in range(len(start)) for b in range(a, min(a + longest, len(start)))]
    found = best_spans(start, end, longest, n)
    assert len(found) == min(n, len(every))
    assert [score for _, _, score in found] == sorted((float(s) for s, _, _ in every), reverse=True)[:n]
    assert all(score == start[a] + end[b] and a <= b < a + longest for a, b, score in found)
    assert len({(a, b) for a, b, _ in found}) == len(found)


def test_windows_are_merged_by_characters():
    """The best score of a span, the lowest score of no answer."""
    one = Reading([Candidate(4, 7, 3.0), Candidate(0, 2, 1.0)], 5.0)
    two = Reading([Candidate(4, 7, 3.5), Candidate(9, 12, 2.0)], 2.0)
    found = merged([one, two], 2)
    assert found == merged([two, one], 2)
    assert found == Reading([Candidate(4, 7, 3.5), Candidate(9, 12, 2.0)], 2.0)
    assert found.margin == -1.5
    assert merged([one]).margin == 2.0


def test_no_answer_wins_by_more_than_the_threshold():
    reading = Reading([Candidate(4, 7, 3.0)], 4.0)
    assert decided(reading, "the cat sat", 1.0).text == "cat"
    assert decided(reading, "the cat sat", 0.9).text == ""
    assert decided(reading, "the cat sat", None).text == "cat"
    nothing = decided(Reading([], 4.0), "", None)
    assert (nothing.text, nothing.start, nothing.no_answer) == ("", None, 1.0)


def test_spans_leave_out_spaces_and_take_in_accents():
    assert trimmed(" cafe\u0301 x", 0, 5) == (1, 6)
    assert trimmed("a \u200d", 0, 1) == (0, 1)
    assert trimmed("\r\n\t", 0, 3) == (3, 3)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_long_document_is_answered_from_its_windows(folder, name):
    model = load(folder(name, max_length=24, stride=7, max_answer_length=5), "answer")
    pairs = [("what rose", CONTEXT), ("what fell in tokyo", "shares fell"), ("who", "")]
    found = list(answer(model, pairs))
    for pair, each in zip(pairs, found, strict=True):
        alone = next(answer(model, [pair], batch_tokens=1))
        assert (alone.text, alone.start) == (each.text, each.start)
        assert alone.score == pytest.approx(each.score, rel=1e-4)
    for (_, context), each in zip(pairs, found, strict=True):
        assert each.no_answer + sum(score for *_, score in each.n_best) == pytest.approx(1)
        assert all(context[start:end] == text for text, start, end, _ in each.n_best)
        assert all(len(text.split()) <= 5 for text, *_ in each.n_best)
    assert found[0].n_best[0][0] == found[0].text
    assert found[2].text == ""
    best = max(start for _, start, _, _ in found[0].n_best)
    assert best > 90, "some of the best spans lie beyond the first window"


def test_the_threshold_of_the_checkpoint_counts(folder):
    always, never = (folder("bert", no_answer_threshold=t) for t in (1e6, -1e6))
    pairs = [("what rose", "the market rose")]
    assert next(answer(always, pairs)).text
    assert not next(answer(never, pairs)).text
    assert next(answer(never, pairs, no_answer_threshold=1e6)).text
    assert next(answer(folder("bert"), pairs)).text


def test_the_command_answers_from_a_file(folder, tmp_path, capsys):
    model, path = folder("bert", max_length=24, stride=7, max_answer_length=5), tmp_path / "a.txt"
    path.write_text(CONTEXT, encoding="utf-8")
    main(["answer", model, "--question", "what rose", "--question", "who", str(path), "--jsonl", "--n-best", "3"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["question"] for row in rows] == ["what rose", "who"]
    assert set(rows[0]) == {"question", "answer", "start", "end", "score", "no_answer", "n_best"}
    assert [len(row["n_best"]) for row in rows] == [3, 3]
    for row in rows:
        assert CONTEXT[row["start"] : row["end"]] == row["answer"]
    main(["answer", model, "--question", "what rose", str(path)])
    assert capsys.readouterr().out == f"{rows[0]['answer']}\t{rows[0]['score']:.4f}\n"
    main(["answer", folder("bert", no_answer_threshold=-1e6), "--question", "who", "the market", "--n-best", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("(no answer)\t0.")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["ab"], "line 1: ab is no pair of texts; give a pair of texts, or leave it out"),
        ([{"question": "who", "context": "the cat"}], "is no pair of texts"),
        ([("who", None)], "line 1: None is no text"),
        ([("a", "b", "c")], "line 1: a pair has 2 texts, not 3"),
        ([(" ", "the cat")], "question 1: it is empty; give a question"),
    ],
)
def test_what_is_no_question_and_context_is_refused(folder, pairs, said):
    with pytest.raises(UserError, match=said):
        list(answer(folder(next(iter(CONFIGS))), pairs))


def test_the_command_refuses_what_it_cannot_answer(folder, checkpoint, capsys):
    for words, line in (
        ([folder("bert"), "--question", " ", "text"], "--question: it is empty"),
        ([folder("bert", max_length=16, stride=4), "--question", "rose " * 9, "x"], "the question has 9 tokens"),
        ([checkpoint("masked", "stock"), "--question", "who", "x"], "fills holes in texts; use decero fill"),
        ([folder("bert", stride=-3), "--question", "who", "x"], "question_answering.stride is -3"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["answer", *words])
        assert ended.value.code == 2
        assert line in capsys.readouterr().err
    with pytest.raises(UserError, match="finds answers in texts; use decero answer"):
        load(folder("bert"), "classify")


def test_standard_input_is_one_document(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"banks gained\nin tokyo")))
    main(["answer", folder("ours"), "--question", "who", "-", "--jsonl"])
    assert json.loads(capsys.readouterr().out)["answer"] in "banks gained\nin tokyo"
