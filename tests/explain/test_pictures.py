"""Pictures: the right cells under the right names, real text in an SVG, equal bytes for equal input."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from tests.explain.recordings import hand_made

from decero.explain.pictures import draw_head, draw_heads, draw_panel, render
from decero.explain.views import Bars, Curves, Heatmap, Passage, Table, printable

WORDS = ["[CLS]", "the", "cat", "$x", "sat"]
SIGNED = np.array([[1.0, -2.0, 0.5], [0.0, np.nan, 1.0]])
PANELS = {
    "signed": Heatmap("Change", ["0", "1"], ["0", "1", "2"], SIGNED, "signed"),
    "logs": Heatmap("Norm", ["0", "1"], ["a", "b", "c"], np.array([[1.0, 20, 300], [2, 3, 4]]), "logs"),
    "texts": Heatmap("Lens", ["0"], ["a", "b"], np.array([[0.1, 0.9]]), "weights", texts=[["cat", "a$long$word$x"]]),
    "bars": Bars("Heads", ["a", "$b"], [1.0, -0.5], [0.5, -1.0], [1.5, 0.0]),
    "curves": Curves("Cosine", ["$one", "two"], [0, 1, 2], np.ones((2, 3)), "distance", "cosine"),
    "passage": Passage("Scores", ["cat"] * 70, list(range(70))),
    "table": Table("Table", ["token", "p"], [["cat", 0.5], ["dog", 3]]),
}


def attention(words=WORDS, **fields):
    return next(iter(hand_made(words, **fields).attentions.values()))


def test_a_head_is_drawn_with_queries_on_rows():
    drawn = draw_head(attention(), 0, 0).axes[0]
    values = drawn.images[0].get_array()
    assert values[3, 2] == 1
    assert values[2, 3] == 0
    assert [each.get_text() for each in drawn.get_yticklabels()] == WORDS
    assert [each.get_text() for each in drawn.get_xticklabels()] == WORDS
    assert (drawn.get_ylabel(), drawn.get_xlabel()) == ("query", "key")
    assert "consulta" in draw_head(attention(), 0, 0, "es").axes[0].get_ylabel()


def test_all_heads_of_one_layer_and_of_all_layers():
    found = attention(heads=7, layers=3)
    one, every = draw_heads(found, [1]), draw_heads(found, [0, 1, 2])
    for figure, layers in ((one, [1]), (every, [0, 1, 2])):
        drawn = [axes.images[0].get_array() for axes in figure.axes if axes.images]
        expected = [found.weights[layer][head] for layer in layers for head in range(7)]
        np.testing.assert_array_equal(np.stack(drawn), np.stack(expected))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_equal_input_gives_equal_bytes(kind):
    first, second = (render(draw_head(attention(), 1, 2), kind) for _ in range(2))
    assert first == second
    assert first != render(draw_head(attention(), 1, 1), kind)
    if kind == "png":
        assert Image.open(io.BytesIO(first)).info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_an_svg_of_64_tokens_is_small_and_has_text():
    words = [f"token{i}" for i in range(64)]
    svg = render(draw_head(attention(words), 0, 1), "svg")
    assert len(svg) <= 300_000
    assert set(words) <= set(re.findall(r">([^<>]+)</text>", svg.decode()))
    assert b"date" not in svg


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_can_be_drawn(name):
    svg = render(draw_panel(PANELS[name]), "svg").decode()
    assert PANELS[name].title in svg
    if name in ("bars", "curves", "texts"):
        assert "$" in svg  # no mathematics


def test_of_many_tokens_every_kth_has_its_label():
    drawn = draw_head(attention([f"w{i}" for i in range(257)], heads=1, layers=1), 0, 0).axes[0]
    assert [each.get_text() for each in drawn.get_xticklabels()][:3] == ["w0", "w3", "w6"]


def test_spaces_and_joiners_of_a_text_stay():
    assert printable("1\xa0000\u202f€") == "1 000 €"
    assert printable("東京\u3000大阪") == "東京 大阪"
    assert printable("می\u200cخواهم") == "می\u200cخواهم"
    assert printable("a\u202eb\x07") == "ab"
