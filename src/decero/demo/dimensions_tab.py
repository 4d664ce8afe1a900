"""The tab of a demo with the sizes and the parameters of the model."""

import html

import gradio as gr

from decero.demo.parts import bars
from decero.explain.parameter_parts import parts_of
from decero.explain.stack_sizes import LABELS, dimensions_of, written
from decero.inference.loading import Loaded


def dimensions_tab(loaded: Loaded) -> None:
    """Put two tables into the tab that is open."""
    stacks, parts = dimensions_of(loaded.model), parts_of(loaded.model)
    total = sum(parts.values())
    head = "".join(f"<th>{html.escape(name)}</th>" for name in stacks) if len(stacks) > 1 else "<th>size</th>"
    rows = [
        f'<tr><th scope="row">{label}</th>'
        + "".join(f"<td>{written(sizes[name]) if name in sizes else '-'}</td>" for sizes in stacks.values())
        + "</tr>"
        for name, label in LABELS.items()
        if any(name in sizes for sizes in stacks.values())
    ]
    gr.HTML(f'<table class="bars"><tr><th>dimension</th>{head}</tr>{"".join(rows)}</table>', padding=False)
    gr.HTML(bars([(part, number / total) for part, number in parts.items()], f"{total:,} parameters"), padding=False)
