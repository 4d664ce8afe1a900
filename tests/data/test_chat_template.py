"""Chat templates are programs of strangers: each way to fail is one line, in limited time and memory."""

import resource
import signal

import pytest

from decero.data import chat_template
from decero.data.chat_template import render_chat
from decero.errors import UserError

TURNS = [{"role": "user", "content": "hello"}]
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}"
BAD = {
    "loops": (LOOP + "{% endfor %}{% endfor %}", "does not end within 0.2 s"),
    "writes without end": (LOOP + "x{% endfor %}{% endfor %}", "does not end within 0.2 s"),
    "multiplies": ("{{ 'a' * 10000000000 }}", "needs more than 1 GiB of memory"),
    "pads": ("{{ '%10000000000d' | format(1) }}", "needs more than 1 GiB of memory"),
    "writes much": ("{{ 'a' * 2000000 }}", "writes 2,000,000 characters"),
    "calls itself": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "fails (it calls itself without end)"),
    "has no end": ("{% for m in messages %}", "fails (Unexpected end of template"),
    "lacks a variable": ("{{ a.b.c }}", "fails ('a' is undefined)"),
    "raises": ("{{ raise_exception('one turn only') }}", "fails (one turn only)"),
    "has no such filter": ("{{ 'a' | nofilter }}", "fails (No filter named 'nofilter'.)"),
    "includes a file": ("{% include 'x' %}", "fails (no loader for this environment specified)"),
    "has a wrong type": ("{{ messages[0] + 1 }}", "fails (unsupported operand type(s)"),
    "has no default": ({"tool_use": "x"}, "fails (This model has multiple chat templates"),
}


@pytest.mark.parametrize(("template", "line"), BAD.values(), ids=BAD)
def test_a_template_that_fails_is_one_line(template, line, tokenizer, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    monkeypatch.setattr(tokenizer, "chat_template", template, raising=False)
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with pytest.raises(UserError) as error:
        render_chat(tokenizer, TURNS, "remove --chat")
    assert f"its chat template {line}" in str(error.value)
    assert str(error.value).endswith("; remove --chat")
    assert "\n" not in str(error.value)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_template_renders_as_transformers_does(tokenizer, monkeypatch):
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template, raising=False)
    assert render_chat(tokenizer, TURNS, "") == "<user>hello>"
    assert render_chat(tokenizer, [*TURNS, {"role": "assistant", "content": "hi"}], "") == "<user>hello<assistant>hi"
