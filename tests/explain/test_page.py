"""The page: one file without a request, every text escaped, numbers that are right to 0.004."""

import json
import re
import string
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decero.explain import page as page_module
from decero.explain.page import Line, index_page, page
from decero.explain.phrases import PHRASES, phrases
from decero.explain.pieces import Piece
from decero.explain.tiles import LARGEST_ERROR, decode, encode
from decero.explain.views import Bars, Curves, Heatmap, Passage, Table, View, label
from tests.explain.recordings import hand_made

HOSTILE = ["[CLS]", "</script><script>alert(1)</script>", "\"'&amp;", "🙂", "שלום", "\u202eevil", "a\x00b", "{{ 7*7 }}", "\n"]
ATTENTION = View("attention", "Attention", "about", "caution")
SCRIPT = (Path(page_module.__file__).with_name("page.js")).read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """The elements of a page, the text of each script, and all other text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.text, self.inside = [], [], "", None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data


def data_of(html):
    return json.loads(Parsed(html).scripts[0])


@settings(max_examples=30)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 11), st.integers(0, 99))
def test_a_tile_is_within_0_004_of_each_weight(heads, queries, keys, seed):
    weights = np.random.default_rng(seed).dirichlet([0.2] * keys, (heads, queries)).astype(np.float32)
    uri, across = encode(weights)
    assert np.abs(decode(uri, across, heads, queries, keys) - weights).max() <= LARGEST_ERROR < 0.00395
    assert uri.startswith("data:image/png;base64,")


def test_the_page_holds_every_head_of_every_layer():
    recording = hand_made(["[CLS]", "a", "b", "c", "d"], heads=5, layers=3)
    [attention] = data_of(page(recording, [ATTENTION]))["attention"]
    assert (attention["heads"], attention["layers"], attention["sinks"]) == (5, [0, 1, 2], [0])
    for layer, uri in enumerate(attention["tiles"]):
        found = decode(uri, attention["across"], 5, 5, 5)
        np.testing.assert_allclose(found, recording.attentions["self"].weights[layer], atol=LARGEST_ERROR)


def test_a_page_makes_no_request_and_says_so_to_the_browser():
    html = page(hand_made(["a", "b", "c"]), [ATTENTION])
    for tag, attributes in Parsed(html).tags:
        for name in ("src", "href"):
            assert re.match(r"data:|#|$", attributes.get(name) or ""), (tag, attributes)
    assert "default-src 'none'" in html
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|WebSocket|url)\(", html)


def test_hostile_texts_stay_text():
    recording = hand_made(HOSTILE, model="<b>m</b>", target="</dd><script>", notes=["<i>note</i>"])
    views = [ATTENTION, View("lens", "<u>", "<u>", "<u>", [
        Heatmap("<u>", HOSTILE, HOSTILE, np.zeros((9, 9)), texts=[HOSTILE] * 9, notes=["<u>"]),
        Bars("<u>", HOSTILE, [1.0] * 9), Table("<u>", ["<u>"], [["<u>"]]), Passage("<u>", HOSTILE, [0.5] * 9),
        Curves("<u>", ["<u>"], [0, 1], np.zeros((1, 2)), notes=["<u>"]),
    ])]  # fmt: skip
    html = page(recording, views)
    parsed = Parsed(html)
    assert len(parsed.scripts) == 2
    assert not {tag for tag, _ in parsed.tags} & {"u", "i"}
    assert ("b", {}) in parsed.tags
    assert "<b>m</b>" in parsed.text
    assert "{{ 7*7 }}" in parsed.text
    assert not re.search("[\x00-\x08\u202a-\u202e]", html)
    [attention] = data_of(html)["attention"]
    assert attention["keys"][1:4] == HOSTILE[1:4]
    assert (attention["keys"][8], attention["keys"][5]) == ("↵", "evil")


def test_labels_show_what_cannot_be_seen():
    texts = {" cat": "cat", " ": "␣", "": "∅", "a\tb": "a⇥b", "\u200b": "∅"}
    assert {text: label(Piece(0, text, 0, 1)) for text in texts} == texts


@pytest.mark.parametrize("name", PHRASES)
def test_a_phrase_has_both_languages_and_the_same_gaps(name):
    english, spanish = PHRASES[name]
    gaps = [{field for _, field, _, _ in string.Formatter().parse(text) if field} for text in (english, spanish)]
    assert gaps[0] == gaps[1]
    assert english
    assert spanish


def test_the_script_and_the_template_name_phrases_that_exist():
    template = Path(page_module.__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    named = re.findall(r"words\.(\w+)", SCRIPT) + re.findall(r'fill\("(\w+)"', SCRIPT)
    assert len(named) > 30
    assert set(named + re.findall(r"\bw\.(\w+)", template)) <= set(PHRASES)


def test_a_spanish_page_is_spanish():
    html = page(hand_made(["a", "b"]), [ATTENTION], language="es")
    assert '<html lang="es">' in html
    assert "Qué significa" in html
    assert data_of(html)["words"] == phrases("es")


def test_faithfulness_stands_below_the_heads():
    html = page(hand_made(["a", "b"]), [ATTENTION], faithfulness=["raw attention: 0.21 [0.15, 0.27]"])
    assert html.index('id="heads"') < html.index("raw attention: 0.21 [0.15, 0.27]")
    assert "0.21" not in page(hand_made(["a", "b"]), [ATTENTION])


def test_small_maps_keep_numbers_and_large_ones_are_tiles():
    values = np.array([[0.1, np.nan], [1, 0.5]])
    large = np.random.default_rng(0).dirichlet([1] * 67, 67)
    panels = [Heatmap("s", ["a", "b"], ["c", "d"], values, "weights"),
              Heatmap("l", ["a"] * 67, ["b"] * 67, large, "weights")]  # fmt: skip
    small, tiled = data_of(page(hand_made(["a", "b"]), [View("rollout", "t", "a", "c", panels)]))["maps"]
    assert small["values"] == [0.1, None, 1, 0.5]
    assert tiled["values"] is None
    np.testing.assert_allclose(decode(tiled["tile"], 1, 1, 67, 67)[0], large, atol=LARGEST_ERROR)


def test_bars_start_at_zero_and_show_their_interval():
    bars = Bars("t", ["up", "down"], [3.0, -1.0], [2.0, -1.0], [3.0, 0.0])
    html = page(hand_made(["a", "b"]), [View("ablation", "t", "a", "c", [bars])])
    found = re.findall(r'<rect class="(\w+)" x="([\d.]+)" width="([\d.]+)"', html)
    assert found == [("rise", "25.0", "75.0"), ("fall", "0.0", "25.0")]
    assert "[2.000, 3.000]" in html


def test_the_index_links_to_every_page_and_escapes_lines():
    html = index_page("a/model", [Line("0001.html", "<b>", 3), Line("0004.html", "שלום", 5)], "es")
    tags = Parsed(html).tags
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert links == ["0001.html", "0004.html"]
    assert "b" not in {tag for tag, _ in tags}
    assert Parsed(html).scripts == []
    assert 'href="index.html"' in page(hand_made(["a", "b"]), [ATTENTION], in_index=True)
