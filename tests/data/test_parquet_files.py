"""Parquet: text of every Arrow type, nested columns, and columns that nobody asked for."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from decero.data.corpus import load_corpus, open_corpus
from decero.errors import UserError


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return {"train": str(path)}


def streamed(files, **settings):
    texts = open_corpus(streaming=True, files=files, **settings)["train"]
    return [text for _, window in texts.windows(0, 0, {"open": [], "next": 0}) for text in window]


@pytest.mark.parametrize("kind", ["string_view", "large_string", "binary", "large_binary", "binary_view", "dictionary"])
def test_text_of_every_arrow_type_is_text(tmp_path, kind):
    texts = pa.array(["a", None, "ñ"])
    column = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(pa, kind)())
    files = write(tmp_path / "x.parquet", text=column, label=column)
    rows = load_corpus(files=files, columns={"label": "data.label_column"})["train"]
    assert rows["text"][:] == rows["label"][:] == streamed(files) == ["a", None, "ñ"]
    assert rows.features == Features({"text": Value("string"), "label": Value("string")})


def test_a_nested_parquet_column_is_addressed_with_dots(tmp_path):
    pairs = pa.array([{"en": "a", "es": "b"}, {"en": "c", "es": None}, None])
    files = write(tmp_path / "x.parquet", translation=pairs)
    rows = load_corpus(files=files, text_column="translation.en", columns={"translation.es": "target"})["train"]
    assert [list(row.values()) for row in rows] == [["a", "b"], ["c", None], [None, None]]
    assert streamed(files, text_column="translation.en") == ["a", "c", None]
    with pytest.raises(UserError, match=r"no column 'translation\.fr'; did you mean translation\.es"):
        load_corpus(files=files, text_column="translation.fr")


def test_other_columns_of_other_types_stop_nothing(tmp_path):
    write(tmp_path / "1.parquet", text=["a"], n=[1], m=pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())))
    write(tmp_path / "2.parquet", n=["s"], text=pa.array(["b"]).cast(pa.large_string()))
    for columns in ({}, None):
        assert load_corpus(files={"train": str(tmp_path)}, columns=columns)["train"].to_list() == [
            {"text": "a"}, {"text": "b"}
        ]  # fmt: skip


def test_names_of_classes_are_kept(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).to_parquet(tmp_path / "x.parquet")
    assert load_corpus(files={"train": str(tmp_path / "x.parquet")})["train"].features == features


@pytest.mark.parametrize(
    ("column", "line"),
    [
        (pa.array([b"\xff"]), "x.parquet, after row 0: cannot read text: Invalid UTF8"),
        (pa.array([3]), "column 'text' holds int64, not text"),
    ],
)
def test_a_column_without_text_is_refused(tmp_path, column, line):
    with pytest.raises(UserError, match=line):
        load_corpus(files=write(tmp_path / "x.parquet", text=column), columns={})


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(UserError, match=r"x\.parquet: cannot read it as parquet"):
        load_corpus(files={"train": str(tmp_path / "x.parquet")})
