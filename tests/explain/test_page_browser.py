"""The page in a real browser: no request, no error, the true weight under the pointer, keys, both widths."""

import re
import shutil
import time

import numpy as np
import pytest

from decero.explain.page import page
from decero.explain.views import Heatmap, View
from tests.explain.recordings import hand_made

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
ATTENTION = View("attention", "Attention", "about", "caution")
WORDS = ["[CLS]", "</script>", "שלום", "🙂", *(f"w{i}" for i in range(9))]


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def show(browser, tmp_path):
    """Open a page without network. It fails for an error on the console and for a request."""
    complaints, contexts = [], []

    def opened(recording, views=(ATTENTION,), width=1280, colours="light", **options):
        path = tmp_path / "page.html"
        path.write_text(page(recording, list(views), **options), encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 844}, color_scheme=colours, offline=True, has_touch=width < 500
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: None if request.url.startswith(("data:", path.as_uri()))
               else complaints.append(request.url))  # fmt: skip
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-painted]", state="attached", timeout=60_000)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def readout(tab):
    return tab.locator("#heads .readout").first.text_content()


def test_the_number_under_the_pointer_is_the_weight(show):
    recording = hand_made(WORDS)
    weights = recording.attentions["self"].weights
    tab = show(recording)
    canvas = tab.locator("#heads .scroller canvas")
    seen = set()
    for layer, head in ((0, 0), (1, 2)):
        tab.locator(".overview button").nth(3 * layer + head).click()
        tab.wait_for_selector(f'html[data-shown="self {layer} {head}"]', state="attached")
        box = canvas.bounding_box()
        for x in np.linspace(0.3, 0.97, 7):
            for y in np.linspace(0.3, 0.97, 7):
                canvas.hover(position={"x": box["width"] * x, "y": box["height"] * y})
                i, j, shown = re.search(r"\((\d+)\) → .*\((\d+)\): ([\d.]+)$", readout(tab)).groups()
                assert abs(float(shown) - weights[layer][head, int(i), int(j)]) <= 0.004
                seen.add((i, j))
    assert len(seen) > 30


def test_arrow_keys_move_over_heads_and_cells_and_speak(show):
    tab = show(hand_made(WORDS))
    tab.locator(".overview button[aria-current=true]").focus()
    for key in ("ArrowRight", "ArrowDown"):
        tab.keyboard.press(key)
    assert "Layer 1, head 1" in tab.evaluate("document.activeElement.getAttribute('aria-label')")
    tab.keyboard.press("Enter")
    tab.wait_for_selector('html[data-shown="self 1 1"]', state="attached")
    tab.locator("#heads .scroller canvas").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        tab.keyboard.press(key)
    assert tab.locator("#spoken").text_content() == readout(tab)
    assert readout(tab).startswith("</script> (1) → </script> (1)")
    tab.keyboard.press("PageDown")
    tab.wait_for_selector('html[data-shown="self 1 2"]', state="attached")
    tab.keyboard.press("Escape")
    assert "Layer 1, head 2" in tab.evaluate("document.activeElement.getAttribute('aria-label')")


def test_without_sinks_renormalises_and_says_so(show):
    recording = hand_made(WORDS)
    tab = show(recording)
    tab.locator(".overview button").nth(4).click()
    tab.wait_for_selector('html[data-shown="self 1 1"]', state="attached")
    tab.locator("#without-sinks").check()
    assert "renormalised" in tab.locator("#heads .note").text_content()
    kept = recording.attentions["self"].weights[1][1].copy()
    kept[:, 0] = 0
    kept /= kept.sum(1, keepdims=True)
    first = tab.locator("#heads tbody tr").first.locator("td").last.text_content()
    assert float(first.removeprefix("≈ ")) == pytest.approx(kept.max(), abs=0.02)


def test_kinds_and_lines_can_be_chosen(show):
    recording = hand_made(["a", "b", "c"])
    recording.attentions |= hand_made(["x", "y"], kind="cross", keys=["a", "b", "c"]).attentions
    tab = show(recording)
    tab.get_by_label("lines", exact=True).check()
    assert tab.locator(".lines text").all_text_contents()[0].startswith("a")
    tab.get_by_role("radio", name="cross-attention").check()
    tab.wait_for_selector('html[data-shown="cross 0 0"]', state="attached")
    assert tab.locator(".overview button").count() == 6


@pytest.mark.parametrize("width", [1280, 390, 360])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_nothing_is_wider_than_the_window(show, width, colours):
    panels = [Heatmap("map", ["r"], WORDS, np.ones((1, 13)), texts=[WORDS], row_title="layer", column_title="token")]
    tab = show(hand_made(WORDS * 3), [ATTENTION, View("lens", "Lens", "a", "c", panels)], width, colours)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if colours == "light" else "rgb(20, 24, 29)")


def test_512_tokens_are_painted_soon_and_can_be_read(show):
    recording = hand_made([f"token{i}" for i in range(512)], heads=12, layers=6)
    started = time.monotonic()
    tab = show(recording, width=390)
    assert time.monotonic() - started < 60
    [paint] = tab.evaluate("performance.getEntriesByName('first-contentful-paint').map(each => each.startTime)")
    assert paint <= 2000
    canvas = tab.locator("#heads .scroller canvas")
    canvas.focus()
    for key in ["ArrowDown"] * 8 + ["ArrowRight"] * 6 + ["+"] * 9:
        tab.keyboard.press(key)
    assert readout(tab).startswith("token7 (7) → token5 (5)") or readout(tab).startswith("token7 (7) → token6 (6)")
