"""Paths, globs and folders: an existing name is taken literally, and nothing waits for a pipe."""

import os
import socket

import pytest

from decero.data.corpus import load_corpus, open_corpus, read_parallel
from decero.data.file_paths import find_files
from decero.errors import UserError


def texts(pattern):
    files = {"train": pattern}
    streamed = open_corpus(streaming=True, files=files, sample_by="line")["train"]
    read = load_corpus(files=files, sample_by="line")["train"]["text"][:]
    assert [text for _, window in streamed.windows(0, 0, {"open": [], "next": 0}) for text in window] == read
    return read


@pytest.mark.parametrize("name", ["t[1].txt", "t*.txt", "t?.txt", "z::y.txt", "zip:/t.txt", "p%20 #{a,b}\n.txt"])
def test_an_existing_file_is_taken_literally(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for other in ("t1.txt", "ta.txt", "tab.txt", "z", "y.txt"):
        (tmp_path / other).write_text("wrong\n")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("right\n")
    assert texts(name) == texts(str(path)) == ["right"]


def test_a_suffix_of_a_language_is_text_if_it_is_named(tmp_path, capsys):
    (tmp_path / "news.en").write_text("a\nb\n")
    (tmp_path / "news.es").write_text("c\nd\n")
    assert texts(str(tmp_path / "news.en")) == texts(str(tmp_path / "*.en")) == ["a", "b"]
    assert "news.en: read as txt, because .en names no format" in capsys.readouterr().err
    pairs = read_parallel({"train": [str(tmp_path / "news.en"), str(tmp_path / "news.es")]})
    assert pairs["train"][:] == {"source": ["a", "b"], "target": ["c", "d"]}
    with pytest.raises(UserError, match=r"news\.en: not a txt"):
        texts(str(tmp_path / "news.*"))


def test_parallel_files_are_paired_by_line_feeds_alone(tmp_path):
    odd = ["a\rb", "c\u2028d", "e\x0b\x0c\x1c\x1d\x1e\x85", "", "f"]
    (tmp_path / "a.txt").write_bytes("\n".join(odd).encode())
    (tmp_path / "b.txt").write_bytes(b"1\r\n2\r\n3\r\n4\r\n5\r\n")
    pairs = read_parallel({"train": [str(tmp_path / name) for name in ("a.txt", "b.txt")]})["train"]
    assert pairs["source"][:] == odd
    assert pairs["target"][:] == ["1", "2", "3", "4", "5"]
    (tmp_path / "c.csv").write_text("text\n1\n")
    with pytest.raises(UserError, match=r"c\.csv: parallel\.train takes files with a text a line"):
        read_parallel({"train": [str(tmp_path / "c.csv"), str(tmp_path / "b.txt")]})


def test_a_file_with_carriage_returns_alone_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\rb\rc\r")
    with pytest.raises(UserError, match=r"its lines end with carriage returns alone; convert it: tr "):
        texts(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("pipe.txt", "pipe.txt: this is a pipe, not a file"),
        ("socket.txt", "socket.txt: this is a socket, not a file"),
        ("/dev/null", "/dev/null: this is a device, not a file"),
        ("loop.txt", "loop.txt: a symbolic link that leads to no file"),
        ("empty", "the folder has no txt, jsonl, csv, tsv or parquet file"),
        ("x" * 300, "File name too long"),
        ("x\0.txt", "no such file"),
        ("~nobody-here/x.txt", "no such file"),
        ("**x/*.txt", "no such file"),
        ([], "data.files.train: no path is given"),
        ("", "data.files.train: no path is given"),
        ([""], "data.files.train: no path is given"),
    ],
)
def test_what_is_no_file_is_named_at_once(tmp_path, monkeypatch, pattern, line):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.txt")
    os.symlink("loop.txt", "loop.txt")
    os.mkdir("empty")
    with socket.socket(socket.AF_UNIX) as here:
        here.bind("socket.txt")
        with pytest.raises(UserError, match=line) as refused:
            load_corpus(files={"train": pattern})
    assert "did you mean" not in str(refused.value)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", f"{folder}/secret"))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(UserError, match="secret: Permission denied"):
        load_corpus(files={"train": str(tmp_path)})


def test_an_absent_public_set_names_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file; fetch a public data set like it with: decero data text_en"):
        find_files("train", "data/text_en/train.parquet")
    with pytest.raises(UserError, match="no such file; name a file, a glob or a folder"):
        find_files("train", "data/mine/train.parquet")
    (tmp_path / "data" / "text_en").mkdir(parents=True)
    with pytest.raises(UserError, match="no such file; name a file, a glob or a folder"):
        find_files("train", "data/text_en/train.parquet")
