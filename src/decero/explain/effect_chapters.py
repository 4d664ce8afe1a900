"""Measure on the user's own texts what heads do and what attention weights are worth, for the chapters of a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from decero.errors import UserError
from decero.explain.ablation import Ablation, ablate_heads
from decero.explain.chapters import view_of
from decero.explain.estimates import MIN_TEXTS
from decero.explain.faithfulness import measure_faithfulness
from decero.explain.faithfulness_lines import faithfulness_lines
from decero.explain.phrases import phrases
from decero.explain.views import Bars, Heatmap, Panel, View
from decero.inference.loading import Loaded

Text = str | tuple[str, str]
MOST_SHOWN = 20  # heads in the list of those that are missed most
LONG = 20  # words; longer texts are cut into passages: leave-one-out costs the square of the length
PASSAGES = 6  # of few long texts; more would cost more than 15 s for 512 tokens
MOST_TEXTS = 32
SENTENCE_END = regex.compile(r"(?<=[.!?…。！？])\s+|\n+")


def ablation_view(
    loaded: Loaded, texts: Sequence[Text], targets: Sequence[str] | None, language: str,
    done: Callable[[int], Any] = lambda texts: None,
) -> View:  # fmt: skip
    """Return the chapter of head ablation over all texts: the map of each kind, and the heads that are missed most.

    Raises UserError as `ablate_heads` does.
    """
    w = phrases(language)
    found = ablate_heads(loaded.model, loaded.tokenizer, texts, targets=targets, done=done)
    kinds = list(dict.fromkeys(effect.kind for effect in found.heads))
    few = [] if found.texts >= MIN_TEXTS else [w["few_texts"].format(least=MIN_TEXTS)]
    panels: list[Panel] = []
    for kind in kinds:
        change_LH = found.map(kind)
        panels.append(
            Heatmap(
                w["loss_change"] if len(kinds) == 1 else f"{w['loss_change']} ({w[kind]})",
                [str(layer) for layer in range(len(change_LH))], [str(head) for head in range(change_LH.shape[1])],
                change_LH, "signed", row_title=w["layer"], column_title=w["head"],
            )
        )  # fmt: skip
    panels.append(_most_missed(found, len(kinds) > 1, few, language))
    return view_of("ablation", language, panels, texts=found.texts, loss=found.describe(language))


@dataclass(frozen=True)
class FaithfulnessNotes:
    """Sentences for a page. by_method: name of a method -> its own sentence. rest: how it was measured."""

    by_method: dict[str, str]
    rest: list[str]

    @property
    def all(self) -> list[str]:
        """Return every sentence; first what the numbers of the methods are."""
        return [*self.rest[:1], *self.by_method.values(), *self.rest[1:]]


def faithfulness_notes(
    loaded: Loaded, texts: Sequence[Text], targets: Sequence[str] | None, language: str,
    done: Callable[[int], Any] = lambda texts: None,
) -> FaithfulnessNotes:  # fmt: skip
    """Say how well attention ranks the tokens as leaving them out does, on the user's own texts.

    Without targets, long texts are measured in passages, as `passages` cuts them. A model that the measure does not fit
    gives one sentence that says why.
    """
    w = phrases(language)
    measured: Sequence[Text] = passages(texts) if targets is None else texts
    cut = list(measured) != list(texts)
    try:
        found = measure_faithfulness(loaded.model, loaded.tokenizer, measured, targets=targets, done=done)
    except UserError as error:
        return FaithfulnessNotes({}, [w["unmeasured"].format(reason=str(error))])
    lines = faithfulness_lines(found, language)
    methods = dict(zip(found.methods, lines, strict=False))
    note = [w["passages"].format(passages=len(measured), words=LONG)] if cut else []
    return FaithfulnessNotes(methods, lines[len(methods) :] + note)


def passages(texts: Sequence[Text]) -> list[Text]:
    """Cut long texts at sentence ends, then at LONG words. Short sentences join their neighbours. Pairs are not cut.

    Chosen, evenly spread, are PASSAGES of few texts, and of many texts as many as there are, up to MOST_TEXTS.
    """
    cut: list[Text] = []
    for text in texts:
        if isinstance(text, tuple) or len(text.split()) <= LONG:
            cut.append(text)
            continue
        passage: list[str] = []
        for sentence in SENTENCE_END.split(text):
            words = sentence.split()
            if passage and len(passage) + len(words) > LONG:
                cut.append(" ".join(passage))
                passage = []
            passage += words
            while len(passage) > LONG:
                cut.append(" ".join(passage[:LONG]))
                passage = passage[LONG:]
        if passage:
            cut.append(" ".join(passage))
    count = min(len(cut), max(PASSAGES, min(len(texts), MOST_TEXTS)))
    return [cut[i * len(cut) // count] for i in range(count)]


def _most_missed(found: Ablation, several: bool, notes: Sequence[str], language: str) -> Bars:
    w = phrases(language)
    shown = found.heads[:MOST_SHOWN]
    names = [
        w["layer_head"].format(layer=each.layer, head=each.head) + (f" ({w[each.kind]})" if several else "")
        for each in shown
    ]
    lows, highs = [each.change.low for each in shown], [each.change.high for each in shown]
    known = all(low is not None for low in lows)
    return Bars(
        w["most_missed"], names, [each.change.mean for each in shown],
        [low for low in lows if low is not None] if known else None,
        [high for high in highs if high is not None] if known else None, notes=notes,
    )  # fmt: skip
