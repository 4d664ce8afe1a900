"""Write an answer as a line of text or of JSON."""

import json
from collections.abc import Callable
from typing import Any


def one_line(text: str) -> str:
    return " ".join(text.splitlines())


def to_json(**fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _label(text: Any, found: dict[str, float]) -> str:
    """Write the likeliest label and its probability, or the name and the value of a regression, with a tab between."""
    return "\t".join(f"{name}\t{value:.4f}" for name, value in list(found.items())[:1])


def _labels(text: Any, found: dict[str, float]) -> str:
    texts = {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
    return to_json(**texts, labels=found)


def _written(text: str, answer: str) -> str:
    return to_json(text=text, output=answer)


def _holes(text: str, filled: Any) -> str:
    holes = [[{"token": token, "probability": p} for token, p in hole] for hole in filled.holes]
    return to_json(text=text, output=filled.text, holes=holes)


WRITES: tuple[Callable, Callable] = (lambda text, answer: one_line(answer), _written)
# command -> (write as text, write as JSON), each called with a text and its answer
TO_LINE: dict[str, tuple[Callable, Callable]] = {
    "translate": WRITES,
    "summarize": WRITES,
    "generate": WRITES,
    "fill": (lambda text, filled: one_line(filled.text), _holes),
    "classify": (_label, _labels),
}
