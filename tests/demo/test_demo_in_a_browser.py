"""A person types a text in a real browser and sees the answer. The page asks no other machine for anything."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf

from decero.demo.space import write_space

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {"vocab_size": 97, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
SOURCE = Path(__file__).parents[2] / "src"
OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="gradio is not installed"),
    pytest.mark.skipif(not importlib.util.find_spec("playwright"), reason="playwright is not installed"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("browser") / "tiny" / "model"
    model = hf.BertForMaskedLM(hf.BertConfig(**SIZES))
    with torch.no_grad():
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids("market")] = 50.0  # what every hole gets
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def serving():
    """Start a command that serves a page; return its address."""
    started = []

    def start(*words: str, cwd: Path, **variables: str) -> str:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=cwd, env=OFFLINE | variables, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        line = process.stdout.readline()
        assert re.match(r"http://127\.0\.0\.1:\d+/", line), line
        return line.split()[0]

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=60)
        process.stdout.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def visit(browser, address: str, width: int) -> None:
    """Type a text, read the answer, look at the attention; then check errors, requests and the width."""
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": width, "height": 844})
    page.set_default_timeout(120_000)
    wrong, asked = [], []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_label("Text with a hole").fill("the [MASK] rose")
    page.get_by_role("button", name="Fill", exact=True).click()
    expect(page.get_by_label("Filled")).to_have_value("the market rose", timeout=120_000)
    expect(page.locator(".bars .number").first).to_have_text("100.0 %")
    page.get_by_label("Text with a hole").fill("no gap")
    page.get_by_role("button", name="Fill", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("the text has no hole", timeout=120_000)
    page.get_by_role("tab", name="Attention").click()
    page.get_by_label("Text", exact=True).filter(visible=True).fill("the market rose")
    page.get_by_role("button", name="Show the attention").click()
    inside = page.frame_locator("iframe.attention")
    expect(inside.locator("canvas").first).to_be_visible(timeout=120_000)
    page.get_by_role("tab", name="Sizes").click()
    expect(page.get_by_text("hidden size")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not wrong
    hosts = {re.split(r"[/:]+", url)[1] for url in asked if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_person_types_a_text_and_sees_the_answer(model, serving, browser, width):
    address = serving("-m", "decero", "demo", str(model), cwd=SOURCE)
    visit(browser, address, width)


def test_a_written_space_runs_with_its_own_code(model, serving, browser, tmp_path):
    write_space(str(model), tmp_path / "space")
    probe = "import decero, pathlib; print(pathlib.Path(decero.__file__).parent)"
    where = subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path / "space", capture_output=True, text=True, check=True, env=OFFLINE
    )
    assert where.stdout.strip() == str(tmp_path / "space" / "decero")
    visit(browser, serving("app.py", cwd=tmp_path / "space"), 1280)
