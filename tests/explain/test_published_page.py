"""The table of published sizes is what the code says."""

from pathlib import Path

import pytest

from decero.explain.dimensions import inspect_model
from decero.explain.published import KNOWN, published

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "published_sizes.md"


def rows() -> list[list[str]]:
    text = PAGE.read_text(encoding="utf-8")
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip(" `") for cell in line] for line in lines]


def test_the_page_lists_every_known_model():
    assert [row[0] for row in rows()] == [model.name for model in KNOWN]


@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if i % 9 == 0 else [pytest.mark.slow], id=row[0])
                                 for i, row in enumerate(rows())])  # fmt: skip
def test_a_row_of_the_page_is_what_inspect_says(row):
    name, hidden, layers, heads, parameters, source = row
    found = inspect_model(name)
    sizes = next(iter(found.dimensions.values()))
    number = f"{found.parameters:,}" if found.parameters else found.stated
    assert [hidden, layers, heads, parameters] == [
        f"{sizes[size]:,}" for size in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    ] + [number]
    assert source == published(name).source
