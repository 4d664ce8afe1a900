"""Write a verdict as files: Markdown, figures, and one self-contained HTML page, also for print and phones."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from decero.evaluation import tables, wording
from decero.evaluation.confusion import LabelScores, label_tables
from decero.evaluation.figures import figures, render
from decero.evaluation.tuning_curve import Tuning
from decero.evaluation.verdict import Comparison, ScoredRun, Verdict

CAPTIONS = {
    "metric_by_budget": (
        "Quality against labels",
        "The quality of each contender as the number of {examples} grows. Marker: mean over seeds; bar: one "
        "standard deviation each way; small dot: one seed. {better}. The position of “all” beside numbers is not to "
        "scale.",
    ),
    "cost_quality": (
        "Quality against time",
        "The cost of each contender. Large marker: mean at one label budget; a line joins the budgets, and the "
        "smallest and the largest are named; small dot: one run. Time is that of one run plus the user's own "
        "pretraining, which is needed only once. {better}, and further left is cheaper.",
    ),
    "learning_curves": (
        "Learning curves",
        "One line per run, one panel per label budget. Solid: the run finished; dotted with a final ×: it failed. If "
        "a loss still falls at the end, train for more steps; if it is noisy, try a smaller learning rate.",
    ),
    "confusion": (
        "Confusions",
        "One panel per contender and label budget. A row holds the examples of one label; a number is the percentage "
        "of them that got the answer of its column, as a mean over seeds. A diagonal of 100 is perfect.",
    ),
    "tuning": (
        "Quality against tuning",
        "The best validation score to expect from so many trials, drawn from those that were made (Dodge et al. 2019). "
        "A line that still moves at its end would gain from more trials.",
    ),
}
METHOD = (
    "Every contender was trained on the same data with the same recipe{apart}, once per seed, and scored on the same "
    "{split} examples.",
    "{difference}",
    "p-value: the paired permutation test (Noreen 1989; Dror et al. 2018){swaps}. It answers: if these trained models "
    "were equally good, how often would other test examples show a difference this large?",
    "Interval, in square brackets: 95 %, from resampling both {drawn} and test examples (Owen 2007), widened for few "
    "of them (Student). It shows what another {training} and another test set could give. Only seeds that succeeded "
    "for both contenders count.",
    "All p-values are adjusted by Holm's method for the number of comparisons ({comparisons} here), so that the "
    "chance of even one false claim stays below 5 %. The intervals are not adjusted.",
    "A winner is named only when the adjusted p-value is below 0.05 and the interval does not contain 0. “No "
    "difference shown” does not mean equal: there may be too few seeds or test examples to tell.",
)


def write_report(
    folder: Path,
    title: str,
    verdict: Verdict,
    runs: Sequence[ScoredRun],
    *,
    facts: dict[str, str],
    tuning: Sequence[Tuning] = (),
    labels: Sequence[LabelScores] = (),
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write verdict.md, the figures (PNG and SVG) and report.html. Return the paths, report.html last.

    runs: the runs of the verdict.
    facts: what a reader needs to repeat it (machine, versions, commit, command, data sizes), in the order to show.
    tuning: the trials before the runs. labels: the scores of each label, of classifiers. notes: sentences below the
    verdict, such as a warning.

    The page needs no other file, no network and no script. The same input gives the same bytes. Existing files with
    these names are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def write(name: str, content: str | bytes) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        written.append(folder / name)

    method = _method(verdict, tuning)
    better = "Higher is better" if verdict.higher_is_better else "Lower is better"
    examples = "labelled examples" if verdict.unit == "labels" else f"training {verdict.unit}"
    drawings = []
    for stem, figure in figures(verdict, runs, tuning, labels).items():
        svg = render(figure, "svg")
        write(f"{stem}.svg", svg)
        write(f"{stem}.png", render(figure, "png"))
        heading, caption = CAPTIONS[stem]
        # An <img> with a data URI, not inline SVG: the ids of the figures cannot clash, and browsers use the alt text.
        uri = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        drawings.append({"heading": heading, "caption": caption.format(better=better, examples=examples), "uri": uri})

    write("verdict.md", _markdown(title, verdict, method, facts, tuning, notes))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("report.html.jinja").render(
        title=title,
        verdict=verdict,
        sentences=[
            (_tone(verdict, c), c.word, text) for c, text in zip(verdict.comparisons, verdict.sentences(), strict=True)
        ],
        runs=_sorted(verdict, runs),
        metrics=list(dict.fromkeys(name for run in runs for name in run.metrics)) or [verdict.metric],
        figures=drawings,
        method=method,
        facts=facts,
        tuning=tables.tuning_rows(verdict, tuning),
        labels=label_tables(verdict, labels),
        notes=notes,
        w=wording,
        t=tables,
    )
    write("report.html", page)
    return written


def _sorted(verdict: Verdict, runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    budgets, contenders = verdict.budgets, verdict.contenders
    return sorted(runs, key=lambda run: (budgets.index(run.budget), contenders.index(run.contender), run.seed))


def _tone(verdict: Verdict, comparison: Comparison) -> str:
    return "even" if comparison.winner is None else "win" if comparison.winner == verdict.reference else "lose"


def _method(verdict: Verdict, tuning: Sequence[Tuning]) -> list[str]:
    """METHOD for this metric."""
    name = wording.name_of(verdict.metric)
    difference, swaps = f"Differences are reference minus contender in {name}.", ""
    if verdict.proxy:
        difference = (
            f"{name} cannot be computed from sums over examples. Differences are reference minus contender in the "
            "score of one test example: right or wrong; the share of its labels that are right; or minus its squared "
            "error."
        )
    elif not verdict.mean:
        swaps = " by approximate randomization (Riezler & Maxwell 2005)"
        difference += f" {name} is not a mean over examples. It is computed again from the sums of every resample."
    luck = {"drawn": "seeds", "training": "fine-tuning" if _own(verdict) else "training"}
    if _own(verdict) > 1:
        luck = {"drawn": "pretrainings, with the seeds that start from them,", "training": "pretraining, fine-tuning"}
    luck["apart"] = ", apart from the settings in the table" if any(verdict.settings.values()) else ""
    compared = sum(c.reason is None for c in verdict.comparisons)
    method = [
        line.format(comparisons=compared, split=verdict.split, difference=difference, swaps=swaps, **luck)
        for line in METHOD
    ]
    if tuning:
        method.append(
            "Every contender that is trained was tuned with the same number of trials of the same settings, on the "
            "validation split alone and with one seed; all seeds were then run with the values of the best trial."
        )
    return method


def _own(verdict: Verdict) -> int:
    """Return the largest number of own pretrainings of a contender."""
    return max(cell.n_pretrainings for cell in verdict.cells)


def _tuning_lines(verdict: Verdict, tuning: Sequence[Tuning]) -> list[str]:
    if not tuning:
        return []
    line = tables.escaped
    headers, *rows = tables.tuning_rows(verdict, tuning)
    table = ["## Tuning", "", f"| {' | '.join(headers)} |", "|:--" * len(headers) + "|"]
    return [*table, *(f"| {' | '.join(line(text).replace('|', chr(92) + '|') for text in row)} |" for row in rows), ""]


def _lead(verdict: Verdict, notes: Sequence[str]) -> list[str]:
    return [*verdict.advice, *verdict.summary(), *verdict.sentences(), verdict.cost(), *notes]


def _markdown(
    title: str,
    verdict: Verdict,
    method: list[str],
    facts: dict[str, str],
    tuning: Sequence[Tuning],
    notes: Sequence[str],
) -> str:
    line = tables.escaped
    return "\n".join(
        [
            f"# {line(title)}",
            "",
            *(f"- {line(text)}" for text in _lead(verdict, notes)),
            "",
            verdict.table(),
            "",
            *_tuning_lines(verdict, tuning),
            "## How it was computed",
            "",
            *(f"- {line(text)}" for text in method),
            "",
            "## Facts",
            "",
            *(f"- {line(name)}: {line(text)}" for name, text in facts.items()),
            "",
        ]
    )
