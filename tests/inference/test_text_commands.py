"""Text commands: a line in, a line out. Once as real processes, else in this process."""

import bz2
import gzip
import io
import json
import lzma
import os
import signal
import subprocess
import sys
import threading

import pytest

from decero.cli.main import main
from decero.cli.text_lines import read_lines
from decero.errors import UserError
from decero.inference import Filled

TEXTS = ["banks gained", "", "the market rose", "shares fell on monday"]
FOUND = {
    "translate": {text: text.upper() for text in TEXTS},
    "summarize": {text: text[:5] for text in TEXTS},
    "generate": {text: text and f"{text}\nand on" for text in TEXTS},
    "fill": {text: Filled(text, [[("a", 0.75), ("b", 0.25)]] if text else []) for text in TEXTS},
    "classify": {text: {"trade": 0.75, "sport": 0.25} if text else {} for text in TEXTS},
    "extract": {
        text: [{"text": f"{word}\n{word}", "label": "X", "score": 0.5} for word in text.split()[:2]] for text in TEXTS
    },
}
PLAIN = {
    "translate": ["BANKS GAINED", "", "THE MARKET ROSE", "SHARES FELL ON MONDAY"],
    "summarize": ["banks", "", "the m", "share"],
    "generate": [text and f"{text} and on" for text in TEXTS],
    "fill": TEXTS,
    "classify": ["trade\t0.7500" if text else "" for text in TEXTS],
    "extract": ["banks banks/X\tgained gained/X", "", "the the/X\tmarket market/X", "shares shares/X\tfell fell/X"],
}
OPTIONS = {
    "translate": ["--beams", "3", "--max-new-tokens", "7", "--prefix", "to Spanish: ", "--too-long", "cut",
                  "--source-lang", "eng_Latn", "--target-lang", "spa_Latn"],
    "summarize": ["--beams", "3", "--max-new-tokens", "7", "--prefix", "sum: ", "--too-long", "cut",
                  "--source-lang", "eng_Latn", "--target-lang", "spa_Latn"],
    "generate": [
        "--beams", "3", "--max-new-tokens", "7", "--prefix", "once ", "--chat", "--temperature", "0.7",
        "--top-p", "0.9", "--seed", "5",
    ],
    "fill": ["--top-k", "3", "--too-long", "cut"],
    "classify": ["--too-long", "cut"],
    "extract": ["--words"],
}  # fmt: skip
HANDED = {"beams": 3, "max_new_tokens": 7, "too_long": "cut", "top_k": 3}
HANDED |= {"source_lang": "eng_Latn", "target_lang": "spa_Latn"}
HANDED |= {"chat": True, "temperature": 0.7, "top_p": 0.9, "seed": 5, "words": True}


@pytest.fixture
def asked(monkeypatch):
    """Record the calls of the inference functions, which answer from a table."""
    asked = {}

    def load(name, command, **loading):
        asked.update(name=name, command=command, loading=loading)
        return name

    def stand_in(command):
        def answer(loaded, texts, *, warn, first_window, **options):
            asked.update(options=options, warn=warn, first_window=first_window)
            return (FOUND[command][text] for text in texts)

        return answer

    monkeypatch.setattr("decero.inference.load", load)
    monkeypatch.setattr("decero.inference.image_answers.reads_pictures", lambda name, **loading: False)
    monkeypatch.setattr("decero.inference.reads_pairs", lambda loaded: loaded == "pair/model")
    for command in FOUND:
        monkeypatch.setattr(f"decero.inference.{command}", stand_in(command))
    return asked


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("command", FOUND)
def test_each_input_line_gives_one_output_line(command, asked, file, capsys):
    main([command, "a/model", file])
    assert capsys.readouterr().out.splitlines() == PLAIN[command]
    main([command, "a/model", "\n".join(TEXTS)])
    assert capsys.readouterr().out.splitlines() == PLAIN[command]
    assert (asked["name"], asked["command"]) == ("a/model", command)


@pytest.mark.parametrize("command", FOUND)
def test_jsonl_gives_one_object_per_line_with_all_results(command, asked, file, capsys):
    main([command, "a/model", file, "--jsonl"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.pop("text") for row in rows] == TEXTS
    if command == "classify":
        assert rows == [{"labels": FOUND[command][text]} for text in TEXTS]
    elif command == "extract":
        assert rows == [{"entities": FOUND[command][text]} for text in TEXTS]
    elif command == "fill":
        hole = [{"token": "a", "probability": 0.75}, {"token": "b", "probability": 0.25}]
        assert rows == [{"output": text, "holes": [hole] if text else []} for text in TEXTS]
    else:
        assert rows == [{"output": FOUND[command][text]} for text in TEXTS]


@pytest.mark.parametrize("words", [["pair/model"], ["a/model", "--pair"]])
def test_each_line_of_pairs_has_two_texts_and_a_tab(words, asked, monkeypatch, tmp_path, capsys):
    read, path = [], tmp_path / "pairs.tsv"
    path.write_text("a soup\ta ferry\n\na soup\t\n", encoding="utf-8")

    def answer(loaded, texts, **options):
        return (read.append(pair) or {"no": 0.75} for pair in texts)

    monkeypatch.setattr("decero.inference.classify", answer)
    main(["classify", words[0], str(path), "--jsonl", *words[1:]])
    assert read == [("a soup", "a ferry"), ("", ""), ("a soup", "")]
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first == {"text": "a soup", "text_pair": "a ferry", "labels": {"no": 0.75}}
    for text, found in (("a soup", "no tab"), ("a\tb\tc", "2 tabs")):
        with pytest.raises(SystemExit):
            main(["classify", words[0], text, *words[1:]])
        assert f"error: line 1: {found}; the model reads pairs: give two texts" in capsys.readouterr().err


@pytest.mark.parametrize("command", FOUND)
def test_every_option_is_passed_on(command, asked):
    main([command, "a/model", "banks gained", *OPTIONS[command], "--batch-tokens", "99"])
    given = OPTIONS[command]
    expected = {name: value for name, value in HANDED.items() if f"--{name.replace('_', '-')}" in given}
    expected |= {"prefix": given[given.index("--prefix") + 1]} if "--prefix" in given else {}
    assert asked["options"] == expected | {"batch_tokens": 99}
    assert asked["loading"] == {"revision": None, "trust_remote_code": False, "bf16": False}
    main([command, "a/model", "banks gained", "--trust-remote-code", "--revision", "abc", "--bf16"])
    assert asked["loading"] == {"revision": "abc", "trust_remote_code": True, "bf16": True}


@pytest.mark.parametrize("command", FOUND)
def test_an_option_may_stand_before_the_text(command, asked, file, capsys):
    main([command, "a/model", *OPTIONS[command], file])
    assert capsys.readouterr().out.splitlines() == PLAIN[command]
    with pytest.raises(SystemExit):
        main([command, "a/model", "-", "--batch-tokens", "99", file])
    assert f"unknown argument {file}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["translate", "m", "t", "--beams", "0"], "0 is not a whole number above 0"),
        (["translate", "m", "t", "--beams", "²"], "² is not a whole number above 0"),
        (["translate", "m", "t", "--beams", "9" * 5000], " is not a whole number above 0"),
        (["translate", "m", "t", "--beam", "2"], "unknown option --beam; did you mean --beams?"),
        (["generate", "m", "t", "--too-long", "cut"], "unknown option --too-long"),
        (["classify", "m", "t", "--too-long", "drop"], "invalid choice: 'drop'"),
        (["translat", "m"], "did you mean translate?"),
        (["fill", "no/such/folder", "a [MASK]"], "no/such/folder"),
        (["fill", "tests/dta", "a [MASK]"], "tests/dta: no such folder; did you mean tests/data?"),
        (["fill", "m", "t", "--trust-remote-code"], "--trust-remote-code needs --revision"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(argv, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_standard_input_is_read_when_there_is_no_text(asked, monkeypatch, capsys):
    for argv in (["translate", "a/model"], ["translate", "a/model", "-"]):
        monkeypatch.setattr(
            "sys.stdin", io.TextIOWrapper(io.BytesIO("\ufeffbanks gained\r\n\nthe market rose".encode()))
        )
        main(argv)
        assert capsys.readouterr().out.splitlines() == ["BANKS GAINED", "", "THE MARKET ROSE"]


def test_a_line_that_is_not_utf8_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"one\ncaf\xe9\n")
    lines, total = read_lines(str(path))
    assert total == 2
    with pytest.raises(UserError, match="line 2 is not UTF-8"):
        list(lines)


@pytest.mark.parametrize("module", [bz2, gzip, lzma])
def test_a_compressed_file_is_read_as_recipes_do(module, tmp_path):
    path = tmp_path / f"texts.txt.{ {bz2: 'bz2', gzip: 'gz', lzma: 'xz'}[module] }"
    with module.open(path, "wt", encoding="utf-8") as file:
        file.write("banks gained\nla ría\n")
    lines, total = read_lines(str(path))
    assert (list(lines), total) == (["banks gained", "la ría"], 2)
    whole = bytearray(path.read_bytes())
    for damaged in (b"no archive", bytes(whole[:20]), bytes(whole[:12] + b"\xff" * 9 + whole[21:])):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot read this file"):
            read_lines(str(path))
    with pytest.raises(UserError, match="no such file"):
        read_lines("gone.txt.zst")


def test_a_pipe_by_name_is_read_once():
    reads, writes = os.pipe()
    os.write(writes, "banks gained\nla ría\n".encode())
    os.close(writes)
    lines, total = read_lines(f"/dev/fd/{reads}")
    assert (list(lines), total) == (["banks gained", "la ría"], None)
    os.close(reads)


def test_an_argument_that_is_not_a_file_is_a_text(tmp_path, monkeypatch):
    (tmp_path / "texts.txt").touch()
    with pytest.raises(UserError, match=r"textss\.txt: no such file; did you mean .*texts\.txt"):
        read_lines(str(tmp_path / "textss.txt"))
    with pytest.raises(UserError, match="this is a folder; give a file with a text a line"):
        read_lines(str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(UserError, match="this is a folder"):
        read_lines(tmp_path.name)
    assert list(read_lines("It is in notes.txt now.")[0]) == ["It is in notes.txt now."]
    assert read_lines("a\0b")[1] == 1
    assert list(read_lines("x" * 10_000)[0]) == ["x" * 10_000]


def test_a_warning_goes_to_standard_error(asked, capsys):
    main(["translate", "a/model", "banks gained"])
    asked["warn"]("line 7: too much")
    assert capsys.readouterr().err.endswith("warning: line 7: too much\n")


KINDS = {
    "translate": "seq2seq",
    "summarize": "seq2seq",
    "generate": "causal",
    "fill": "masked",
    "classify": "classifier",
}


def decero(*argv, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "decero", *argv], env=environment, text=True, **options)


@pytest.mark.parametrize(  # in this process they run above, and in other files
    "command", [pytest.param(each, marks=[] if each in ("translate", "fill") else pytest.mark.slow) for each in KINDS]
)
def test_each_command_as_a_process(command, checkpoint, server, tmp_path):
    text = "the [MASK] rose\n\nbanks [MASK]\n" if command == "fill" else "the market rose\n\nbanks gained\n"
    limit = ["--max-new-tokens", "5"] if command in ("translate", "summarize", "generate") else []
    words = command, checkpoint(KINDS[command], "ours"), "-", *limit
    done = server.run("decero", words, stdin=text.encode(), place=tmp_path)
    assert done.code == 0, done.err
    assert [bool(line) for line in done.out.split("\n")] == [True, False, True, False]
    assert all(line.startswith("warning: line ") for line in done.err.splitlines())


@pytest.mark.slow  # tests/cli/test_main.py closes the pipe of a recipe
def test_a_reader_may_close_the_pipe_early(checkpoint, tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("banks gained on monday\n" * 3000)
    model = checkpoint("classifier", "ours")
    with decero("classify", model, str(path), "--jsonl", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert json.loads(process.stdout.readline())["labels"]
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def interrupted(model):
    """Classify lines of a pipe that stays open, and press Ctrl-C after the first answer."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    keyboard, screen = os.pipe(), os.pipe()
    os.write(keyboard[1], b"banks gained\n" * 32)
    os.dup2(keyboard[0], 0)
    os.dup2(screen[1], 1)

    def press():
        assert os.read(screen[0], 100).decode().startswith(("sport", "trade", "court"))  # as soon as it is there
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    main(["classify", model, "-"])


def test_ctrl_c_leaves_130_and_no_traceback(checkpoint, server, tmp_path):
    program = "tests.inference.test_text_commands:interrupted"
    done = server.run(program, [checkpoint("classifier", "ours")], place=tmp_path)
    assert (done.code, done.err) == (130, "")


@pytest.mark.slow
def test_ctrl_c_ends_a_process_of_its_own(checkpoint):
    model = checkpoint("classifier", "ours")
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Tests that a shell started in the background were told to ignore Ctrl-C, and so were their children.
    pipe["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with decero("classify", model, "-", **pipe) as process:
        process.stdin.write("banks gained\n" * 32)
        process.stdin.flush()
        assert process.stdout.readline().startswith(("sport", "trade", "court"))  # as soon as it is there
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
    assert process.returncode == 130
    assert error == ""


def test_a_pipe_that_nobody_writes_to_and_a_device_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("decero.cli.text_lines.PATIENCE", 0.05)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no program has written to this named pipe"):
        read_lines(str(tmp_path / "pipe"))
    with pytest.raises(UserError, match="/dev/zero: this is a device"):
        read_lines("/dev/zero")


def test_a_pipe_gives_what_a_writer_left_and_went(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = subprocess.Popen(["sh", "-c", f"echo banks gained > {tmp_path}/pipe"])
    lines, _ = read_lines(str(tmp_path / "pipe"))
    writer.wait()
    assert list(lines) == ["banks gained"]
