"""csv and tsv: every field as it is written, every row where it is, and the line of what does not fit."""

import pytest

from decero.data.corpus import load_corpus, open_corpus
from decero.errors import UserError

LABEL = {"label": "data.label_column"}


def read(path, content, columns=None, **settings):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_corpus(files={"train": str(path)}, columns=columns, **settings)["train"]


def streamed(path):
    texts = open_corpus(streaming=True, files={"train": str(path)})["train"]
    return [text for _, window in texts.windows(0, 0, {"open": [], "next": 0}) for text in window]


WORDS = ["None", "NA", "null", "nan", "N/A", "True", "01", "1", "1e3", "1.1", "1.10", "2020-01-02", "-1", "x", None]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_fields_are_text_as_they_are_written(tmp_path, kind):
    separator = "," if kind == "csv" else "\t"
    path = tmp_path / f"x.{kind}"
    rows = read(path, f"text{separator}label\n" + "".join(f"{w or ''}{separator}{w or ''}\n" for w in WORDS))
    assert rows["text"][:] == rows["label"][:] == streamed(path) == WORDS


def test_a_tsv_has_a_row_a_line_whatever_its_quotes(tmp_path):
    content = 'text\tlabel\n"The room\tpos\nThe "soup"\tneg\nfine"\t"pos"\n"\tneg\n"said ""yes"""\tpos\n'
    rows = read(tmp_path / "x.tsv", content)
    assert rows["text"][:] == ['"The room', 'The "soup"', 'fine"', '"', 'said "yes"']
    assert rows["label"][:] == ["pos", "neg", '"pos"', "neg", "pos"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('text,label\n"a\n\nb, ""c""",pos\n5" disk,neg\n', ['a\n\nb, "c"', '5" disk']),
        ("text,label\r\na,pos\r\n\r\nb,neg", ["a", "b"]),
        ("\ufefftext, label\na,pos\nb,neg\n", ["a", "b"]),
        ("text,label,\na,pos,\nb,neg,\n", ["a", "b"]),
        ("text,label\na,pos,\nb,neg,\n", ["a", "b"]),
        ("text,label,\na,pos\nb,neg\n", ["a", "b"]),
        ("text,label\na,pos,,\nb,neg,,\n", ["a", "b"]),
        ("text,label,,\na,pos\nb,neg,,,,\n", ["a", "b"]),
        ("text,label\na,pos\n\nb,neg,\n", ["a", "b"]),
        ("sep=,\ntext,label\na,pos\nb,neg\n", ["a", "b"]),
        ("\ufeffsep=;\r\n\r\ntext;label\r\na;pos\r\nb;neg\r\n", ["a", "b"]),
        ('"sep=^"\ntext^label\n"a,^"^pos\nb;^neg^\n', ["a,^", "b;"]),
        (",text,label\n0,a,pos\n1,b,neg\n", ["a", "b"]),
        ("text,label,n,n\na,pos,1,2\nb,neg,3,4\n", ["a", "b"]),
        (
            'text,label\n"a\rb",pos\na\u2028b\x0b\x0c\x1c\x1d\x1e\x85,neg\n',
            ["a\rb", "a\u2028b\x0b\x0c\x1c\x1d\x1e\x85"],
        ),
    ],
)
def test_a_csv_of_any_program_is_read(tmp_path, content, expected):
    rows = read(tmp_path / "x.csv", content, LABEL)
    assert rows["text"][:] == streamed(tmp_path / "x.csv") == expected
    assert rows["label"][:] == ["pos", "neg"]


@pytest.mark.parametrize("more", ["", "\n"])
def test_a_row_of_spaces_in_one_column_is_no_row(more, tmp_path):
    """An empty line elsewhere changes nothing."""
    assert read(tmp_path / "a.csv", f"text\nfoo\n   \n{more}bar\n")["text"][:] == ["foo", "bar"]


@pytest.mark.parametrize(
    ("kind", "content", "line"),
    [
        ("csv", 'text,label\na,pos\n"The room,neg\nb,pos\n"The soup,neg\n', "line 3: a quote opens a field here"),
        ("csv", 'text,label\n"a\nb",pos\nThe room,"neg\nb,pos\n', "line 4: a quote opens a field here"),
        ("csv", "text,label\n\na,pos\nb,neg,shop\n", "line 4: 3 fields, but the header has 2; quote a field that"),
        ("csv", 'text,label\n"a\n\nb",pos\nb\n', "line 5: 1 field, but the header has 2"),
        ("csv", "text,label\na,pos,\nb,c,neg\n", "line 3: 3 fields, but the header has 2"),
        ("csv", "text,label\na,pos,\nb,c,neg,\n", "line 3: 4 fields, but the header has 2"),
        ("csv", "text,label,\na,pos\nb\n", "line 3: 1 field, but the header has 3"),
        ("csv", "sep=;\ntext;label\na;pos\nb;c;neg\n", "line 4: 3 fields, but the header has 2; quote a field that"),
        ("csv", "sep=;\ntext;label;text\na;pos;b\n", "line 2: several columns are named 'text'"),
        ("csv", 'text,label\na "b" c,pos\n,"b"c,neg\n', "line 3: a quote opens a field here"),
        ("csv", "text,label\na\rb,pos\n", "line 2: holds a carriage return that ends no line"),
        ("csv", "text,label,text\na,pos,b\n", "line 1: several columns are named 'text' (fields 1, 3)"),
        (
            "csv",
            "txt,label\na,pos\n",
            "x.csv: there is no column 'text'; did you mean txt?  (setting: data.text_column)",
        ),
        ("csv", "text,labl\na,pos\n", "did you mean labl?  (setting: data.label_column)"),
        ("csv", "text,label\n", "the train split is empty"),
        ("csv", "\n \n", "there is no header"),
        ("tsv", "text\tlabel\na\tpos\nb\tc\tneg\n", "line 3: 3 fields, but the header has 2; replace a tab"),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(tmp_path, kind, content, line):
    with pytest.raises(UserError) as refused:
        read(tmp_path / f"x.{kind}", content, LABEL)
    assert line in str(refused.value)


def test_a_wide_row_far_behind_is_named_with_its_line(tmp_path):
    content = "text,label\n" + '"a\nb",pos\n' * 5000 + "a,b,c\n"
    with pytest.raises(UserError, match="line 10002: 3 fields"):
        read(tmp_path / "x.csv", content)


@pytest.mark.parametrize(
    ("name", "separator", "said"),
    [("x.csv", ";", "semicolons"), ("x.csv", "\t", "tabs"), ("x.csv", "|", "vertical bars"), ("x.tsv", ",", "commas")],
)
def test_another_separator_is_read_and_printed(tmp_path, capsys, name, separator, said):
    rows = read(tmp_path / name, f'text{separator}label\n"a, b"{separator}pos\n')
    assert rows.to_list() == [{"text": "a, b", "label": "pos"}]
    assert f"{name}: read with {said} between the columns" in capsys.readouterr().err


def test_a_tsv_with_quoted_names_is_read_with_quotes(tmp_path, capsys):
    assert read(tmp_path / "x.tsv", '"text"\t"label"\n"a"\t"pos"\n').to_list() == [{"text": "a", "label": "pos"}]
    assert "all names of its header are quoted" in capsys.readouterr().err


def test_only_the_columns_asked_for_are_read(tmp_path):
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    first.write_text("text,label,note\n" + "a,pos,\n" * 3000 + "b,neg,seen\n")
    second.write_text("label,other,text\nneg,1,c\n")
    files = {"train": [str(first), str(second)]}
    rows = load_corpus(files=files, columns=LABEL)["train"]
    assert rows.column_names == ["text", "label"]
    assert rows[-2:] == {"text": ["b", "c"], "label": ["neg", "neg"]}
    assert load_corpus(files=files)["train"][-1] == {"text": "c", "label": "neg", "note": None, "other": "1"}


def test_a_tab_may_be_declared(tmp_path):
    for kind in ("csv", "tsv"):
        rows = read(tmp_path / f"x.{kind}", "sep=\t\ntext\tlabel\na\tpos\t\t\n")
        assert rows.to_list() == [{"text": "a", "label": "pos"}]


def test_a_header_sep_is_no_separator(tmp_path):
    assert read(tmp_path / "x.csv", "sep=a,text\n1,a\n")["sep=a"][:] == ["1"]
