"""Put an engine's part into a model card: how to run the model there, and what was measured."""

import re

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from decero.hub.card_words import words_in
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
    spoken = made.data.language or []
    words = words_in("es" if ([spoken] if isinstance(spoken, str) else list(spoken))[:1] == ["es"] else "en")
    rows = "\n".join(
        f"| {what} | {before:,.{digits}f} | {after:,.{digits}f} |"
        for what, (before, after), digits in (
            (words["engine_weights"], tuple(size / 1e6 for size in measured.size), 1),
            (f"{words['engine_speed']} {measured.what}", measured.speed, 0),
        )
    )
    checks = "".join(f"- {line[0].upper()}{line[1:]}.\n" for line in measured.checks)
    names = {"engine": engine.name, "weights": quantization or "fp32", "kind": type(model).__name__}
    section = (
        f"## {words['engine'].format(**names)}\n\n{words['engine_about'].format(**names)}\n\n{checks}\n"
        f"| {words['engine_threads'].format(threads=measured.threads)} | {words['engine_columns']} |\n"
        f"|:--|--:|--:|\n{rows}\n\n"
    )
    before, found, after = text.partition(f"## {words['measured']}")
    if quantization or engine.task:  # another model than the one whose results the card tells
        made.data.eval_results = made.data.metrics = made.data.model_name = None
        after = f"\n\n{words['engine_results'].format(**names)}{after}"
    if engine.task:
        vars(made.data).pop("widget", None)
        use = f"## {words['use']}\n\n"
        after = re.sub(rf"({re.escape(use)}).*", lambda found: found[1] + words["engine_vectors"], after, count=1)
    made.text = f"{before}{section}{found}{after}"
    return str(made)
