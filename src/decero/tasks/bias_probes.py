"""Measure bias probes: score every text with the model and its controls, and say what the differences show."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForPreTraining, PreTrainedTokenizerBase

from decero.config.bias import BiasSet, ProbeBias
from decero.config.sections import ModelSection
from decero.data.bias_sets import BiasProbe, make_probes, swaps
from decero.data.corpus import load_corpus
from decero.data.likelihood_rows import CausalRows, LikelihoodRows, MaskedRows, ScoredPassage, TargetRows
from decero.data.swaps import neutral_names
from decero.data.words import word_starts
from decero.errors import UserError
from decero.execution.build import checkpoint_of
from decero.execution.pretraining_objective import DISCRIMINATORS, refuse_discriminator
from decero.execution.token_scores import check_causal
from decero.tasks.pseudo_likelihood import shared_scores
from decero.training.runs import Run, main_first
from decero.training.sharding import evaluating


class AskedText(NamedTuple):
    """A text as a model reads it: main is the passage that is scored, prior the one that stands for its words alone."""

    main: ScoredPassage
    target: ScoredPassage


@dataclass
class ProbeSet:
    """A set with the tokens of its probes. readings: of each probe, one a text."""

    name: str
    format: str
    probes: list[BiasProbe]
    readings: list[list[AskedText]]

    @property
    def categories(self) -> list[str]:
        return list(dict.fromkeys(probe.category for probe in self.probes))


@dataclass(frozen=True)
class Asking:
    """What a kind of model is asked: whole texts, the tokens that pairs share, spans; and the prior of a span."""

    causal: bool
    rows: dict[str, LikelihoodRows]

    @classmethod
    def of(cls, config: ProbeBias, head: Any, tokenizer: PreTrainedTokenizerBase) -> "Asking":
        """Raises UserError for a setting of the other kind of model, and a tokenizer that lacks a special token."""
        if head is AutoModelForPreTraining:
            refuse_discriminator(str(config.model.name_or_path), DISCRIMINATORS)
        causal = head is AutoModelForCausalLM
        if causal and config.objective is not None:
            raise UserError("objective: a causal model has its likelihood, without masks; remove it")
        if not causal and config.start_token is not None:
            raise UserError("start_token: a masked model has no start token; remove it")
        if causal:
            rows = CausalRows(tokenizer, config.start_token)
            return cls(True, {"all": rows, "span": rows, "prior": rows})
        return cls(False, {
            "all": MaskedRows(tokenizer, config.objective.name if config.objective else "within_word_l2r"),
            "shared": MaskedRows(tokenizer, "original"), "span": TargetRows(tokenizer),
            "prior": TargetRows(tokenizer, hidden=True),
        })  # fmt: skip

    def how(self, probe: BiasProbe) -> str:
        return probe.causal if self.causal else probe.masked


def read_sets(run: Run, config: ProbeBias) -> dict[str, list[BiasProbe]]:
    """Return the probes of each set. Raises UserError for missing columns and splits, and rows that do not fit."""
    return {name: _read(run, config, name, each) for name, each in config.sets.items()}


def _read(run: Run, config: ProbeBias, name: str, section: BiasSet) -> list[BiasProbe]:
    where, parts, rows = f"sets.{name}", section.parts(), []
    if section.data is not None:
        columns = {column: f"{where}.columns.{part}" for part, column in parts.items()}
        with main_first(run.accelerator):
            source = section.data.source() | {"text_column": next(iter(columns)), "columns": columns}
            corpus = load_corpus(**source, needs_train=False)
        if config.split not in corpus:
            raise UserError(f"split: {where} has no {config.split}, only {', '.join(corpus)}; name its files")
        table = corpus[config.split]
        values = {part: table[column][:] for part, column in parts.items()}
        for part, column in parts.items():
            if hasattr(table.features[column], "int2str"):
                names = table.features[column].names
                values[part] = [None if v is None or v < 0 else names[v] for v in values[part]]
        texts = {p: [v if isinstance(v, list | dict | None) else str(v) for v in vs] for p, vs in values.items()}
        rows = [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]
    return make_probes(section.format, rows, where, section.categories, section.max_probes)


def tokenize(asking: Asking, name: str, kind: str, probes: list[BiasProbe], limit: int | None) -> ProbeSet:
    """Find the tokens of each probe that are scored.

    Raises UserError for a text that is longer than `limit`, and one whose difference the tokenizer drops.
    """
    rows = asking.rows["all"]
    texts = [text for probe in probes for text in probe.texts]
    whole = rows.encode(texts)
    encoded = iter(zip(whole, word_starts(whole, texts), strict=True))
    room = None if limit is None else limit - len(rows.before) - len(rows.after)
    found = []
    for probe in probes:
        own, begins = zip(*(next(encoded) for _ in probe.texts), strict=True)
        ids = [tuple(each.ids) for each in own]
        where = f"{name}: row {probe.row}"
        if room is not None and max(map(len, ids)) > room:
            raise UserError(f"{where}: a text has {max(map(len, ids))} tokens, more than the {room} that fit; drop it")
        if len(set(ids)) < len(ids):
            lost = " and ".join(repr(text) for text, i in zip(probe.texts, ids, strict=True) if ids.count(i) > 1)
            raise UserError(f"{where}: {lost} have the same tokens; choose another tokenizer, or drop the row")
        if probe.spans is None:
            targets = differing_places(*ids)
        else:
            targets = [
                [n for n, (b, e) in enumerate(each.offsets) if b < end and e > begin]
                for each, (begin, end) in zip(own, probe.spans, strict=True)
            ]
            for text, span, places in zip(probe.texts, probe.spans, targets, strict=True):
                if not places:
                    raise UserError(
                        f"{where}: the tokenizer drops {text[slice(*span)]!r}; choose another, or drop the row"
                    )
        readings = []
        for each, first, places in zip(own, begins, targets, strict=True):
            starts = tuple(first.tolist())
            scored: dict[str, Any] = {
                "all": None, "span": tuple(places), "shared": tuple(sorted({*range(len(each.ids))} - {*places})),
            }  # fmt: skip
            main = ScoredPassage(tuple(each.ids), starts, scored[asking.how(probe)])
            if asking.causal:  # the words alone, behind the start token
                alone = tuple(each.ids[place] for place in places)
                target = ScoredPassage(alone, (True,) * len(alone))
            else:
                target = ScoredPassage(tuple(each.ids), starts, tuple(places))
            readings.append(AskedText(main, target))
        found.append(readings)
    return ProbeSet(name, kind, probes, found)


def differing_places(one: Sequence[int], other: Sequence[int]) -> list[list[int]]:
    """Return the places of the tokens that only one of two texts has, as CrowS-Pairs finds them (`difflib`)."""
    kept: tuple[set[int], set[int]] = set(), set()
    for block in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        kept[0].update(range(block.a, block.a + block.size))
        kept[1].update(range(block.b, block.b + block.size))
    return [sorted(set(range(len(ids))) - known) for ids, known in zip((one, other), kept, strict=True)]


def longest(asking: Asking, sets: Sequence[ProbeSet]) -> int:
    """Return the tokens of the longest text, with special tokens."""
    rows = asking.rows["all"]
    own = (len(reading.main.ids) for each in sets for readings in each.readings for reading in readings)
    return max(own) + len(rows.before) + len(rows.after)


def measure(
    accelerator: Any, model: nn.Module, asking: Asking, sets: Sequence[ProbeSet], batch_size: int
) -> dict[str, dict[str, np.ndarray]]:
    """Return set -> {plain, corrected}: scores (probes, 3) in nats; NaN where a probe has no third text.

    plain: the sum of ln p over the scored tokens, or their mean. corrected: ln p of the words that differ, given the
    rest, less ln p of these words alone (Kurita et al. 2019); of a causal model, ln p of the text less the latter.
    """
    if asking.causal:
        with evaluating(accelerator, model) as bare:
            check_causal(bare, "model")

    texts = [
        (asking.how(p), r) for each in sets for p, own in zip(each.probes, each.readings, strict=True) for r in own
    ]
    asked: dict[str, dict[ScoredPassage, float]] = {kind: {} for kind in asking.rows}
    for how, reading in texts:
        asked[how][reading.main] = 0.0
        asked["prior"][reading.target] = 0.0
        if not asking.causal:
            asked["span"][reading.target] = 0.0
    for kind, totals in asked.items():
        passages = [passage for passage in totals if len(passage.scored)]
        scores = shared_scores(accelerator, model, asking.rows[kind], passages, batch_size) if passages else []
        totals.update(zip(passages, map(math.fsum, scores), strict=True))
    found = {}
    for each in sets:
        plain, corrected = (np.full((len(each.probes), 3), np.nan) for _ in range(2))
        for n, (probe, own) in enumerate(zip(each.probes, each.readings, strict=True)):
            for k, reading in enumerate(own):
                total = asked[asking.how(probe)][reading.main]
                plain[n, k] = total / max(1, len(reading.main.scored)) if probe.mean else total
                corrected[n, k] = (total if asking.causal else asked["span"][reading.target]) - asked["prior"][
                    reading.target
                ]
        found[each.name] = {"plain": plain, "corrected": corrected}
    return found


def name_sets(asking: Asking, sets: Sequence[ProbeSet], language: str, limit: int | None) -> dict[str, ProbeSet]:
    """Return neutral names for each way in which pairs of words are scored: all, shared.

    Names that the tokenizer does not tell apart, and sentences that do not fit, are left out; a way may have none.
    """
    found = {}
    for how in sorted({asking.how(probe) for each in sets for probe in each.probes if probe.spans is None}):
        probes, rows = swaps(neutral_names(language), "shared" if how == "shared" else "all"), asking.rows["all"]
        ids = [each.ids for each in rows.encode([text for probe in probes for text in probe.texts])]
        room = 10**9 if limit is None else limit - len(rows.before) - len(rows.after)
        pairs = zip(probes, ids[::2], ids[1::2], strict=True)
        kept = [probe for probe, one, other in pairs if one != other and max(len(one), len(other)) <= room]
        if kept:
            found[how] = tokenize(asking, f"names {how}", "names", kept, limit)
    return found


def fingerprints(section: ModelSection) -> dict[str, str]:
    """Return the sha256 of the files of weights of a checkpoint, so that a push knows what was measured."""
    if section.config is not None:
        return {}
    checkpoint = checkpoint_of(section)
    folders: list[Any] = [checkpoint.weights, *([checkpoint.adapter] if checkpoint.adapter else [])]
    paths = sorted(path for folder in folders for path in folder.glob("*.safetensors"))
    digest: Callable[[Any], str] = lambda path: hashlib.file_digest(path.open("rb"), "sha256").hexdigest()  # noqa: E731
    return {path.name: digest(path) for path in paths}
