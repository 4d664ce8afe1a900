"""The report is complete, self-contained, safe with any text, and reproducible."""

import html.parser
import re
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from decero.evaluation import ScoredRun, judge, report, write_report

pytestmark = pytest.mark.long

EVIL = "<script>alert(1)</script> & $x^2$ | "
FACTS = {"machine": "2 <b>cores</b>", "command": "accelerate launch recipes/compare.py"}
FIGURES = ("metric_by_budget", "cost_quality", "learning_curves")
FILES = [*(f"{stem}.{kind}" for stem in FIGURES for kind in ("svg", "png")), "verdict.md", "report.html"]


def some_runs(budgets=(50, None), contenders=("ours", EVIL, "google-bert/" + "a-long-name-" * 8)):
    rng, runs = np.random.default_rng(0), []
    for i, contender in enumerate(contenders):
        for budget in budgets:
            for seed in range(2):
                scores = (rng.random(60) < 0.9 - 0.2 * i).astype(float)
                curve = [{"step": s, "loss": 2 / s, "eval_accuracy": 1 - 1 / s} for s in (1, 2, 3)]
                metrics = {"accuracy": scores.mean(), "loss": 0.5}
                fields = (contender, budget, seed, "ok", None, metrics, scores, 9.0 + i, 10**6)
                runs.append(ScoredRun(*fields, curve=curve))
    error = f"RuntimeError: {EVIL}"
    return [*runs[:-1], replace(runs[-1], status="failed", error=error, metrics={}, scores=None)]


def write(folder, runs, reference="ours"):
    return write_report(folder, f"Title {EVIL}", judge(runs, metric="accuracy", reference=reference), runs, facts=FACTS)


class Page(html.parser.HTMLParser):
    """Collect tags, attributes and the visible text of each table row."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.rows, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "tr" in self.open:
            self.rows[-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert write(folder, some_runs()) == [folder / name for name in FILES]
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_needs_nothing_else(page, folder):
    assert not page.open
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    references = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert len(references) == 3
    assert all(value.startswith("data:image/svg+xml;base64,") for value in references)
    assert not re.search(r"url\(|@import|https?://", (folder / "report.html").read_text(encoding="utf-8"))


def test_text_is_shown_and_never_run(page, folder):
    assert page.tags.count("b") == len(judge(some_runs(), metric="accuracy", reference="ours").comparisons) + 3
    assert page.text.count("<script>alert(1)</script>") >= 4  # title, sentence, table, error
    assert "2 <b>cores</b>" in page.text
    markdown = (folder / "verdict.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown
    assert "&lt;script&gt;" in markdown


def test_the_complete_verdict_comes_first(page):
    verdict = judge(some_runs(), metric="accuracy", reference="ours")
    places = [page.text.index(text) for text in [*verdict.summary(), *verdict.sentences(), verdict.cost()]]
    assert places == sorted(places)
    assert places[-1] < page.text.index("by contender and label budget") < page.text.index("Quality against labels")


def test_every_run_is_in_a_row_and_a_failed_one_has_its_error(page):
    runs = some_runs()
    assert len(page.rows) == 1 + 3 + 1 + len(runs)  # verdict table, run table
    (row,) = [row for row in page.rows if "RuntimeError" in row]
    assert row.startswith("google-bert/")
    assert f"failed: RuntimeError: {EVIL}" in row
    assert sum("1 of 2 failed" in row for row in page.rows) == 1


def test_the_page_has_the_facts_and_the_method(page):
    for text in ("permutation test", "Holm", "4 here", "accelerate launch recipes/compare.py"):
        assert text in page.text


@pytest.mark.slow
def test_reports_are_identical_whatever_the_matplotlibrc(folder, tmp_path):
    with matplotlib.rc_context({"axes.grid": False, "font.size": 20, "svg.hashsalt": None, "savefig.bbox": "tight"}):
        before = dict(matplotlib.rcParams)
        paths = write(tmp_path, some_runs())
        assert dict(matplotlib.rcParams) == before, "reporting must leave matplotlib as it was"
    for path in paths:
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    "runs",
    [
        some_runs((None,), ("ours", "b")),
        some_runs((1, 10, 100, None)),
        [ScoredRun("ours", 5, 0, "failed", error=None), ScoredRun("b", None, 0, "failed", error="died")],
        [replace(run, curve=[], wall_time_s=0.0) for run in some_runs((3,), [f"{i}" for i in range(12)] + ["ours"])],
        [replace(run, contender="ours") for run in some_runs((3,), ("x",))],
    ],
    ids=[
        "every label only",
        "four budgets",
        "all failed",
        "13 contenders, no time, no curve",
        "alone",
    ],
)
@pytest.mark.filterwarnings("error")
def test_unusual_sets_of_runs_still_make_a_report(runs, tmp_path, monkeypatch):
    draw = report.render  # a PNG is the same drawing again
    monkeypatch.setattr(report, "render", lambda figure, kind: draw(figure, kind) if kind == "svg" else b"P" * 101)
    assert all(path.stat().st_size > 100 for path in write(tmp_path, runs))
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).open == []


def test_each_contender_keeps_its_colour_and_marker():
    from decero.evaluation.figures import _look

    runs = some_runs((3,), [f"{i}" for i in range(20)] + ["ours"])
    verdict = judge(runs, metric="accuracy", reference="ours", n_resamples=50)
    looks = [tuple(_look(verdict, name).values()) for name in verdict.contenders]
    assert len(set(looks)) == len(looks)
