"""Put an engine's part into a model card: how to run the model there, and what was measured."""

import re

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from decero.hub.engines.engine import Engine
from decero.hub.engines.engine_check import Measured


def with_engine(
    card: str, name: str, engine: Engine, model: PreTrainedModel, quantization: str | None, measured: Measured
) -> str:
    """Return a model card whose lines of code run the model in the engine, with a section on what was measured."""
    made = ModelCard(card)
    assert isinstance(made.data, ModelCardData)
    made.data.library_name = engine.library
    made.data.pipeline_tag = engine.task or made.data.pipeline_tag
    made.data.tags = [*(made.data.tags or []), engine.name, *([quantization] if quantization else [])]
    text = re.sub(
        r"```python\n.*?\n```", lambda _: f"```python\n{engine.usage(name, model)}\n```", made.text, count=1, flags=re.S
    )
    rows = "\n".join(
        f"| {what} | {before:,.{digits}f} | {after:,.{digits}f} |"
        for what, (before, after), digits in (
            ("weights, MB", tuple(size / 1e6 for size in measured.size), 1),
            (f"tokens a second {measured.what}", measured.speed, 0),
        )
    )
    checks = "".join(f"- {line[0].upper()}{line[1:]}.\n" for line in measured.checks)
    threads = f"{measured.threads} CPU {'threads' if measured.threads > 1 else 'thread'}"
    section = (
        f"## In {engine.name}\n\nThis folder is for {engine.name}, with {quantization or 'fp32'} weights. "
        f"`decero export` ran it there and compared it with the original {type(model).__name__}:\n\n{checks}\n"
        f"| on {threads} | original | here |\n|:--|--:|--:|\n{rows}\n\n"
    )
    before, found, after = text.partition("## What was measured")
    made.text = f"{before}{section}{found}{after}"
    return str(made)
