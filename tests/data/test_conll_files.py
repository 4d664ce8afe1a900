"""CoNLL files give sentences of words and tags."""

import pytest
from datasets import DatasetDict

from decero.data.corpus import load_corpus
from decero.data.tagged_texts import read_tags
from decero.errors import UserError

COLUMNS = {"tokens": "data.tokens_column", "ner_tags": "data.tags_column"}
TEXT = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP I-ORG\nrejects VBZ B-VP O\r\n\n\n \n"
TEXT += "Peter NNP B-NP I-PER\nBlackburn NNP I-NP I-PER"


def read(path, **more):
    return load_corpus(files={"train": str(path)}, text_column="tokens", columns=COLUMNS | more, words=True)


def test_sentences_have_words_and_the_last_column(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text(TEXT, encoding="utf-8", newline="")
    found = read(path)["train"]
    assert found["tokens"][:] == [["EU", "rejects"], ["Peter", "Blackburn"]]
    assert found["ner_tags"][:] == [["I-ORG", "O"], ["I-PER", "I-PER"]]
    tagged = read_tags(DatasetDict(train=found), "tokens", "ner_tags", "auto", lambda line: None)
    assert tagged.corpus["train"]["tags"][:] == [["B-ORG", "O"], ["B-PER", "I-PER"]]


def test_words_may_have_spaces_where_tabs_are_between(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("New York\tB-LOC\n\u00a0\u200b\tO\n" * 1001 + "\n", encoding="utf-8")
    assert read(path)["train"]["tokens"][:] == [["New York", "\u00a0\u200b"] * 1001]


def test_what_is_no_conll_is_one_line(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("EU B-ORG\n\nalone\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"train.conll, line 3: only one column; give a word"):
        read(path)
    with pytest.raises(
        UserError, match=r"a conll file has words and tags only, and no column 'label'  .setting: data.x"
    ):
        read(path, label="data.x")
    with pytest.raises(UserError, match="a conll file has words and tags only, and no column 'text'"):
        load_corpus(files={"train": str(path)})
