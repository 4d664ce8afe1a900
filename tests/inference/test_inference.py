"""Answers come in order, equal those of each text alone, and losses give a warning."""

import copy
import functools
import itertools
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, T5Config

from decero.errors import UserError
from decero.inference import classify, fill, generate, load, summarize, translate
from decero.inference.chunking import in_order, pieces, windows
from decero.inference.decode import decode
from decero.inference.generation import encode_chat, encode_prompt, fit_prompt, frame_of

BOTH = pytest.mark.parametrize("whose", ["ours", "stock"])
TEXTS = ["banks gained", "", "the market rose sharply on monday after profit news from tokyo", "  ", "shares fell"]
WRITERS = {"translate": (translate, "seq2seq"), "summarize": (summarize, "seq2seq"), "generate": (generate, "causal")}


@BOTH
@pytest.mark.parametrize("command", WRITERS)
def test_each_text_is_answered_as_alone_and_an_empty_one_empty(command, whose, checkpoint):
    write, kind = WRITERS[command]
    model = load(checkpoint(kind, whose), command)
    found = list(write(model, TEXTS, max_new_tokens=7))
    assert found == [next(write(model, [text], max_new_tokens=7)) for text in TEXTS]
    assert [bool(answer) for answer in found] == [True, False, True, False, True]
    assert len(set(found)) >= 3  # random weights; the empty answer is one
    assert list(write(model, TEXTS, max_new_tokens=7, batch_tokens=30, first_window=2)) == found


@BOTH
def test_translate_writes_what_transformers_does(whose, checkpoint):
    folder = checkpoint("seq2seq", whose)
    loaded = load(folder, "translate")
    stock = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    read = loaded.tokenizer("banks gained", return_tensors="pt")
    for beams in (1, 3):
        ids = stock.generate(
            read["input_ids"], attention_mask=read["attention_mask"], max_new_tokens=7, num_beams=beams, do_sample=False
        )
        expected = loaded.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
        assert list(translate(folder, ["banks gained"], max_new_tokens=7, beams=beams)) == [expected]


def test_a_prompt_does_not_end_before_the_model_goes_on(checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    ids = loaded.tokenizer("banks gained")["input_ids"]
    assert ids[-1] == loaded.tokenizer.sep_token_id
    written = loaded.model.generate(torch.tensor([ids[:-1]]), max_new_tokens=7, do_sample=False)[0, len(ids) - 1 :]
    expected = loaded.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert list(generate(loaded, ["banks gained"], max_new_tokens=7)) == [expected]


@BOTH
def test_fill_gives_the_likeliest_tokens_of_each_hole(whose, checkpoint):
    folder = checkpoint("masked", whose)
    loaded = load(folder, "fill")
    texts = ["the [MASK] rose after <mask> news", "", "shares fell", "[MASK] gained"]
    found = list(fill(loaded, texts, top_k=3))
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    read = loaded.tokenizer(texts[0].replace("<mask>", "[MASK]"), return_tensors="pt")
    with torch.no_grad():
        logits = model(**read).logits[read["input_ids"] == loaded.tokenizer.mask_token_id]
    best = logits.softmax(dim=-1).topk(3)
    assert [[token for token, _ in hole] for hole in found[0].holes] == [
        [loaded.tokenizer.decode([i]) for i in row] for row in best.indices.tolist()
    ]
    assert [[p for _, p in hole] for hole in found[0].holes] == [
        pytest.approx(r, abs=1e-5) for r in best.values.tolist()
    ]
    assert [len(each.holes) for each in found] == [2, 0, 0, 1]
    assert (found[1].text, found[2].text) == ("", "shares fell")
    first, second = (hole[0][0] for hole in found[0].holes)
    joined = f"the {first} rose after {second} news".replace(" ##", "")
    assert found[0].text == joined


def test_only_the_mask_is_special_in_a_text_to_fill(checkpoint):
    loaded = load(checkpoint("masked", "ours"), "fill")
    texts = ["the [MASK] rose [SEP] on [PAD] monday", "the [MASK] rose"]
    found = list(fill(loaded, texts, top_k=2))
    assert [len(each.holes) for each in found] == [1, 1]
    assert found[0].text == texts[0].replace("[MASK]", found[0].holes[0][0][0]).replace(" ##", "")
    assert found[1].text == next(fill(loaded, texts[1:], top_k=2)).text


def test_a_line_without_a_hole_gives_a_warning(checkpoint):
    said = []
    list(fill(checkpoint("masked", "ours"), ["", "shares fell"], warn=said.append))
    assert said == ["line 2: no hole to fill; mark one with [MASK]"]


@BOTH
def test_classify_gives_every_label_the_likeliest_first(whose, checkpoint):
    folder = checkpoint("classifier", whose)
    found = list(classify(folder, TEXTS))
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        load(folder, "classify").tokenizer,
    )
    for text, labels in zip(TEXTS, found, strict=True):
        if not text.strip():
            assert labels == {}
            continue
        with torch.no_grad():
            probabilities = model(**tokenizer(text, return_tensors="pt")).logits.softmax(dim=-1)[0]
        expected = {model.config.id2label[i]: p for i, p in enumerate(probabilities.tolist())}
        assert labels == pytest.approx(expected, abs=1e-5)
        assert list(labels.values()) == sorted(labels.values(), reverse=True)


def several(model):
    model.config.problem_type = "multi_label_classification"


def test_several_labels_each_have_a_probability_of_their_own(checkpoint):
    one, many = (next(classify(checkpoint("classifier", "ours", change), TEXTS)) for change in (None, several))
    assert sum(one.values()) == pytest.approx(1, abs=1e-5)
    assert sum(many.values()) != pytest.approx(1, abs=1e-2)


WRONG = {
    ("generate", "seq2seq"): "answers texts; use decero translate or decero summarize",
    ("translate", "causal"): "continues texts; use decero generate",
    ("fill", "classifier"): "classifies texts; use decero classify",
    ("classify", "masked"): "fills holes in texts; use decero fill",
}
COMMAND_OF = {"seq2seq": "translate", "causal": "generate", "classifier": "classify", "masked": "fill"}


@BOTH
@pytest.mark.parametrize(("command", "kind"), WRONG)
def test_a_model_of_another_kind_names_the_commands_that_fit(command, kind, whose, checkpoint):
    folder = checkpoint(kind, whose)
    with pytest.raises(UserError, match=WRONG[command, kind]) as error:
        load(folder, command)
    assert str(error.value).startswith(f"{folder}: this ")
    loaded = load(
        folder, {"seq2seq": "translate", "causal": "generate", "classifier": "classify", "masked": "fill"}[kind]
    )
    with pytest.raises(UserError, match=WRONG[command, kind]):
        load(loaded, command)


def diverged(model):
    model.base_model.get_input_embeddings().weight.data.fill_(torch.nan)


def overflowing(model):
    model.base_model.get_input_embeddings().weight.data.fill_(torch.inf)


@BOTH
@pytest.mark.parametrize("change", [diverged, overflowing])
@pytest.mark.parametrize("kind", COMMAND_OF)
def test_outputs_that_are_not_finite_are_no_answers(kind, change, whose, checkpoint):
    loaded = load(checkpoint(kind, whose, change), COMMAND_OF[kind])
    answer = {"classify": classify, "fill": fill, "generate": generate, "translate": translate}[COMMAND_OF[kind]]
    for options in ({}, {"beams": 2}) if kind in ("causal", "seq2seq") else ({},):
        with pytest.raises(UserError, match="computes NaN or infinity, which is no answer"):
            list(answer(loaded, ["", "the [MASK] rose"], **options))


@BOTH
@pytest.mark.parametrize("kind", COMMAND_OF)
def test_no_command_answers_from_weights_that_are_not_there(kind, whose, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(kind, whose), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    for part in sorted({name.rpartition(".")[0] for name in tensors}):
        left = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{part}.")}
        save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=rf"tensor {part}\.\w+ is missing"):
            load(folder, COMMAND_OF[kind])


def test_remote_code_needs_a_revision():
    with pytest.raises(UserError, match="--trust-remote-code needs --revision"):
        load("somebody/model", "fill", trust_remote_code=True)


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


TEMPLATE = (
    "{% for m in messages %}the {{ m.role }} : {{ m.content | trim }} {% endfor %}"
    "{% if add_generation_prompt %}and{% endif %}"
)


def test_chat_uses_the_template_of_the_tokenizer(checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    with pytest.raises(UserError, match="the tokenizer has no chat template; remove --chat"):
        next(generate(loaded, ["banks"], chat=True))
    loaded.tokenizer.chat_template = TEMPLATE
    ids = loaded.tokenizer("the user : market banks gained and", add_special_tokens=False)["input_ids"]
    written = loaded.model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, len(ids) :]
    expected = loaded.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert list(generate(loaded, ["banks gained"], chat=True, prefix="market ", max_new_tokens=5)) == [expected]
    assert list(generate(loaded, ["banks gained"], prefix="market ", max_new_tokens=5)) != [expected]
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(UserError, match="the chat template leaves out the text of a turn; remove --chat"):
        next(generate(loaded, ["banks"], chat=True))


CHATS = {
    "trims": TEMPLATE,
    "keeps": TEMPLATE.replace(" | trim", ""),
    "starts": "[CLS] {% for m in messages %}{{ m.content }} [SEP]{% endfor %}",
    "upper, twice": "{% for m in messages %}{{ m.content | upper }}{{ m.content }} {% endfor %}",
}


@pytest.mark.parametrize("template", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("text", ["banks", "  banks gained \n", "\n\nbanks\tgained\u00a0"])
def test_chat_reads_the_ids_of_the_chat_template(template, text, checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    loaded.tokenizer.chat_template = template
    turns = [{"role": "user", "content": text}]
    ids = loaded.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert encode_chat(loaded, "", text) == ids
    written = loaded.model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, len(ids) :]
    expected = loaded.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert list(generate(loaded, [text], chat=True, max_new_tokens=5)) == [expected]


def test_a_long_turn_keeps_its_end_and_the_whole_template(checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    loaded.tokenizer.chat_template = TEMPLATE
    text = "banks gained " * 40 + "shares fell on monday"
    ids = fit_prompt(loaded, partial(encode_chat, loaded, ""), text, 1, 53 - 31, lambda said: None)
    first = loaded.tokenizer("the user : ", add_special_tokens=False)["input_ids"]
    assert 25 < len(ids) <= 31
    assert ids[: len(first)] == first
    assert loaded.tokenizer.decode(ids).endswith("shares fell on monday and")


# What a checkpoint may say of how it generates. Each is tried with a decoder and an encoder-decoder, with one beam and
# three, on a batch of several lengths.
OWN = {
    "max_length": {"max_length": 17},
    "max_new_tokens": {"max_new_tokens": 13, "max_length": 31},
    "more than half": {"max_new_tokens": 35},
    "min_length": {"max_length": 30, "min_length": 15},
    "min_new_tokens": {"max_length": 30, "min_new_tokens": 9},
    "no_repeat_ngram_size": {"max_length": 20, "no_repeat_ngram_size": 2},
    "no_repeat_1": {"max_length": 20, "no_repeat_ngram_size": 1},
    "repetition_penalty": {"max_length": 20, "repetition_penalty": 1.7},
    "length_penalty": {"max_length": 20, "length_penalty": 3.0, "early_stopping": True},
    "early_never": {"max_length": 20, "early_stopping": "never"},
    "forced_eos": {"max_length": 20, "forced_eos_token_id": 31},
    "forced_bos": {"max_length": 20, "forced_bos_token_id": 23},
    "suppress": {"max_length": 20, "suppress_tokens": list(range(20, 60)), "begin_suppress_tokens": [61, 62]},
    "bad_words": {"max_length": 20, "bad_words_ids": [[20], [31, 40], [40, 41, 42]]},
    "several ends": {"max_length": 30, "eos_token_id": [3, 20, 31, 42, 60]},
    "no end": {"max_length": 20, "eos_token_id": None},
    "all": {"max_length": 25, "min_length": 12, "no_repeat_ngram_size": 3, "length_penalty": 2.0, "num_beams": 4,
            "early_stopping": True, "repetition_penalty": 1.3, "forced_bos_token_id": 20, "forced_eos_token_id": 3},
    "other": {"max_length": 20, "use_cache": False, "return_dict_in_generate": True, "output_scores": True},
}  # fmt: skip
LENGTHS = ["banks", "the market rose sharply on monday after", "", "banks gained"]


@pytest.fixture(scope="module")
def loaded_of(checkpoint):
    """Load a checkpoint once."""
    return functools.cache(lambda kind, whose: load(checkpoint(kind, whose), COMMAND_OF[kind]))


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
@pytest.mark.parametrize("whose", ["stock", pytest.param("ours", marks=pytest.mark.slow)])
def test_a_checkpoints_settings_give_transformers_texts(whose, kind, own, loaded_of):
    loaded, write = loaded_of(kind, whose), WRITERS[COMMAND_OF[kind]][0]
    before = copy.deepcopy(loaded.model.generation_config)
    try:
        for beams in (1, 3):
            loaded.model.generation_config.update(**{"num_beams": beams} | own)
            expected = [stock_answer(loaded, kind, text) if text else "" for text in LENGTHS]
            assert list(write(loaded, LENGTHS)) == expected
    finally:
        loaded.model.generation_config = before


def stock_answer(loaded, kind, text):
    ids = encode_prompt(loaded, "", "", text) if kind == "causal" else loaded.tokenizer(text)["input_ids"]
    written = loaded.model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
        return_dict_in_generate=False, use_cache=not isinstance(loaded.model.config, T5Config),  # it miscounts layers
    )[0]  # fmt: skip
    start = len(ids) if kind == "causal" else 1
    return loaded.tokenizer.decode(written[start:], skip_special_tokens=True).strip()


def test_a_prompt_longer_than_max_length_is_cut(checkpoint):
    loaded, said = load(checkpoint("causal", "ours"), "generate"), []
    before = loaded.model.generation_config
    loaded.model.generation_config = copy.deepcopy(before)
    loaded.model.generation_config.max_length = 12
    try:
        assert len(list(generate(loaded, ["banks gained " * 9], warn=said.append))) == 1
        with pytest.raises(UserError, match="has 20 tokens, and max_length 12 of the model's generation_config counts"):
            decode(loaded.model, [[7] * 20], max_new_tokens=None)
    finally:
        loaded.model.generation_config = before
    assert "line 1: cut; its " in said[0]
    assert "exceed the limit of 6 of" in said[0]


def test_samples_depend_on_seed_and_line_not_on_the_window(checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    texts = ["banks gained", "", "banks gained", "shares fell", "banks gained"]
    drawn = list(generate(loaded, texts, max_new_tokens=9, temperature=1.5, seed=3))
    assert list(generate(loaded, texts, max_new_tokens=9, temperature=1.5, seed=3, first_window=1)) == drawn
    assert len({drawn[0], drawn[2], drawn[4]}) == 3
    assert list(generate(loaded, texts, max_new_tokens=9, temperature=1.5, seed=4)) != drawn
    with pytest.raises(UserError, match=r"temperature 0\.0 must be from 0\.0001 to 10,000"):
        next(generate(loaded, texts, temperature=0.0))
    with pytest.raises(UserError, match="seed has no effect without --temperature"):
        next(generate(loaded, texts, seed=3))
    with pytest.raises(UserError, match="seed -1 is negative"):
        next(generate(loaded, texts, temperature=1.0, seed=-1))
