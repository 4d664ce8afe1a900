"""The tab of a demo that shows the attention of every head for one text: the page of `decero explain`."""

import html
from dataclasses import replace
from typing import Any

import gradio as gr

from decero.demo.parts import bind, place_of_message, short_name, text_of
from decero.explain.explaining import Explainer
from decero.inference import reads_pairs
from decero.inference.loading import Loaded


def attention_tab(loaded: Loaded) -> None:
    """Put a text and the page of its attention into the tab that is open."""
    boxes = [gr.Textbox(label="Text", lines=2, max_lines=10)]
    names = ["text_b"] if reads_pairs(loaded) else []
    names += ["target"] if loaded.model.config.is_encoder_decoder else []
    labels = {"text_b": "Second text", "target": "Answer (empty: the model writes it)"}
    boxes += [gr.Textbox(label=labels[name], lines=2, max_lines=10) for name in names]
    button = gr.Button("Show the attention", variant="primary")
    said, shown = place_of_message(), gr.HTML("", padding=False)

    def answer(text: str, *values: Any) -> str:
        *more, _ = values
        return draw(loaded, text_of(text), {name: each for name, each in zip(names, more, strict=True) if each})

    bind(button, boxes, answer, [shown], said)


def draw(loaded: Loaded, text: str, more: dict[str, str]) -> str:
    """Return a frame of HTML with the page. more: the second text of a pair, or the answer."""
    texts = (text, more["text_b"]) if "text_b" in more else text
    found = Explainer(replace(loaded, name=short_name(loaded)), [texts], target=more.get("target")).page(0)
    source = html.escape(found, quote=True)
    return f'<iframe class="attention" title="Attention" sandbox="allow-scripts" srcdoc="{source}"></iframe>'
