"""Streams: each row once per epoch, also after kills; the same rows as without streaming; errors of one line."""

import gzip
import json
from collections import Counter
from itertools import pairwise, takewhile
from unittest.mock import patch

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import decero.data.stream as streams
from decero.data import parquet_files
from decero.data.causal import tokenize_text
from decero.data.corpus import load_corpus, open_corpus
from decero.data.stream import Stream, Texts
from decero.data.tokenization import tokenize_documents
from decero.errors import UserError

pytestmark = pytest.mark.long


def cut(texts):
    """Cut text n into n % 4 rows of up to four tokens; the first two identify the row."""
    pieces = [(int(text), piece) for text in texts for piece in range(int(text) % 4)]
    return {"input_ids": [[n, piece, 0, 0][: 2 + n % 3] for n, piece in pieces]}


def numbered(size, shards, buffer_size):
    dataset = Dataset.from_dict({"text": [str(n) for n in range(size)]}).to_iterable_dataset(num_shards=shards)
    return Stream(Texts(dataset, "text", buffer_size), cut, 4)


def told(step):
    return step.epoch, step.first, [tuple(row["input_ids"]) for row in step.rows]


def whole(stream, epochs=2, batch=5, in_tokens=False, seed=3):
    """Return all steps of some epochs."""
    return list(
        takewhile(lambda step: step.epoch < epochs, stream.steps(seed, batch, np.asarray if in_tokens else None))
    )


def rows_of(steps, epoch):
    return [tuple(row["input_ids"]) for step in steps if step.epoch == epoch for row in step.rows]


@settings(deadline=None, max_examples=8)
@given(
    size=st.integers(12, 60), shards=st.integers(1, 12), buffer_size=st.integers(1, 70), together=st.integers(1, 30),
    side_by_side=st.integers(1, 5), batch=st.integers(4, 9), in_tokens=st.booleans(), seed=st.integers(0, 99),
    data=st.data(),
)  # fmt: skip
def test_a_run_killed_repeatedly_reads_each_row_once_in_order(
    size, shards, buffer_size, together, side_by_side, batch, in_tokens, seed, data
):
    with patch.object(streams, "TOGETHER", together), patch.object(streams, "SIDE_BY_SIDE", side_by_side):
        expected = whole(numbered(size, shards, buffer_size), 2, batch, in_tokens, seed)
        rows = Counter(tuple(ids) for ids in cut(map(str, range(size)))["input_ids"])
        for epoch in (0, 1):
            assert Counter(rows_of(expected, epoch)) == rows
        got, state = [], None
        while len(got) < len(expected):
            lives = data.draw(st.integers(1, max(2, len(expected) // 2)))
            alive = numbered(size, shards, buffer_size).steps(seed, batch, np.asarray if in_tokens else None, state)
            got += [next(alive) for _ in range(min(lives, len(expected) - len(got)))]
            state = json.loads(json.dumps(got[-1].after))
        assert [told(step) for step in got] == [told(step) for step in expected]


def test_steps_of_rows_are_full_except_the_last_of_an_epoch():
    steps = [step for step in whole(numbered(40, 3, 7)) if step.epoch == 0]
    assert [len(step.rows) for step in steps[:-1]] == [5] * (len(steps) - 1)
    assert len(steps[-1].rows) == 60 % 5 or 5
    assert [step.first for step in steps] == list(range(0, 60, 5))


def test_steps_of_tokens_follow_the_cumulative_sum():
    steps, read = whole(numbered(40, 3, 7), 1, 13, True), 0
    for number, (step, following) in enumerate(pairwise(steps), start=1):
        read += sum(len(row["input_ids"]) for row in step.rows)
        assert read <= number * 13 < read + len(following.rows[0]["input_ids"])


def test_each_epoch_and_seed_has_its_own_order():
    stream = numbered(200, 4, 100)
    steps = whole(stream)
    orders = [rows_of(steps, 0), rows_of(steps, 1), rows_of(whole(stream, 1, seed=4), 0)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(order != sorted(order) for order in orders)
    begun = {row[0] // 50 for row in orders[0][:60]}
    assert begun == {0, 1, 2, 3}  # the first rows come from all four files


def write(folder, kind, files=3, rows=11):
    """Write files of numbered texts and return a glob for them."""
    for number in range(files):
        texts = [str(number * rows + i) for i in range(rows)]
        path = folder / f"{number}.{kind}"
        if kind == "parquet":
            Dataset.from_dict({"text": texts, "other": texts}).to_parquet(path, batch_size=4)
        elif kind == "csv":
            path.write_text("text,other\n" + "".join(f"n{text},x\n" for text in texts))
        elif kind == "txt":
            path.write_text("\n\n".join(texts))
        else:
            lines = "".join(json.dumps({"other": 1, "text": text}) + "\n" for text in texts)
            path.write_bytes(gzip.compress(lines.encode()) if kind.endswith("gz") else lines.encode())
    return str(folder / f"*.{kind}")


def opened(pattern, buffer_size=9, **source):
    return open_corpus(streaming=True, buffer_size=buffer_size, files={"train": pattern}, **source)["train"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "csv", "txt"])
def test_files_of_each_kind_are_read_once_and_resumed(tmp_path, kind):
    pattern = write(tmp_path, kind)

    def begin():
        return Stream(opened(pattern), lambda texts: cut([text.removeprefix("n") for text in texts]), 4)

    steps = whole(begin(), 1, 7)
    assert Counter(rows_of(steps, 0)) == Counter(map(tuple, cut(map(str, range(33)))["input_ids"]))
    for before, after in pairwise(steps):
        state = json.loads(json.dumps(before.after))
        assert told(next(begin().steps(3, 7, None, state))) == told(after)


def test_a_parquet_position_is_found_without_earlier_reads(tmp_path):
    """Earlier row groups are not read, so resuming takes equally long anywhere in a file."""
    Dataset.from_dict({"text": [str(n) for n in range(4000)]}).to_parquet(tmp_path / "x.parquet", batch_size=50)
    real, read = parquet_files.read_table, []

    def watched(*args):
        for table in real(*args):
            read.append(len(table))
            yield table

    texts = opened(str(tmp_path / "x.parquet"), 100)
    steps = whole(Stream(texts, cut, 4), 1, 100)
    with patch.object(parquet_files, "read_table", watched):
        for at in (1, len(steps) - 10):
            read.clear()
            next(Stream(opened(str(tmp_path / "x.parquet"), 100), cut, 4).steps(3, 100, None, steps[at].after))
            assert sum(read) <= 450, at


@pytest.mark.parametrize("how", ["documents", "bare documents", "text"])
def test_a_stream_has_the_rows_of_the_tokenized_corpus(tmp_path, texts, tokenizer, how):
    lines = [*texts, "", "   ", None, *(" ".join(texts[i : i + 4]) for i in range(0, 60, 4))]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    source = {"files": {"train": str(tmp_path / "x.jsonl")}}
    tokenize = {
        "documents": lambda d: tokenize_documents(d, tokenizer, max_length=12),
        "bare documents": lambda d: tokenize_documents(d, tokenizer, max_length=11, special_tokens=False),
        "text": lambda d: tokenize_text(d, tokenizer, max_length=12, start_token="[CLS]"),
    }[how]
    before = tokenizer.backend_tokenizer.truncation
    prepared = tokenize(load_corpus(**source)["train"]).to_list()
    stream = tokenize(open_corpus(streaming=True, buffer_size=20, **source)["train"])
    steps = whole(stream, 1, 8)
    streamed = [
        {name: getattr(v, "tolist", lambda v=v: v)() for name, v in row.items()} for s in steps for row in s.rows
    ]
    assert sorted(map(str, streamed)) == sorted(map(str, prepared))
    assert [row["input_ids"] for row in streamed] != [row["input_ids"] for row in prepared]
    assert stream.first_rows[0]["input_ids"] == prepared[0]["input_ids"]
    assert tokenizer.backend_tokenizer.truncation == before


def test_validation_of_a_stream_is_loaded_up_to_max_rows(tmp_path):
    write(tmp_path, "jsonl", files=1)
    files = {"train": str(tmp_path / "0.jsonl"), "validation": str(tmp_path / "0.jsonl")}
    said = []
    corpus = open_corpus(streaming=True, files=files, max_rows=3, say=said.append)
    assert said == ["train: all rows of the stream; data.max_rows limits validation only"]
    assert corpus["validation"]["text"][:] == ["0", "1", "2"]
    assert len(corpus["train"].first(99)) == 11
    plain = open_corpus(files=files)
    assert [len(plain[split]) for split in ("train", "validation")] == [11, 11]


def test_a_folder_in_the_hubs_layout_is_streamed_by_name(tmp_path):
    for split, kept in {"train": ["1", "2", "3"], "validation": ["5"], "test": ["6"]}.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in kept))
    corpus = open_corpus(streaming=True, name=str(tmp_path))
    assert set(corpus) == {"train", "validation"}
    assert rows_of(whole(Stream(corpus["train"], cut, 4), 1, 3), 0)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({"files": {"train": "FOLDER/none*.jsonl"}}, r"none\*.jsonl: no such file"),
        ({"files": {"train": "FOLDER/x.jsonl"}, "text_column": "txt"}, r"no column 'txt'; did you mean text\?"),
        ({"files": {"train": "FOLDER/x.jsonl"}, "text_column": "number"}, "column 'number' holds int64, not text"),
        ({"files": {"train": "FOLDER/empty.jsonl"}}, r"empty\.jsonl: the file is empty; give it text, or remove it"),
        ({"files": {"train": "FOLDER/blank.jsonl"}}, "the train split is empty"),
        ({"files": {"validation": "FOLDER/x.jsonl"}}, "no train split; found validation; give data.files.train"),
        ({"files": {"trian": "FOLDER/x.jsonl"}}, r"did you mean data\.files\.train\?"),
        (
            {"files": {"train": "FOLDER/x.jsonl"}, "validation_fraction": 0.1},
            r"give data\.files\.validation, or",
        ),
        ({"files": {"train": "FOLDER/x.jsonl"}, "test_fraction": 0.1}, r"data\.test_fraction: cannot split off rows"),
        ({"name": "bbc_news"}, r"remove data\.streaming"),
        ({}, "give exactly one of"),
    ],
)
def test_an_invalid_stream_is_reported_in_one_line(tmp_path, source, line):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "number": 1}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n")
    source = json.loads(json.dumps(source).replace("FOLDER", str(tmp_path)))
    with pytest.raises(UserError, match=line) as refused:
        open_corpus(streaming=True, **source)
    assert "\n" not in str(refused.value)


def test_a_stream_without_one_full_step_or_text_is_refused():
    with pytest.raises(UserError, match=r"ends after 7 rows, before the first step is full; lower .*_size \(now 10\)"):
        whole(numbered(6, 1, 9), batch=10)
    with pytest.raises(UserError, match=r"ends after \d+ tokens, .* lower training\.global_batch_tokens \(now 99\)"):
        whole(numbered(6, 1, 9), batch=99, in_tokens=True)
    for size in (1, 5):  # text 0 has no row
        blank = Dataset.from_dict({"text": ["0"] * size}).to_iterable_dataset()
        stream = Stream(Texts(blank, "text", 3), cut, 4)
        with pytest.raises(UserError, match="no text is left after tokenization; is column 'text' the text"):
            whole(stream)
        with pytest.raises(UserError, match="no text is left after tokenization"):
            _ = stream.first_rows


def test_a_broken_file_is_named_and_resumed_once_fixed(tmp_path):
    pattern = write(tmp_path, "jsonl")
    steps = whole(Stream(opened(pattern), cut, 4), 1, 7)
    broken = tmp_path / "1.jsonl"
    text = broken.read_text()
    broken.write_text(text[:100] + "\n{broken\n")
    with pytest.raises(UserError, match=r"1\.jsonl, line 4: not JSON: .*; fix the file, then --resume"):
        whole(Stream(opened(pattern), cut, 4), 1, 7)
    broken.write_text(text)
    assert told(next(Stream(opened(pattern), cut, 4).steps(3, 7, None, steps[2].after))) == told(steps[3])


def test_a_changed_number_of_files_is_refused(tmp_path):
    pattern = write(tmp_path, "txt")
    steps = whole(Stream(opened(pattern), cut, 4), 1, 7)
    (tmp_path / "9.txt").write_text("7")
    with pytest.raises(UserError, match=r"has 4 files, but had 3 when the run began; restore"):
        next(Stream(opened(pattern), cut, 4).steps(3, 7, None, steps[1].after))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_a_resumed_stream_that_is_shorter_says_so(tmp_path, kind):
    pattern = write(tmp_path, kind)
    steps = whole(Stream(opened(pattern), cut, 4), 1, 7)
    for path in tmp_path.iterdir():
        first = {"jsonl": '{"other": 1, "text": "1"}\n', "txt": "1"}
        if kind == "parquet":
            Dataset.from_dict({"text": ["1"], "other": ["1"]}).to_parquet(path)
        else:
            path.write_text(first[kind])
    with pytest.raises(UserError, match="ends before the place where the run stopped; restore its files"):
        next(Stream(opened(pattern), cut, 4).steps(3, 7, None, steps[-2].after))
