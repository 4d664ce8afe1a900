"""YAML files: whatever a file holds, one line says what is wrong, and nothing waits or fills memory."""

import os
import socket
import time

import pytest

from decero.config.yaml_files import MOST_BYTES, put, read_yaml, yaml_value
from decero.errors import UserError

BOMB = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))
TEXTS = {
    "3,000 nested lists": ("a: " + "[" * 3000 + "]" * 3000, "nested more than 32 levels"),
    "lists that do not end": ("a: " + "[" * 100_000, "nested more than 32 levels"),
    "3,000 nested mappings": ("a: " + "{b: " * 3000 + "1" + "}" * 3000, "nested more than 32 levels"),
    "300 indented mappings": ("".join(f"{' ' * i}a:\n" for i in range(300)), "nested more than 32 levels"),
    "an integer of 5,000 digits": ("a: " + "9" * 5000, "cannot read this as YAML: Exceeds the limit"),
    "an integer of 400 digits": ("a: {b: " + "9" * 400 + "}", "an integer of 1329 bits; give one of at most 64 bits"),
    "an alias bomb": (BOMB, "more than 100,000 values"),
    "a bomb of merged mappings": (MERGES, "more than 100,000 values"),
    "a list that contains itself": ("a: &x [1, *x]", "alias *x is inside the value that it repeats"),
    "a mapping merged into itself": ("a: &x {<<: *x}", "alias *x is inside the value that it repeats"),
    "an unknown alias": ("a: *nothing", "cannot read this as YAML: found undefined alias"),
    "a key twice": ("a: 1\na: 2", "line 2: cannot read this as YAML: found duplicate key"),
    "a tag of Python": ("a: !!python/object/apply:os.system [ls]", "tags such as"),
    "a tag of a number": ("a: !!float x", "line 1: tags such as tag:yaml.org,2002:float are not supported"),
    "a tag of bytes": ("a: !!binary aGVsbG8=", "tags such as tag:yaml.org,2002:binary are not supported"),
    "a tag on a mapping": ("a: !thing {b: 1}", "tags such as !thing are not supported"),
    "a date": ("a: 2020-01-02", "2020-01-02 is read as a date; put it in quotes"),
    "a day that does not exist": ("a: 2020-13-45", "cannot read this as YAML: month must be in 1..12"),
    "a key that is a list": ("a: {[1, 2]: 3}", "is no name; write it in quotes"),
    "a key that is null": ("a: {null: 3}", "the key None is no name"),
    "two documents": ("a: 1\n---\nb: 2", "but found another document"),
    "a NUL": ("a: \0", "cannot read this as YAML: unacceptable character"),
    "a NUL that is spelt out": ('a: {b: "\\0"}', "holds a NUL character or is not UTF-8"),
    "half a surrogate pair": ('a: "\\ud800"', "holds a NUL character or is not UTF-8"),
    "a tab as indent": ("a:\n\tb: 1", "line 2: cannot read this as YAML"),
    "a list": ("- a\n- b", "contains no settings"),
    "nothing": ("", "contains no settings"),
    "an equals sign": ("a: =", "cannot read this as YAML"),
}
BYTES = {
    "UTF-16": ("a: 1\n".encode("utf-16"), "line 1: cannot read this as YAML: byte 0xff is not UTF-8; save the file as"),
    "Latin-1": ("a: 1\nb: año\n".encode("latin-1"), "line 2: cannot read this as YAML: byte 0xf1 is not UTF-8"),
    "zeros": (bytes(100), "cannot read this as YAML: unacceptable character"),
    "a gzip file": (b"\x1f\x8b\x08" + bytes(9), "byte 0x8b is not UTF-8"),
    "too many bytes": (b"#" * (MOST_BYTES + 1), "1,000,001 bytes; such a file has at most 1,000,000"),
}


def refusal(act, *arguments):
    """Return the one line of a refusal; check that it comes fast."""
    began = time.monotonic()
    with pytest.raises(UserError) as refused:
        act(*arguments)
    assert time.monotonic() - began < 20
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("kind", TEXTS)
def test_odd_yaml_is_refused_in_one_line(kind, tmp_path):
    text, line = TEXTS[kind]
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    said = refusal(read_yaml, path)
    assert str(path) in said
    assert line in said


@pytest.mark.parametrize("kind", BYTES)
def test_other_bytes_are_refused_in_one_line(kind, tmp_path):
    content, line = BYTES[kind]
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    assert line in refusal(read_yaml, path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[" * 3000, "nested more than 32 levels"),
        ("9" * 5000, "Exceeds the limit"),
        ("9" * 100, "at most 64 bits"),
        ("!!python/name:os.system x", "tags such as"),
        ("&x [*x]", "alias *x is inside"),
        ("2020-01-02", "is read as a date"),
        ("\udcff", "unacceptable character"),
        ("[", "put it in quotes"),
    ],
)
def test_odd_values_of_the_command_line_give_one_line(text, line):
    said = refusal(yaml_value, f"model.overrides.a={text}", text)
    assert said.startswith("command line: model.overrides.a=")
    assert line in said


def test_a_key_of_3000_levels_is_refused():
    word = ".".join("a" * 3000)
    assert "3000 levels; settings have at most 32" in refusal(put, {}, word.split("."), 1, word)


def test_a_section_that_is_null_can_be_set():
    settings = {"peft": None, "data": {"where": None}}
    put(settings, ["peft", "r"], 4, "peft.r=4")
    put(settings, ["data", "where", "lang"], "es", "data.where.lang=es")
    assert settings == {"peft": {"r": 4}, "data": {"where": {"lang": "es"}}}


def test_what_yaml_takes_for_a_comment_is_refused():
    assert "what follows ' #' would be lost; put the value in quotes" in refusal(yaml_value, "a=x #1.csv", "x #1.csv")
    assert yaml_value("a=x", "'data/a #1.csv'") == "data/a #1.csv"
    assert yaml_value("a=x", "a#1.csv") == "a#1.csv"


def test_ordinary_yaml_is_read_as_before(tmp_path):
    path = tmp_path / "run.yaml"
    text = "a: &x {b: 1e-3, c: no, d: [1, ~, true]}\ne: *x\nf: {<<: *x, c: 'yes'}\ng: {0: zero}\nh: año\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a byte order mark
    inner = {"b": 1e-3, "c": "no", "d": [1, None, True]}
    assert read_yaml(path) == {"a": inner, "e": inner, "f": inner | {"c": "yes"}, "g": {0: "zero"}, "h": "año"}


def test_a_path_that_is_no_file_gives_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    (tmp_path / "lost.yaml").symlink_to(tmp_path / "gone.yaml")
    (tmp_path / "run.yaml").write_text("a: 1")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket has at most 108 characters
        server.bind("socket.yaml")
        os.chdir(here)
        for path, line in {
            tmp_path: "this is a folder; give a file",
            tmp_path / "pipe.yaml": "this is a pipe",
            tmp_path / "socket.yaml": "this is a socket",
            tmp_path / "loop.yaml": "Too many levels of symbolic links",
            tmp_path / "lost.yaml": "no such file; the link leads nowhere",
            tmp_path / "rum.yaml": "no such file; did you mean",
            tmp_path / "run.yaml" / "x": "no such file",
            tmp_path / ("n" * 300): "File name too long",
            "/dev/zero": "this is a device",
            "a\0b": "cannot read this file",
        }.items():
            assert line in refusal(read_yaml, path)
