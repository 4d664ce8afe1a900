"""The command line: a mistake gives one line."""

import errno
import os
import runpy
import subprocess
import sys

import pytest

from decero import errors
from decero.cli.main import COMMANDS, main


def ended(argv, capfd):
    """Run a command; return its exit code and standard error."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    return end.value.code, capfd.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["psh"], "decero: unknown command psh; did you mean push?"),
        (["frobnicate"], "decero: unknown command frobnicate; known: push"),
        (["push", "a", "me/b", "--pubic"], "decero push: unknown option --pubic; did you mean --public?"),
        (["push", "a", "me/b", "--dry-runn=1"], "did you mean --dry-run?"),
        (["push", "a", "me/b", "c"], "decero push: unknown argument c"),
        (["push", "a"], "decero push: the following arguments are required: REPO_ID"),
        ([], "the following arguments are required: COMMAND"),
        (["push", "a", "me/b", "--license", "apache"], "'apache' is no license of the hub; did you mean apache-2.0?"),
        (["push", "a", "me/b", "--language", "Spanish"], "'Spanish' is no code of a language; did you mean es?"),
        (["push", "a", "me/b", "--language", "e"], "'e' is no code of a language; give one such as en or es"),
        (["push", "no/such/folder", "me/b"], "no/such/folder: no such folder"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(argv, said, capfd):
    code, error = ended(argv, capfd)
    assert code == 2
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_help_names_every_command(capfd):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert not end.value.code
    said = capfd.readouterr().out
    for add in COMMANDS:
        assert add.__name__.removeprefix("add_") in said


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {"private": True, "replace": False, "dry_run": False, "license": None, "languages": []}),
        (
            ["--public", "--replace", "--dry-run", "--license", "mit", "--language", "en, es"],
            {"private": False, "replace": True, "dry_run": True, "license": "mit", "languages": ["en", "es"]},
        ),
    ],
)
def test_push_passes_its_options_on(flags, options, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "decero.hub.publish.push", lambda folder, repo_id, **options: asked.update(options, folder=str(folder))
    )
    main(["push", "a/folder", "me/tiny", *flags])
    assert asked == options | {"folder": "a/folder"}


def test_python_m_decero_is_the_same_command(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["decero", "psh"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("decero", run_name="__main__")
    assert end.value.code == 2
    assert "did you mean push?" in capfd.readouterr().err


def test_a_full_disk_gives_one_line(capsys, monkeypatch):
    undone = []
    monkeypatch.setattr(errors, "CLEANUPS", [lambda: undone.append(True)])

    def log():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/metrics.jsonl")

    with pytest.raises(SystemExit) as end:
        errors.run_script(log)
    assert (end.value.code, undone) == (2, [True])
    line = capsys.readouterr().err
    assert line.startswith("error: runs/a/metrics.jsonl: No space left on device; fix this, then start the same")
    assert line.count("\n") == 1

    def programme():
        raise OSError(errno.EBADF, "a fault of ours")

    with pytest.raises(OSError, match="a fault of ours"):
        errors.run_script(programme)


def test_a_closed_pipe_is_not_an_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "recipes/train_tokenizer.py", "--help"]
    said = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    os.close(write)
    assert (said.returncode, said.stderr) == (141, "")
