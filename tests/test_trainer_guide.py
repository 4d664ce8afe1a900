"""The guide for trainers of others: every block of code runs, those of missing packages aside."""

import importlib.util
import re
from pathlib import Path

import pytest
from tests.test_lesson import blocks

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "your_trainer.md"
EXTRAS = ("peft", "trl")


def run(slow):
    """Run the blocks in order, in one namespace; return how many ran, and which packages were missing."""
    space, count, missing = {"__name__": "guide"}, 0, []
    for block in blocks(PAGE):
        lacking = [
            name
            for name in EXTRAS
            if re.search(rf"^from {name} ", block.code, re.M) and not importlib.util.find_spec(name)
        ]
        missing += lacking
        if block.kind == "python" and not lacking and (slow or not block.slow):
            exec(compile("\n" * block.line + block.code, str(PAGE), "exec"), space)
            count += 1
    return count, missing


@pytest.mark.slow
def test_trainers_of_others_take_our_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count, missing = run(slow=False)
    assert count == 5 - ("peft" in missing)


@pytest.mark.slow
def test_trl_and_compile_take_our_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count, missing = run(slow=True)
    assert count == 7 - len(missing)
    assert (tmp_path / "decoder" / "config.json").exists()


def test_the_page_is_short():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 100
