"""A long text is read in parts or cut; a loss gives a warning. Prefix and suffix stay whole."""

import itertools
from functools import partial

import pytest
import torch
from tests.inference.conftest import BOTH

from decero.errors import UserError
from decero.inference import classify, fill, generate, load, summarize, translate
from decero.inference.chunking import in_order, pieces, windows
from decero.inference.generation import encode_prompt, fit_prompt, frame_of


@pytest.mark.parametrize("too_long", ["split", "cut"])
@BOTH
def test_a_long_text_is_never_shortened_in_silence(whose, too_long, checkpoint):
    loaded = load(checkpoint("seq2seq", whose), "translate")
    limit, said = loaded.positions(), []
    sentence = "the market rose sharply on monday. "
    long, options = sentence * 17, {"max_new_tokens": 5, "warn": said.append}
    found = list(translate(loaded, ["banks gained", long], too_long=too_long, **options))
    assert (
        len([line for line in said if line.startswith("line 2: ") and f"exceed the limit of {limit} of" in line]) == 1
    )
    parts = pieces(loaded, long, 2, too_long, said.append)
    assert "".join(parts) == long
    if too_long == "split":
        assert len(parts) > 1
        assert all(part.rstrip().endswith(".") for part in parts)
        assert all(len(loaded.tokenizer(part)["input_ids"]) <= limit for part in parts)
        assert found[1] == " ".join(translate(loaded, parts, max_new_tokens=5))
    else:
        ids = loaded.tokenizer(long, truncation=True, max_length=limit)["input_ids"]
        head = loaded.tokenizer.decode(ids, skip_special_tokens=True)
        assert len(parts) == 1
        assert found[1] == next(translate(loaded, [head], max_new_tokens=5))


def test_summarize_cuts_long_texts_by_default(checkpoint):
    loaded, long, said = (
        load(checkpoint("seq2seq", "ours"), "summarize"),
        "the market rose sharply on monday. " * 17,
        [],
    )
    cut, split = (next(summarize(loaded, [long], max_new_tokens=5, too_long=how)) for how in ("cut", "split"))
    assert next(summarize(loaded, [long], max_new_tokens=5, warn=said.append)) == cut != split
    assert "cut; its " in said[0]


def test_a_text_without_sentences_or_words_is_split_too(checkpoint):
    loaded = load(checkpoint("masked", "ours"), "fill")
    for text in ("market " * 200, "x" * 300, "", "rose. " + "fell " * 99):
        parts = pieces(loaded, text, 1, "split", lambda said: None)
        assert "".join(parts) == text
        assert all(len(loaded.tokenizer(part)["input_ids"]) <= 53 for part in parts)


def test_a_long_text_is_filled_and_classified_in_parts(checkpoint):
    text = "the market rose. " * 29 + "the [MASK] fell. " + "banks gained. " * 29
    filled = next(fill(checkpoint("masked", "ours"), [text]))
    assert len(filled.holes) == 1
    assert filled.text == text.replace("[MASK]", filled.holes[0][0][0]).replace(" ##", "")
    said = []
    cut = next(fill(checkpoint("masked", "ours"), [text], too_long="cut", warn=said.append))
    assert cut.text == text
    assert "line 1: 1 holes are in the part that was cut off" in said
    whole, first = (next(classify(checkpoint("classifier", "ours"), [text], too_long=how)) for how in ("split", "cut"))
    assert sum(whole.values()) == pytest.approx(1, abs=1e-5)
    assert whole != pytest.approx(first, abs=1e-3)


def test_generate_reads_the_end_of_a_long_prompt(checkpoint):
    loaded, said = load(checkpoint("causal", "ours"), "generate"), []
    long = "banks gained " * 40 + "shares fell on monday"
    found = next(generate(loaded, [long], max_new_tokens=5, warn=said.append))
    ids = loaded.tokenizer(long)["input_ids"][:-1]
    read = [ids[0], *ids[len(ids) - (53 - 5) + 1 :]]
    written = loaded.model.generate(torch.tensor([read]), max_new_tokens=5, do_sample=False)[0, len(read) :]
    assert found == loaded.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert any("line 1: cut; " in line for line in said)


def endless(model):
    model.generation_config.eos_token_id = None


def test_an_answer_cut_off_by_the_limit_gives_a_warning(checkpoint):
    said = []
    list(translate(checkpoint("seq2seq", "ours", endless), ["", "banks"], max_new_tokens=3, warn=said.append))
    assert said == ["line 2: the answer was cut off at 3 new tokens; raise --max-new-tokens"]


def test_a_given_prefix_replaces_that_of_the_checkpoint(checkpoint):
    loaded = load(checkpoint("seq2seq", "ours"), "translate")
    plain = list(translate(loaded, ["banks gained"], max_new_tokens=7, prefix="the market "))
    bare = list(translate(loaded, ["banks gained"], max_new_tokens=7))
    assert plain != bare
    loaded.model.config.task_specific_params = {"es": {"prefix": "the market "}}
    assert list(translate(loaded, ["banks gained"], max_new_tokens=7)) == plain
    assert list(translate(loaded, ["banks gained"], max_new_tokens=7, prefix="")) == bare


@pytest.mark.parametrize(
    ("named", "command", "prefix"),
    [
        (None, "translate", ""),
        ({"en_es": {"prefix": "to Spanish: "}}, "translate", "to Spanish: "),
        ({"en_es": {"prefix": "to Spanish: "}, "summarization": {"prefix": "sum: "}}, "summarize", "sum: "),
        ({"en_es": {"prefix": "to Spanish: "}, "summarization": {"prefix": "sum: "}}, "translate", "to Spanish: "),
        ({"translation_en_to_de": {"prefix": "de: "}, "other": {"prefix": "x: "}}, "translate", "de: "),
        ({"text-generation": {"max_length": 50}}, "generate", ""),
    ],
)
def test_the_prefix_is_the_one_of_the_task(named, command, prefix, checkpoint):
    loaded = load(checkpoint("seq2seq", "ours"), "translate")
    loaded.model.config.task_specific_params = named
    assert frame_of(loaded, command) == (prefix, "")


@pytest.mark.parametrize(
    ("prefix", "frame"),
    [
        (None, "several"),
        ("sum: ", ("sum: ", " TL;DR")),
        ("title: ", ("title: ", " Title:")),
        ("other: ", ("other: ", "")),
    ],
)
def test_the_suffix_belongs_to_the_prefix(prefix, frame, checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    tasks = {"summarization": {"prefix": "sum: ", "suffix": " TL;DR"}, "t": {"prefix": "title: ", "suffix": " Title:"}}
    loaded.model.config.task_specific_params = tasks
    if frame == "several":
        with pytest.raises(UserError, match="choose one with --prefix 'sum: ' or 'title: '"):
            frame_of(loaded, "generate", prefix)
        return
    assert frame_of(loaded, "generate", prefix) == frame
    del tasks["t"]
    assert frame_of(loaded, "generate") == ("sum: ", " TL;DR")
    assert frame_of(loaded, "generate", "other: ") == ("other: ", " TL;DR")  # the only one there is


def test_a_long_text_keeps_its_end_with_prefix_and_suffix_whole(checkpoint):
    loaded, said = load(checkpoint("causal", "ours"), "generate"), []
    room = loaded.positions() - 5
    text = "banks gained " * 60 + "shares fell on monday"
    encode = partial(encode_prompt, loaded, "market ", " and")
    ids, first = fit_prompt(loaded, encode, text, 1, 5, said.append), encode_prompt(loaded, "market ", "", "")
    assert room - 6 < len(ids) <= room
    assert ids[: len(first)] == first
    assert loaded.tokenizer.decode(ids).endswith("shares fell on monday and")
    fits = next(n for n in range(99, 0, -1) if len(encode_prompt(loaded, "market ", "", "banks " * n)) <= room)
    fit_prompt(loaded, partial(encode_prompt, loaded, "market ", " and then some"), "banks " * fits, 7, 5, said.append)
    assert "line 7: cut; " in said[1], "what goes behind it was not counted"
    with pytest.raises(UserError, match="5 new tokens and what surrounds a text fill all 53 positions"):
        fit_prompt(loaded, partial(encode_prompt, loaded, "market " * 60, ""), "banks", 1, 5, said.append)


def test_a_checkpoint_with_several_tasks_needs_a_prefix(checkpoint):
    loaded = load(checkpoint("seq2seq", "ours"), "translate")
    loaded.model.config.task_specific_params = {n: {"prefix": f"{n}: "} for n in ("translation_a", "translation_b")}
    with pytest.raises(UserError, match="--prefix 'translation_a: ' or 'translation_b: '"):
        translate(loaded, ["banks"])


def test_only_one_window_is_read_before_its_answers(checkpoint):
    read = []
    texts = (read.append(n) or "banks gained" for n in itertools.count())
    answers = translate(checkpoint("seq2seq", "ours"), texts, max_new_tokens=2, first_window=3)
    next(answers)
    assert len(read) == 3


def test_windows_double_and_answers_come_in_order():
    assert [len(window) for window in windows(iter(range(50)), 3)] == [3, 6, 12, 24, 5]
    assert [len(window) for window in windows(iter(range(3)), 1)] == [1, 1, 1]  # somebody waits for each
    log = []

    def batches():
        for batch in ([3, 1], [0], [2]):
            log.append(batch)
            yield batch, [f"<{n}>" for n in batch]

    found = in_order([[0], [], [1, 2], [3]], batches())
    assert next(found) == ["<0>"]
    assert log == [[3, 1], [0]]
    assert list(found) == [[], ["<1>", "<2>"], ["<3>"]]


def test_the_suffix_of_the_checkpoint_follows_a_prompt(checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    framed = list(generate(loaded, ["the market banks gained and"], max_new_tokens=5, prefix=""))
    loaded.model.config.task_specific_params = {"synopsis": {"prefix": "the market ", "suffix": " and"}}
    assert list(generate(loaded, ["banks gained"], max_new_tokens=5)) == framed
