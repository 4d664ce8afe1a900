"""What must not travel with a record: local folders, passwords, tokens. And what stays readable around them."""

import time

import pytest
from ruamel.yaml import YAML

from decero.hub.private import without_paths


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{train: /home/jane/a.csv, test: b}", "{train: a.csv, test: b}"),
        ("[/home/jane doe/a.csv,/mnt/jane/b.csv]", "[a.csv,b.csv]"),
        ("{train: /home/jane/*.csv, test: ../jane/b}", '{train: "*.csv", test: b}'),
        ("{train: '/home/jane, doe/a.csv', test: b}", "{train: 'a.csv', test: b}"),
        ("{train: /home/o'jane/a.csv, test: /home/o'jane/b.csv}", "{train: a.csv, test: b.csv}"),
        ("{a: {b: /mnt/jane/c, d: [C:\\Users\\jane\\e.txt, 3]}, f: 1}", "{a: {b: c, d: [e.txt, 3]}, f: 1}"),
        ("{train: https://jane:pw@host.org/a.csv, test: /mnt/jane/b}", "{train: https://host.org/a.csv, test: b}"),
    ],
)
def test_flow_mappings_keep_their_keys_and_remain_yaml(before, after):
    assert without_paths(before) == after
    command = f"finetune.py /mnt/jane/c.yaml data.files={before} seed=1"
    assert without_paths(command) == f"finetune.py c.yaml data.files={after} seed=1"
    assert YAML(typ="safe", pure=True).load(after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("https://jane:pw@host.org/a.csv", "https://host.org/a.csv"),
        ("https://jane:p/w@host.org:80/a", "https://host.org:80/a"),
        ("https://jane:p@w@host.org/a", "https://host.org/a"),
        ("s3://jane:secret@bucket/a", "s3://bucket/a"),
        ("x.py proxy=jane:secret@host.org:80 seed=1", "x.py proxy=host.org:80 seed=1"),
        ("https://host.org/a?version=2&api_key=secret", "https://host.org/a?version=2&api_key=REDACTED"),
        ("https://host.org/a?x=1&X-Amz-Signature=secret", "https://host.org/a?x=1&X-Amz-Signature=REDACTED"),
        ("x.py --token secret HF_TOKEN=secret", "x.py --token REDACTED HF_TOKEN=REDACTED"),
        ("{hub: {token: secret}, seed: 1}", "{hub: {token: REDACTED}, seed: 1}"),
        ("a hf_AbcDefGhi123 b", "a REDACTED b"),
        ("/mnt/jane/a https://host.org/b /mnt/jane/c", "a https://host.org/b c"),
        ("model:/mnt/jane/c: no such folder", "model:c: no such folder"),
    ],
)
def test_passwords_and_tokens_do_not_travel(before, after):
    assert without_paths({before: [before]}) == {after: [after]}


def test_a_setting_named_like_a_secret_is_hidden():
    settings = {"token": "x", "wandb": {"api_key": "y"}, "pad_token": "[PAD]", "use": {"token": True}}
    hidden = {"token": "REDACTED", "wandb": {"api_key": "REDACTED"}, "pad_token": "[PAD]", "use": {"token": True}}
    assert without_paths(settings) == hidden


def test_the_token_of_the_user_is_hidden_everywhere(monkeypatch):
    monkeypatch.setattr("decero.hub.private.get_token", lambda: "of-an-own-hub")
    assert without_paths("x.py a=of-an-own-hub/b") == "x.py a=REDACTED/b"


@pytest.mark.parametrize(
    "text",
    [
        "https://host.org:8080/x/@jane",
        "train[1].csv",
        "package:brown/data",
        "pad_token=[PAD] max_new_tokens=5",
        "a@b c:d",
    ],
)
def test_what_names_nobody_stays_as_it_is(text):
    assert without_paths(text) == text


def test_two_files_of_one_name_both_stay():
    assert without_paths({"/mnt/jane/a.csv": 1, "/mnt/jane/b/a.csv": 2}) == {"a.csv": 1, "a.csv (2)": 2}


@pytest.mark.parametrize("unit", ["/a", "/ a", "a://a:", "a-", "a.", "{", "={'", "user:", "api_", "?a=", "~ ", "\\"])
def test_long_texts_are_cleaned_at_once(unit):
    started = time.perf_counter()
    without_paths(unit * (40_000 // len(unit)))
    assert time.perf_counter() - started < 10  # a quadratic expression needs minutes
