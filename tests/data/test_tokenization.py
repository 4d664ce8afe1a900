"""Tokenization loses nothing, and its cache depends on all inputs."""

import json
import re
from itertools import chain

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from decero.data.corpus import ROW
from decero.data.tokenization import count_tokens, tokenize_documents, tokenize_examples
from decero.errors import UserError


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_hold_every_token_of_every_document_in_order(texts, tokenizer, processes):
    long = [" ".join(texts[i : i + 5]) for i in range(0, 60, 5)]
    rows = tokenize_documents(Dataset.from_dict({"text": long}), tokenizer, max_length=13, num_proc=processes)
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    kept = [i for ids in rows["input_ids"] for i in ids if i not in special]
    whole = list(chain(*tokenizer(long, add_special_tokens=False)["input_ids"]))
    assert len(kept) >= len(whole) - len(long)  # a last row of a single token is dropped
    assert max(map(len, rows["input_ids"])) == 13
    assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in rows["input_ids"])
    assert [len(i) for i in rows["input_ids"]] == [len(s) for s in rows["starts_word"]]
    assert count_tokens(rows) == sum(map(len, rows["input_ids"]))


@pytest.mark.parametrize("special", [True, False])
def test_rows_equal_the_overflowing_rows_of_the_tokenizer(texts, tokenizer, special):
    long = [" ".join(texts[i : i + 5]) + " [MASK] <s>" for i in range(0, 60, 5)]
    rows = tokenize_documents(Dataset.from_dict({"text": long}), tokenizer, max_length=13, special_tokens=special)
    expected = tokenizer(
        long, truncation=True, max_length=13, return_overflowing_tokens=True, split_special_tokens=True,
        add_special_tokens=special,
    )  # fmt: skip
    wanted = [ids for ids in expected["input_ids"] if len(ids) >= 2 + 2 * special]
    assert list(rows["input_ids"]) == wanted
    inner = [starts[special : len(starts) - special] for starts in rows["starts_word"]]
    assert all(starts[0] for starts in inner)
    assert any(not start for starts in inner for start in starts)


def test_the_cache_depends_on_data_length_and_tokenizer(texts, tokenizer):
    data = Dataset.from_dict({"text": texts})

    def file(dataset=data, **settings):
        return tokenize_documents(dataset, tokenizer, **({"max_length": 16} | settings)).cache_files[0]["filename"]

    assert file() == file() == file(Dataset.from_dict({"text": texts}))
    assert file() != file(max_length=17)
    assert file() != file(Dataset.from_dict({"text": texts[1:]}))


def changed_backend(tokenizer, part, value):
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend[part] = value
    return Tokenizer.from_str(json.dumps(backend))


CHANGES = {
    "truncation_side": {"truncation_side": "left"},
    "padding_side": {"padding_side": "left"},
    "model_max_length": {"model_max_length": 17},
    "model_input_names": {"model_input_names": ["input_ids", "attention_mask"]},
    "an added token": {"extra_special_tokens": ["london"]},
    "a special token": {"unk_token": "[MASK]"},
    "normalizer": lambda tokenizer: {"tokenizer_object": changed_backend(tokenizer, "normalizer", None)},
    "post_processor": lambda tokenizer: {"tokenizer_object": changed_backend(tokenizer, "post_processor", None)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_depends_on_every_tokenizer_setting(change, texts, tokenizer_folder):
    data = Dataset.from_dict({"text": texts, "labels": [0] * len(texts)})
    load = AutoTokenizer.from_pretrained
    tokenizer = load(tokenizer_folder)
    options = CHANGES[change](tokenizer) if callable(CHANGES[change]) else CHANGES[change]
    other = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder, **options)
    files = [
        tokenize_examples(data, each, max_length=16).cache_files for each in (tokenizer, load(tokenizer_folder), other)
    ]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_another_truncation_side_is_not_served_from_the_cache(texts, tokenizer_folder):
    data = Dataset.from_dict({"text": ["the bank " * 40 + "london"], "labels": [0]})
    ends = []
    for side in ("right", "left", "right"):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        tokenizer.truncation_side = side  # set after loading
        ids = tokenize_examples(data, tokenizer, max_length=9)[0]["input_ids"]
        ends.append("london" in tokenizer.decode(ids))
    assert ends == [False, True, False]


def test_tokenization_restores_the_tokenizer_settings(texts, tokenizer):
    tokenize_documents(Dataset.from_dict({"text": texts[:3]}), tokenizer, max_length=11)
    assert tokenizer.backend_tokenizer.truncation is None


def test_empty_documents_are_skipped_and_no_text_is_refused(tokenizer):
    rows = tokenize_documents(Dataset.from_dict({"text": ["", "the bank", None, "  "]}), tokenizer, max_length=9)
    assert len(rows) == 1
    with pytest.raises(UserError, match="no text is left"):
        tokenize_documents(Dataset.from_dict({"text": ["", " "]}), tokenizer, max_length=9, where="train")


def test_each_example_is_one_row_with_a_truncated_flag(texts, tokenizer):
    data = Dataset.from_dict({"text": ["the bank", "", texts[10] * 3], "labels": [0, 1, 0]})
    rows = tokenize_examples(data, tokenizer, max_length=9)
    assert list(rows["labels"]) == [0, 1, 0]
    assert list(rows["truncated"]) == [False, False, True]
    assert max(map(len, rows["input_ids"])) == 9


def test_pairs_are_joined_as_the_tokenizer_joins_them(tokenizer):
    data = Dataset.from_dict({"a": ["the bank"], "b": ["in london"], "labels": [0]})
    rows = tokenize_examples(data, tokenizer, max_length=20, text_column="a", text_pair_column="b")
    expected = tokenizer("the bank", "in london")
    assert rows[0]["input_ids"] == expected["input_ids"]
    assert rows[0]["token_type_ids"] == expected["token_type_ids"]
    assert 1 in rows[0]["token_type_ids"]


def test_a_missing_text_is_refused(tokenizer):
    data = Dataset.from_dict({"text": ["a", None, "b", None], "labels": [0, 1, 0, 1], ROW: [4, 6, 7, 9]})
    for rows, said in ((range(4), "test, row 6: no text (null) in 'text' (and 1 more rows)"), ([0, 3], "test, row 9:")):
        with pytest.raises(UserError, match=re.escape(said)):
            tokenize_examples(data.select(rows), tokenizer, max_length=9, where="test")
    kept = data.select([0, 2])  # the table below still has the rows without text
    assert len(tokenize_examples(kept, tokenizer, max_length=9, where="test")) == 2
