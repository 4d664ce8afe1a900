"""JSON Lines: one type a column, numbers among texts as written, and the line of what is no JSON."""

import pytest
from datasets import DatasetDict

from decero.data.corpus import load_corpus, open_corpus
from decero.data.labels import encode_labels
from decero.errors import UserError


def read(folder, content, columns=None, text_column="text"):
    (folder / "x.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    files = {"train": str(folder / "x.jsonl")}
    texts = open_corpus(streaming=True, files=files, text_column=text_column)["train"]
    streamed = [text for _, window in texts.windows(0, 0, {"open": [], "next": 0}) for text in window]
    rows = load_corpus(files=files, columns=columns, text_column=text_column)["train"]
    assert rows[text_column][:] == streamed
    return rows


def test_numbers_among_texts_stay_as_written(tmp_path):
    rows = read(tmp_path, '{"text": "a"}\n{"text": 1.10}\n{"text": 1e3}\n{"text": true}\n{"text": null}\n{"n": 1}\n')
    assert rows["text"][:] == ["a", "1.10", "1e3", "true", None, None]


def test_dates_and_words_stay_text(tmp_path):
    rows = read(tmp_path, '{"text": "2020-01-01", "label": "2020-01-01"}\n{"text": "None", "label": "NA"}\n')
    assert rows["text"][:] == ["2020-01-01", "None"]
    assert rows["label"][:] == ["2020-01-01", "NA"]


NOTES = ['"x"', "1", "[1, 2]", '{"a": [1.50]}', "9" * 5000, r'"\ud800"', "[" * 200 + "]" * 200]


def test_a_column_nobody_asked_for_stops_nothing(tmp_path):
    content = "".join(f'{{"text": "{i}", "note": {note}}}\n' for i, note in enumerate(NOTES))
    assert read(tmp_path, content, columns={}).to_list() == [{"text": str(i)} for i in range(len(NOTES))]
    assert read(tmp_path, content)["note"][:5] == ["x", "1", "[1, 2]", '{"a": [1.5]}', "9" * 5000]


def test_files_with_other_columns_are_read_together(tmp_path):
    (tmp_path / "1.jsonl").write_text('{"text": "a", "n": 1, "label": "x"}\n')
    (tmp_path / "2.jsonl").write_text('{"label": "y", "n": "s", "m": 2, "text": "b"}\n')
    rows = load_corpus(files={"train": str(tmp_path / "*.jsonl")}, columns={"label": "data.label_column"})["train"]
    assert rows.to_list() == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


def test_a_nested_column_is_addressed_with_dots(tmp_path):
    content = '{"t": {"en": "a", "es": "b"}}\n{"t": null}\n{"t": {"es": "c"}, "t.en": "d"}\n'
    rows = read(tmp_path, content, columns={"t.es": "target_column"}, text_column="t.en")
    assert rows.to_list() == [{"t.en": "a", "t.es": "b"}, {"t.en": None, "t.es": None}, {"t.en": "d", "t.es": "c"}]
    with pytest.raises(UserError, match=r"no column 't\.fr'; columns: t\.en, t\.es"):
        read(tmp_path, content, text_column="t.fr")


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b\xe2\x80\xa8c"}',
        '[\n {"text": "a"},\n {"text": "b\u2028c"}]\n',
        '["a", "b\u2028c"]',
    ],
)
def test_marks_blank_lines_and_arrays_are_read(tmp_path, content):
    assert read(tmp_path, content)["text"][:] == ["a", "b\u2028c"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"text": "a"}\nfoo\n', "line 2: not JSON: Expecting value at character 1"),
        ('{"text": "a"},\n{"text": "b"},\n', "line 1: a comma follows the object; remove it"),
        ('{\n"text": "a"\n}\n', "write each object in one line"),
        ('[{"text": "a"},\n{"text": "b"},]\n', "line 2: not JSON"),
        ('{"text": "a"}\n["b"]\n', "line 2: holds a list, not an object"),
        (
            '{"text": "a"}\n\n{"text": ["b"]}\n',
            "line 3: column 'text' holds a list or an object here, but elsewhere text",
        ),
        (
            '{"text": ["b", 1]}\n{"text": ["b"]}\n',
            "line 1: column 'text' holds [\"b\", 1], but the column holds list<item: string>; give it one type",
        ),
        (
            '{"text": [1]}\n{"text": [2]}\n{"text": ["b"]}\n',
            "line 3: column 'text' holds a list or an object here, but elsewhere another list or object (",
        ),
        ('{"text": "a"}\n{"text": "a", "text": "b"}\n', "line 2: the key 'text' is there twice"),
        ('{"text": "a"}\n{"text": "\\ud800"}\n', "line 2: column 'text' holds half a character"),
        (
            '{"text": "a", "x": ' + "[" * 99_999 + "]" * 99_999 + "}\n",
            "line 1: its lists or objects are nested too deep",
        ),
        ('{"txt": "a"}\n', "x.jsonl: there is no column 'text'; did you mean txt?"),
    ],
)
def test_what_is_no_row_is_named_with_its_line(tmp_path, content, line):
    with pytest.raises(UserError) as refused:
        read(tmp_path, content)
    assert line in str(refused.value)


def test_numbers_of_a_label_stay_as_they_are_written(tmp_path):
    content = "".join(f'{{"text": "a", "label": {label}, "n": {label}}}\n' for label in ("1.10", "1.1", "2", "1e3"))
    rows = read(tmp_path, content, columns={"label": "data.label_column"})
    assert rows["label"][:] == ["1.10", "1.1", "2", "1e3"]
    assert read(tmp_path, content)["n"][:] == [1.1, 1.1, 2.0, 1000.0]
    whole = '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n'
    assert read(tmp_path, whole, columns={"label": "data.label_column"})["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("columns", "kind", "encoded"),
    [("label", "regression", [0.5, 1.0, -2.0]), (["a", "b"], "multi_label_classification", [[1, 0], [0, 1], [1, 1]])],
)
def test_numbers_with_a_point_are_still_numbers(tmp_path, columns, kind, encoded):
    rows = [(0.5, 1.0, 0), (1, 0.0, 1), (-2, 1, 1)]
    content = "".join(f'{{"text": "t", "label": {v}, "a": {a}, "b": {b}}}\n' for v, a, b in rows)
    wanted = dict.fromkeys([columns] if isinstance(columns, str) else columns, "data.label_column")
    train = read(tmp_path, content, columns=wanted)
    assert encode_labels(DatasetDict(train=train), columns, kind)[0]["train"]["labels"][:] == encoded


@pytest.mark.parametrize("other", ['{"content": "b"}\n{"content": "c"}\n', '[{"content": "b"}]', "{}\n"])
def test_a_file_without_the_column_is_named(tmp_path, other):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").write_text(other)
    files = {"train": str(tmp_path / "*.jsonl")}
    with pytest.raises(UserError, match=r"b\.jsonl: there is no column 'text'; .*\(setting: data.text_column\)"):
        load_corpus(files=files)
    texts = open_corpus(streaming=True, files=files)["train"]
    with pytest.raises(UserError, match=r"b\.jsonl: there is no column 'text'"):
        list(texts.windows(0, 0, {"open": [], "next": 0}))
    (tmp_path / "b.jsonl").write_text("\n")
    assert load_corpus(files=files)["train"]["text"][:] == ["a"]


@pytest.mark.parametrize(
    ("content", "column", "line"),
    [
        ('{"año": "a", "año": "b"}\n', "año", "line 1: the key 'año' is there twice; keep one"),
        ('{"a\\u00f1o": "a", "a\\u00F1o": "b"}\n', "año", "line 1: the key 'año' is there twice"),
        ('[{"text": "a"}, \n{"text": "a", "text": "b"}]', "text", "item 2: the key 'text' is there twice"),
        ('{"t": {"en": "a", "en": "b"}}\n', "t.en", "line 1: the key 'en' is there twice"),
        ('{"t": {"en": "a"}, "t": {"es": "b"}}\n', "t.en", "line 1: the key 't' is there twice"),
        ('{"t": {"u.en": "a", "u.en": "b"}}\n', "t.u.en", "line 1: the key 'u.en' is there twice"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path, content, column, line):
    with pytest.raises(UserError, match=line):
        read(tmp_path, content, text_column=column)


def test_the_same_key_elsewhere_is_no_harm(tmp_path):
    content = '{"en": "text", "t": {"en": "a", "x": {"en": 1, "en": 2}}, "x": 1, "x": 2, "text": "t"}\n'
    assert read(tmp_path, content, columns={}, text_column="t.en")["t.en"][:] == ["a"]
    assert read(tmp_path, content, columns={})["text"][:] == ["t"]


def test_numbers_of_an_array_stay_as_they_are_written(tmp_path):
    content = ' [ {"text": "a", "label": 1.10 }\n,\r\n\t{"text": 1e3, "label": 1.1},{"text": "[,]", "label": 2}\n ] '
    rows = read(tmp_path, content, columns={"label": "data.label_column"})
    assert rows.to_list() == [
        {"text": "a", "label": "1.10"}, {"text": "1e3", "label": "1.1"}, {"text": "[,]", "label": "2"},
    ]  # fmt: skip
