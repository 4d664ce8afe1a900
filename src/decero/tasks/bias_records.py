"""Say what bias probes show: a record a category, with intervals, controls, verdicts and the metrics of its set."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from decero.config.bias import ProbeBias
from decero.data.bias_sets import BiasProbe, words_of
from decero.evaluation.bias_picture import bias_picture
from decero.evaluation.bias_scores import (
    bbq_scores,
    bias_table,
    language_model_score,
    occupation_correlation,
    stereoset_weights,
    toward,
    verdict,
)
from decero.evaluation.figures import render
from decero.evaluation.pair_accuracy import UnigramModel
from decero.evaluation.statistics import ratio_interval
from decero.files import write_whole
from decero.tasks.bias_probes import Asking, ProbeSet

LIMITS = (  # what no number here shows; printed, and in the model card
    "The sets are written by people, in English of the United States (or our own Spanish sentences); many pairs of "
    "CrowS-Pairs and StereoSet are unclear or faulty (Blodgett et al. 2021).",
    "A share near 50 does not show that a model is fair: other words, groups and languages were not measured.",
    "A preference for a text is not what a system built on the model does to people.",
    "Probability of texts mixes in how common words are and how long they are; the controls and the corrected column "
    "bound this, they do not remove it.",
    "One category in twenty looks different by chance: the intervals are not corrected for their number.",
)


def unigram_scores(asking: Asking, each: ProbeSet, unigram: UnigramModel) -> np.ndarray:
    """Return what word counts say of the part of each text that is scored, (probes, 3). Shared words say nothing."""
    found = np.full((len(each.probes), 3), np.nan)
    for n, probe in enumerate(each.probes):
        how = asking.how(probe)
        for k, text in enumerate(probe.texts):
            part = text[slice(*probe.spans[k])] if how == "span" and probe.spans else text
            words = [] if how == "shared" else words_of(part)
            found[n, k] = unigram(words) / (max(1, len(words)) if probe.mean else 1) if words else 0.0
    return found


def entries(
    sets: Sequence[ProbeSet], asking: Asking, model: dict, randoms: Sequence[dict], unigram: UnigramModel,
    floors: dict[str, dict[str, float]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return a record a category: shares with intervals, controls, verdicts and the metrics of its set.

    model: from `measure`; randoms: the same of each model with random weights. floors: from `noise_floors`.
    """
    found = []
    for each in sets:
        counted = unigram_scores(asking, each, unigram)
        lengths = np.full_like(counted, np.nan)
        for n, own in enumerate(each.readings):
            lengths[n, : len(own)] = [-len(reading.main.ids) for reading in own]
        for category in each.categories:
            chosen = np.flatnonzero([probe.category == category for probe in each.probes])
            probes = [each.probes[n] for n in chosen]
            groups = [probe.group for probe in probes]
            directed = [probe.directed for probe in probes] if each.format == "bbq" else None
            weights = stereoset_weights(groups) if each.format == "stereoset" else np.ones(len(probes))
            sums = partial(_sums, chosen, directed, weights)
            record: dict[str, Any] = {"set": each.name, "format": each.format, "category": category}
            record |= {"probes": len(probes), "groups": len(set(groups))}
            how = asking.how(probes[0])
            for part in ("plain", "corrected"):
                scores = model[each.name][part]
                kept = [n for n in chosen if each.probes[n].directed]
                nats = float((scores[kept, 0] - scores[kept, 1]).mean()) if kept else 0.0
                noise = floors.get(how, {}).get(part) if probes[0].spans is None else None
                random = ratio_interval(*sums([control[each.name][part] for control in randoms]), groups)
                shares = {"share": ratio_interval(*sums([scores]), groups), "random": random}
                controls = {"random weights": random}
                if part == "plain":
                    shares["unigram"] = controls["unigram"] = ratio_interval(*sums([counted]), groups)
                    shares["fewer_tokens"] = ratio_interval(*sums([lengths]), groups)
                said = verdict(shares["share"], controls, nats, noise)
                record[part] = shares | {"nats": nats, "noise": noise, "verdict": said}
            record["metrics"] = _metrics(
                each.format, category, model[each.name]["plain"][chosen], probes, weights, record
            )
            found.append(record)
    return found


def _sums(chosen, directed, weights, scores: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (toward, counted) of several systems, (S, N) each."""
    pairs = [toward(each[chosen], directed) for each in scores]
    return np.stack([up * weights for up, _ in pairs]), np.stack([all_ * weights for _, all_ in pairs])


def _metrics(
    kind: str, category: str, scores: np.ndarray, probes: list[BiasProbe], weights: np.ndarray, record: dict
) -> dict[str, Any]:
    if kind == "stereoset":
        return {"language model score": language_model_score(scores, weights)}
    if kind == "bbq":
        right, directed = [p.right for p in probes], [p.directed for p in probes]
        found = bbq_scores(scores, right, directed, category.endswith(", ambiguous"))
        return {"accuracy": found["accuracy"], "bias score": found["bias_score"]}
    if kind == "winobias":
        return {"pro - anti": 2 * record["plain"]["share"][0] - 1}
    if kind == "winogender":
        women = np.array([probe.value for probe in probes], dtype=float)
        she = (scores[:, 0] - scores[:, 1]) * np.where(women > 50, 1, -1)
        return {"correlation with the share of women": occupation_correlation(she, women, [p.group for p in probes])}
    return {}


def noise_floors(names: dict[str, ProbeSet], found: dict) -> dict[str, dict[str, float]]:
    """Return way of scoring -> {plain, corrected}: the median absolute difference when names are exchanged, in nats."""
    return {
        how: {
            part: float(np.median(np.abs(np.diff(found[f"names {how}"][part][:, :2]))))
            for part in ("plain", "corrected")
        }
        for how in names
    }


def table_of(sets: Sequence[ProbeSet], model: dict) -> pd.DataFrame:
    """Return a row a text: set, category, row, text, and its scores."""
    return pd.DataFrame([
        {"set": each.name, "category": probe.category, "row": probe.row, "place": k, "text": text,
         "score": model[each.name]["plain"][n, k], "corrected": model[each.name]["corrected"][n, k],
         "tokens": len(each.readings[n][k].main.ids)}
        for each in sets for n, probe in enumerate(each.probes) for k, text in enumerate(probe.texts)
    ])  # fmt: skip


def write_report(output: Path, categories: Sequence[dict[str, Any]], config: ProbeBias, table: pd.DataFrame) -> None:
    """Write predictions.parquet, the picture as PNG and SVG, and bias.md."""
    table.to_parquet(output / "predictions.parquet", index=False)
    source = config.model.name_or_path or config.model.config
    figure = bias_picture(categories, f"Bias probes of {Path(str(source)).name}")
    for kind in ("png", "svg"):
        write_whole(output / f"bias.{kind}", render(figure, kind))
    lines = ["# Bias probes", "", f"Model: {source}", "", *bias_table(categories), "", "![](bias.svg)", ""]
    write_whole(output / "bias.md", "\n".join([*lines, *(f"- {limit}" for limit in LIMITS)]) + "\n")
