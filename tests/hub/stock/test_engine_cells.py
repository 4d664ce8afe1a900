"""The cells that are tested are those that the engines accept, and hold what the guide says."""

import re
from pathlib import Path

import pytest
from tests.hub.stock.engine_cells import CELLS, QUANTIZED

from decero.hub.engines import ENGINES
from decero.hub.families import FAMILIES

GUIDE = (Path(__file__).parents[3] / "docs" / "guides" / "export.md").read_text(encoding="utf-8")
MEASURED = re.findall(r"^\| ([^|`]+) \| `decero export MODEL OUT --to ([^`]+)`", GUIDE, flags=re.M)
HEADS = {
    "sequence": "ForSequenceClassification", "tokens": "ForTokenClassification", "bare": "Model",
    "answers": "ForQuestionAnswering",
}  # fmt: skip
SHAPES = {"encoder-decoder": "ForConditionalGeneration", "decoder": "ForCausalLM"}


def accepted(engine):
    """Return (family, head) of the stock classes that an engine accepts."""
    heads = {family.name: dict(family.heads) for family in reversed(FAMILIES)}  # T5's second table is of the encoder
    return {(name, head) for name, ends in engine.heads.items() for head in ends if head in heads[name]}


def families_in(words):
    return re.findall(r"`([a-z0-9]+)`", words)


@pytest.mark.parametrize("engine", ENGINES)
def test_all_that_an_engine_accepts_is_tried(engine):
    tried = {(model.split(" ")[0], head) for name, model, head in CELLS if name == engine}
    assert tried == accepted(ENGINES[engine])


def test_all_int8_cells_run_in_full_too():
    assert set(QUANTIZED) <= set(CELLS)
    assert {engine for engine, _, _ in QUANTIZED} == {name for name, engine in ENGINES.items() if engine.quantizations}


def test_the_guide_names_all_families_of_each_engine():
    for name, engine in ENGINES.items():
        row = re.search(rf"^\| `{name}` \| `pip [^|]+\|([^|]+)\|", GUIDE, flags=re.M)
        assert row, name
        assert sorted(set(families_in(row[1]))) == sorted(engine.heads), name


def test_all_measured_rows_of_the_guide_are_tried():
    assert len(MEASURED) > 20
    for model, words in MEASURED:
        name, _, detail = model.partition(", ")
        family = name.lower().replace("-", "")
        engine, _, int8 = words.partition(" --quantization ")
        heads = [HEADS[detail]] if detail else list(SHAPES.values())
        assert any((engine, family, head) in (QUANTIZED if int8 else CELLS) for head in heads), (model, words)
