"""Parts that the tabs of a demo share: messages of one line, bars, and the order of the boxes."""

import html
import re
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import gradio as gr

from decero.errors import UserError, root_line
from decero.inference.loading import Loaded

ONE_AT_A_TIME = "model"  # all tabs use one model, so one request runs at a time


def guarded(answer: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """Return a handler that gives `outputs` values and one message.

    `answer(*values, warn)` returns one value, or a tuple. A UserError becomes the message, and so does any other error,
    whose traceback goes to standard error. Warnings become a note. After an error the outputs are empty.
    """

    def handler(*values: Any) -> Any:
        notes: list[str] = []
        try:
            found = answer(*values, notes.append)
        except Exception as error:  # a model of another author may raise anything
            return (*[None] * outputs, error_message(error))
        return (*(found if isinstance(found, tuple) else (found,)), note(notes))

    return handler


def error_message(error: Exception) -> str:
    """Return an error as one line of HTML. The traceback of any but a UserError goes to standard error."""
    if isinstance(error, UserError):
        return message(str(error))
    traceback.print_exception(error)
    return message(f"{type(error).__name__}: {root_line(error)}")


def note(warnings: list[str]) -> str:
    """Return warnings as a line of HTML, "" for none. A text is always the first line here, which is left out."""
    lines = dict.fromkeys(re.sub(r"^line 1: ", "", line) for line in warnings)
    return message(". ".join(lines), "note") if lines else ""


def message(text: str, kind: str = "error") -> str:
    """Return a line of HTML that screen readers announce."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="said-line {kind}" role="{role}">{html.escape(" ".join(text.split()))}</p>'


def bars(rows: Iterable[tuple[str, float]], caption: str = "") -> str:
    """Return a table of HTML with a bar for each (name, share between 0 and 1)."""
    head = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    lines = [
        f'<tr><th scope="row">{html.escape(name)}</th><td><div class="bar" style="width:{100 * share:.1f}%"></div></td>'
        f'<td class="number">{_percent(share)}</td></tr>'
        for name, share in rows
    ]
    return f'<table class="bars">{head}{"".join(lines)}</table>'


def _percent(share: float) -> str:
    return "&lt; 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def text_of(value: str | None, what: str = "text") -> str:
    """Return a text that somebody typed. Raises UserError for an empty one."""
    if not (value or "").strip():
        raise UserError(f"the {what} is empty; write one")
    return str(value)


def bind(button: Any, boxes: list[Any], answer: Callable[..., Any], outputs: list[Any], said: Any) -> None:
    """Answer when the button is pressed, or Enter in a box of one line. said: the place of the message."""
    handler = guarded(answer, len(outputs))
    options: dict[str, Any] = {"inputs": boxes, "outputs": [*outputs, said], "api_visibility": "private"}
    options["concurrency_id"] = ONE_AT_A_TIME
    button.click(handler, **options)
    for box in boxes:
        if isinstance(box, gr.Textbox) and box.lines == 1:
            box.submit(handler, **options)


def place_of_message() -> Any:
    """Return an empty place for a message."""
    return gr.HTML("", padding=False, elem_classes="said")


def short_name(loaded: Loaded) -> str:
    """Return the last part of a model's name; `runs/x/model` is x."""
    name = loaded.name.rstrip("/").removesuffix("/model")
    return name.rpartition("/")[2] or loaded.name
