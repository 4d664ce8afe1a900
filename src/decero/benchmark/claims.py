"""Judge what is claimed of Transformers by the measurements: holds, does not hold here, needs parallel hardware."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

HOLDS, NOT_HERE, PARALLEL = "holds", "does not hold here", "needs parallel hardware"
VANISHED = 1e-3  # of the gradient one step back
SMALLEST = 1e-300  # a gradient of 0 in double precision counts as this


@dataclass(frozen=True)
class Claim:
    """A claim, what became of it, and the numbers behind that."""

    experiment: str
    claim: str
    verdict: str
    evidence: str

    def record(self) -> dict[str, str]:
        return asdict(self)


def mean_interval(values_S: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean over seeds and its 95 % Student interval (low, high)."""
    from scipy import stats  # imported late: half a second

    values = np.asarray(values_S, dtype=np.float64)
    mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - reach, mean + reach


def difference_interval(a_S: Sequence[float], b_S: Sequence[float]) -> tuple[float, float, float]:
    """Return mean(a) - mean(b) and its 95 % interval (Welch 1947): the seeds of two arms are independent."""
    from scipy import stats

    a, b = np.asarray(a_S, dtype=np.float64), np.asarray(b_S, dtype=np.float64)
    difference = float(a.mean() - b.mean())
    if not a.std() and not b.std():
        return difference, difference, difference
    found = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return difference, float(found.low), float(found.high)


def judge(experiment: str, part: dict[str, Any], reference: str, device: str) -> Claim:
    """Return the claim of an experiment with its verdict."""
    if experiment == "gradients":
        return _gradients(part, reference)
    if experiment == "speed":
        return _speed(part, reference, device)
    return _accuracy(experiment, part, reference)


def shares_left(records: list[dict[str, Any]], when: str) -> tuple[float, float, float]:
    """Return the gradient at the farthest distance over that at the nearest: geometric mean and 95 % interval."""
    logs = [math.log10(max(r[when][-1], SMALLEST) / max(r[when][0], SMALLEST)) for r in records]
    mean, low, high = mean_interval(logs)
    return 10.0**mean, 10.0 ** max(low, -300), 10.0 ** min(high, 300)


def _gradients(part: dict[str, Any], reference: str) -> Claim:
    far, near = part["distances"][-1], part["distances"][0]
    after = {arm: shares_left(records, "after") for arm, records in part["arms"].items()}
    both = [after[reference], shares_left(part["arms"][reference], "before")]
    gone = [arm for arm, (_, _, high) in after.items() if arm != reference and high < VANISHED]
    verdict = HOLDS if all(low > VANISHED for _, low, _ in both) and gone else NOT_HERE
    shares = ", ".join(f"{arm} {mean:.2g} [{low:.2g}, {high:.2g}]" for arm, (mean, low, high) in after.items())
    evidence = f"gradient at distance {far} as a share of that at {near}, after training: {shares}"
    return Claim(
        "gradients", "Gradients do not vanish with distance, as they do in recurrent networks.", verdict, evidence
    )


def _speed(part: dict[str, Any], reference: str, device: str) -> Claim:
    """Compare with the arms whose steps wait for each other; with all others, if that is not known."""
    lengths = {length: each["arms"] for length, each in part["lengths"].items()}
    last = lengths[max(lengths, key=int)]
    waiting = [arm for arm, each in last.items() if (each["sequential"] or 0) >= int(max(lengths, key=int))]
    rivals = waiting or [arm for arm in last if arm != reference]
    lines, wins = [], []
    for length, arms in lengths.items():
        ratios = {
            arm: np.quantile(np.divide(arms[arm]["seconds"], arms[reference]["seconds"]), [0.25, 0.5, 0.75])
            for arm in rivals
        }
        arm = min(ratios, key=lambda name: ratios[name][1])
        low, middle, high = ratios[arm]
        wins.append(low > 1)
        lines.append(f"{middle:.2f} [{low:.2f}, {high:.2f}] times {arm} at {length}")
    verdict = HOLDS if all(wins) else PARALLEL if device == "cpu" else NOT_HERE
    kind = "recurrent" if waiting else "other"
    evidence = f"speed of {reference} against the fastest {kind} arm, median and quartiles: {', '.join(lines)}"
    return Claim("speed", "Transformers train faster, because all tokens are computed at once.", verdict, evidence)


CLAIMS = {
    "recall": "A Transformer recalls what it has read; recurrent networks forget it.",
    "copying": "A Transformer picks out and repeats distant tokens; recurrent networks do not.",
    "list_ops": "A Transformer learns long nested structure better than recurrent networks.",
}


def accuracies(arm: dict[str, Any]) -> list[float]:
    """Return the test accuracy of each seed."""
    return [run["test"]["accuracy"] for run in arm["runs"]]


def _accuracy(experiment: str, part: dict[str, Any], reference: str) -> Claim:
    arms = {arm: accuracies(each) for arm, each in part["arms"].items()}
    ours = arms.pop(reference)
    rival = max(arms, key=lambda arm: float(np.mean(arms[arm])))
    difference, low, high = difference_interval(ours, arms[rival])
    learnt = mean_interval(ours)[1] > part["chance"]
    verdict = HOLDS if low > 0 and learnt else NOT_HERE
    evidence = (
        f"test accuracy {np.mean(ours):.1%} against {np.mean(arms[rival]):.1%} of {rival}, the best rival: "
        f"{100 * difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]; chance {part['chance']:.1%}"
    )
    return Claim(experiment, CLAIMS[experiment], verdict, evidence)
