"""Special tokens that are spelt out in a text are text, in every task."""

import importlib.util

import pytest
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from decero.data.prompt_completion import tokenize_prompts
from decero.data.special_tokens import encode_behind, encode_framed, pad_with, special_tokens_around
from decero.data.tokenization import tokenize_examples, tokenize_pairs
from decero.data.tokenizer import load_tokenizer
from decero.errors import UserError

SPECIAL = ["<s>", "<pad>", "</s>", "<mask>", "<tag>"]
TEMPLATE = (
    "{% for m in messages %}<tag>{{ m.role }} {{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<tag>assistant {% endif %}"
)


@pytest.fixture(scope="module")
def bart():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the soup was warm"] * 9, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>",
        extra_special_tokens=[AddedToken("<tag>", special=True)], chat_template=TEMPLATE,
    )  # fmt: skip
    assert set(SPECIAL) == set(tokenizer.all_special_tokens)
    return tokenizer


def rows_of(kind, tokenizer, text):
    """All ids that a task makes of a text, wherever it may stand."""
    if kind == "examples":
        data = Dataset.from_dict({"text": [text], "labels": [0]})
        return [tokenize_examples(data, tokenizer, max_length=99)[0]["input_ids"]]
    if kind == "pairs of examples":
        data = Dataset.from_dict({"a": [text], "b": [text], "labels": [0]})
        return [
            tokenize_examples(data, tokenizer, max_length=99, text_column="a", text_pair_column="b")[0]["input_ids"]
        ]
    data = Dataset.from_dict({"source": [text], "target": [text]})
    lengths = {"max_source_length": 99, "max_target_length": 99}
    if kind == "seq2seq":
        row = tokenize_pairs(data, tokenizer, **lengths)[0]
    else:
        row = tokenize_prompts(data, tokenizer, chat=kind == "chat", **lengths)[0]
    return [row["input_ids"], row["labels"]]


@pytest.mark.parametrize("kind", ["examples", "pairs of examples", "seq2seq", "completion", "chat"])
@pytest.mark.parametrize("token", SPECIAL)
def test_a_special_token_in_a_text_is_text(kind, token, bart):
    spelt, plain = (rows_of(kind, bart, f"the {word} soup {word}") for word in (token, "warm"))
    for with_token, without in zip(spelt, plain, strict=True):
        special = [[i for i in ids if i in bart.all_special_ids] for ids in (with_token, without)]
        assert special[0] == special[1]  # those of the tokenizer and the template, and no others
        assert f"the {token} soup {token}" in bart.decode([i for i in with_token if i not in bart.all_special_ids])


def test_the_tokens_of_a_frame_count(bart):
    tag = bart.convert_tokens_to_ids("<tag>")
    ids = encode_framed(bart, lambda text: f"<tag>{text}<tag>", "a <tag> b")
    assert [i for i, token in enumerate(ids) if token == tag] == [0, len(ids) - 1]
    assert bart.decode(ids) == "<tag>a <tag> b<tag>"
    assert encode_framed(bart, str, "a <mask> b", kept=("<mask>",)).count(bart.mask_token_id) == 1
    twice = encode_framed(bart, lambda text: f"{text}<tag>{text}", "a</s>b")
    assert bart.decode(twice) == "a</s>b<tag>a</s>b"
    assert twice.count(tag) == 1
    assert bart.eos_token_id not in twice


def test_a_prefix_may_have_a_special_token(bart):
    tag = bart.convert_tokens_to_ids("<tag>")
    texts = ["the soup", "a <tag> soup </s>"]
    rows = encode_behind(bart, "<tag>", texts, 99)
    assert [row.count(tag) for row in rows] == [1, 1]
    assert [row[:2] for row in rows] == [[bart.bos_token_id, tag]] * 2
    assert rows[0] == bart("<tag>the soup")["input_ids"]
    short = encode_behind(bart, "<tag>", texts, 5)
    assert [(len(row), row[-1]) for row in short] == [(5, bart.eos_token_id)] * 2
    assert encode_behind(bart, "to: ", texts[:1], 99) == [bart("to: the soup")["input_ids"]]


def test_texts_without_special_tokens_keep_their_ids(bart, texts, tokenizer):
    for each in (bart, tokenizer):
        data = Dataset.from_dict({"text": texts, "labels": [0] * len(texts)})
        rows = tokenize_examples(data, each, max_length=999)
        assert list(rows["input_ids"]) == each(texts)["input_ids"]


def without_padding():
    backend = Tokenizer(models.WordLevel({"<|end|>": 0, "a": 1, "b": 2}, unk_token="<|end|>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


@pytest.mark.parametrize(("pad_token_id", "token"), [(None, "<|end|>"), (2, "b"), (99, "<|end|>"), (-1, "<|end|>")])
def test_a_tokenizer_without_padding_gets_the_models(pad_token_id, token):
    tokenizer = without_padding()
    pad_with(tokenizer, pad_token_id)
    assert tokenizer.pad_token == token


def test_a_tokenizer_of_another_alphabet_shows_its_frame():
    backend = Tokenizer(
        models.BPE({"[CLS]": 0, "[SEP]": 1, "γ": 2, "α": 3}, [])
    )  # no unknown token: it drops the letter a
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]")
    assert tokenizer("a")["input_ids"] == [0, 1]
    assert special_tokens_around(tokenizer) == ([0], [1])
    nothing = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({}, [])))
    with pytest.raises(UserError, match="it makes no token of any text; choose another"):
        special_tokens_around(nothing)


def test_padding_needs_some_token():
    with pytest.raises(UserError, match="no pad_token and no eos_token"):
        pad_with(PreTrainedTokenizerFast(tokenizer_object=without_padding().backend_tokenizer), None)


def test_an_empty_text_is_one_token_where_none_is_added():
    tokenizer = without_padding()
    pad_with(tokenizer, None)
    data = Dataset.from_dict({"text": ["", "a"], "labels": [0, 1]})
    assert list(tokenize_examples(data, tokenizer, max_length=9)["input_ids"]) == [[0], [1]]


def test_a_slow_tokenizer_serves_tasks_without_offsets(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="ByT5Tokenizer is a slow tokenizer, without word ids and offsets"):
        load_tokenizer(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path), fast=False)
    for kind in ("examples", "pairs of examples", "seq2seq"):
        for ids in rows_of(kind, tokenizer, "a </s> soup <pad>"):
            assert ids[-1] == tokenizer.eos_token_id
            assert ids.count(tokenizer.eos_token_id) == 1 + (kind == "pairs of examples")
            assert tokenizer.decode(ids[:-1]).startswith("a </s> soup <pad>")
    data = Dataset.from_dict({"text": ["a soup"], "labels": [0]})
    files = []
    for side in ("right", "left"):
        tokenizer.truncation_side = side
        files.append(tokenize_examples(data, tokenizer, max_length=5).cache_files)
    assert files[0] != files[1]


@pytest.mark.parametrize(("name", "package"), [("MarianTokenizer", "sentencepiece"), ("XLMTokenizer", "sacremoses")])
def test_a_missing_package_is_named(name, package, tmp_path):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    (tmp_path / "tokenizer_config.json").write_text(f'{{"tokenizer_class": "{name}"}}')
    (tmp_path / "config.json").write_text('{"model_type": "marian"}')
    for file in ("source.spm", "target.spm", "vocab.json", "merges.txt"):
        (tmp_path / file).write_text("{}")
    with pytest.raises(UserError, match=f"it needs a package: pip install {package}$"):
        load_tokenizer(str(tmp_path), fast=False)
