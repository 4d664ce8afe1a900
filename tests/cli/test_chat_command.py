"""decero chat: a line a turn through a pipe; in a terminal, commands and Ctrl-C."""

import io
import json
import signal
from types import SimpleNamespace

import pytest

from decero.cli import chat_command
from decero.cli.main import main
from decero.errors import UserError


class Parrot:
    """Stands for `Conversation`: it repeats what was said, word by word."""

    def __init__(self, loaded, *, warn, **options):
        self.options, self.messages = options, []

    def ask(self, text, say=lambda piece: None, stop=lambda: False):
        if text == "long":
            raise UserError("this turn is too long")
        said = ""
        for word in f"you said\n{text}".split(" "):
            if stop():
                break
            said += f"{word} "
            say(f"{word} ")
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": said.strip()}]
        return said.strip()

    def undo(self):
        found = bool(self.messages)
        del self.messages[-2:]
        return found

    def reset(self):
        self.messages = []


@pytest.fixture
def parrot(monkeypatch):
    made = []
    monkeypatch.setattr("decero.inference.load", lambda name, command, **loading: SimpleNamespace(model=None))
    monkeypatch.setattr("decero.inference.Conversation", lambda *a, **k: made.append(Parrot(*a, **k)) or made[-1])
    monkeypatch.setattr("decero.execution.weight_layout.prepacked_weights", lambda model: io.BytesIO())
    return made


def piped(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


def test_through_a_pipe_a_line_is_a_turn(parrot, monkeypatch, capsys, tmp_path):
    piped(monkeypatch, f"hello\n\nhow are you\n/undo\n/save {tmp_path}/a.jsonl\n/reset\nhi\n/exit\nnever\n")
    main(["chat", "a/model", "--system", "be brief", "--top-p", "0.5", "--max-new-tokens", "7"])
    assert capsys.readouterr().out.splitlines() == ["you said hello", "you said how are you", "you said hi"]
    (row,) = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert [message["content"] for message in row["messages"]] == ["hello", "you said\nhello"]
    assert parrot[0].options["system"] == "be brief"
    assert (parrot[0].options["top_p"], parrot[0].options["max_new_tokens"]) == (0.5, 7)


def test_a_line_with_a_slash_may_be_a_turn(parrot, monkeypatch, capsys):
    piped(monkeypatch, "/usr/bin is what?\n/proc or /var?\n//help\n/exit\n")
    main(["chat", "a/model"])
    said = ["you said /usr/bin is what?", "you said /proc or /var?", "you said /help"]
    assert capsys.readouterr().out.splitlines() == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/rest", "unknown command /rest; did you mean /reset?"),
        ("/undo", "/undo: nothing was said yet"),
        ("/save", "/save: give a file"),
        ("/save x.jsonl", "/save: nothing was said yet"),
        ("hi\n/save /", "/save: /: cannot write this file"),
        ("long", "this turn is too long"),
    ],
)
def test_a_mistake_ends_a_pipe_and_is_said_in_a_terminal(line, said, parrot, monkeypatch, capsys):
    piped(monkeypatch, line)
    with pytest.raises(SystemExit) as end:
        main(["chat", "a/model"])
    assert end.value.code == 2
    assert f"error: {said}" in capsys.readouterr().err
    typed(monkeypatch, [*line.split("\n"), "bye"])
    main(["chat", "a/model"])
    found = capsys.readouterr()
    assert said in found.err
    assert found.out.endswith("you said\nbye \n\n")  # and Ctrl-D


def typed(monkeypatch, lines):
    """Type lines, then Ctrl-D; an exception is raised instead of a line."""
    left = iter(lines)

    def enter(prompt):
        line = next(left, EOFError())
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr("builtins.input", enter)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(parrot, monkeypatch, capsys):
    say = print

    def press(*words, **how):
        say(*words, **how)
        if words and words[0].startswith("stop"):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(chat_command, "print", press, raising=False)
    before = signal.getsignal(signal.SIGINT)
    typed(monkeypatch, ["a b", KeyboardInterrupt(), "stop here and go on", "/help", "c"])
    main(["chat", "a/model"])
    assert signal.getsignal(signal.SIGINT) is before
    found = capsys.readouterr()
    assert "/exit leaves" in found.err
    assert "/undo" in found.err
    talk = [message["content"] for message in parrot[0].messages]
    assert talk == ["a b", "you said\na b", "stop here and go on", "you said\nstop here and go on", "c", "you said\nc"]
