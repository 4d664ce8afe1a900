"""Check the answers of extractive question answering: which of them the settings put out of reach, and chance."""

from collections.abc import Iterator

import numpy as np

from decero.doctor.findings import Finding, percent
from decero.doctor.inspected_run import InspectedRun


def has_spans(work: InspectedRun) -> bool:
    """Return whether the run looks for answers in contexts."""
    return work.name == "finetune_question_answering"


def answers(work: InspectedRun) -> Iterator[Finding]:
    """Find answers that the model can never give: longer than the limit (warn from 5 % on), or cut (from 1 % on).

    Only for question answering.
    """
    if not has_spans(work):
        return
    found, limit = work.task.reach(work.rows), work.config.data.max_answer_length  # type: ignore[attr-defined]
    good = True
    if found["too_long"] >= 0.05:
        good, what = False, f"{percent(found['too_long'])} of the answers have more than {limit} tokens"
        yield Finding("answers", "warn", what, "train", "raise data.max_answer_length")
    if found["cut"] >= 0.01:
        good, what = False, f"{percent(found['cut'])} of the answered questions have no answer that fits in a window"
        yield Finding("answers", "warn", what, "train", "raise data.stride or data.max_length")
    if good:
        what = f"{percent(found['too_long'])} of the answers are too long, {percent(found['cut'])} are cut"
        yield Finding("answers", "ok", what, "train")


def uniform_spans(work: InspectedRun) -> float:
    """Return the loss of guessing start and end among all tokens of a window: 2 ln(length), its mean."""
    return float(2 * np.log(work.objective.row_sizes(work.rows).most).mean())


def frequent_spans(work: InspectedRun) -> float:
    """Return the loss of a model that knows how often a window has no answer, and guesses among all other tokens."""
    answered = np.array(work.rows["answer_first"][:]) >= 0
    share = answered.mean()
    kinds = -sum(p * np.log(p) for p in (share, 1 - share) if p > 0)
    others = np.log(np.maximum(1, work.objective.row_sizes(work.rows).most - 1))
    return float(2 * (kinds + (others * answered).mean()))
