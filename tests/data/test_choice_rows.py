"""Rows of choices that continue a question hold the tokens of the whole text."""

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from decero.data.choice_rows import tokenize_continuations

TOKENS = ["<s>", "</s>", "<unk>", "▁", "▁the", "▁capital", "▁is", "▁Paris", "▁Rome", "▁New", "▁York", "s", "<pad>"]
ROW = {"context": "", "question": "the capital is", "choices": ["Paris", "New York", "Romes"], "labels": 0}


def like_llama():
    """A tokenizer that puts the mark of a word before every text, as that of Llama 2."""
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>"))
    backend.model.continuing_subword_prefix = ""
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


@pytest.mark.parametrize("separator", [" ", ""])
def test_a_choice_is_the_rest_of_the_whole_text(separator):
    tokenizer = like_llama()
    question = "the capital is" + " " * (separator == "")
    (row,) = tokenize_continuations(
        Dataset.from_list([ROW | {"question": question}]), tokenizer, max_length=31, separator=separator
    )
    ends = [sum(row["lengths"][: i + 1]) for i in range(3)]
    parts = [row["choices"][end - length : end] for end, length in zip(ends, row["lengths"], strict=True)]
    for choice, part in zip(ROW["choices"], parts, strict=True):
        whole = tokenizer(question + separator + choice, add_special_tokens=False)["input_ids"]
        assert row["input_ids"][1:] + part == whole
    assert tokenizer.convert_ids_to_tokens(parts[0])[-1] == "▁Paris"
    assert [len(part) for part in parts] == [1, 2, 2]
