"""Explain a model on some texts: record each, measure on all, and give pages and pictures."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from matplotlib.figure import Figure

from decero.errors import UserError
from decero.explain.chapters import attention_view, attribution_view, lens_view, positions_view, rollout_view
from decero.explain.effect_chapters import FaithfulnessNotes, Text, ablation_view, faithfulness_notes
from decero.explain.page import Line, index_page, page
from decero.explain.pictures import draw_head, draw_heads, draw_panel, render
from decero.explain.record import read_texts, record
from decero.explain.recording import Attention, Recording
from decero.explain.views import View
from decero.inference.loading import Loaded

Place = tuple[str | None, int | None, int | None]  # kind, layer, head


class Explainer:
    """Explain one model on some texts.

    texts: or pairs. target: what the decoder reads with the only text. views: names, in the order of the page.
    place: kind, layer and head of the picture, None for the default or all.
    done: called after each step of a measurement over texts.

    Recordings are made anew for each page, so that only one is in memory. What is measured over all texts is measured
    once: the ablation of heads, and how faithful attention is.
    """

    def __init__(
        self, loaded: Loaded, texts: Sequence[Text], *, target: str | None = None, views: Sequence[str] = ("attention",),
        language: str = "en", place: Place = (None, None, None), done: Callable[..., Any] = lambda *step: None,
    ):  # fmt: skip
        self.loaded = loaded
        self.texts = list(texts)
        self.target = target
        self.names = list(views)
        self.language = language
        self.place = place
        self.done = done
        self.tokens: list[int] = []

    def check(self, numbers: Sequence[int]) -> None:
        """Read every text before anything is written. Raises UserError with the number of the line."""
        for number, (first, second) in zip(numbers, map(_both, self.texts), strict=True):
            try:
                source, _, _ = read_texts(self.loaded.model, self.loaded.tokenizer, first, second, self.target)
            except UserError as error:
                raise error if len(self.texts) == 1 else UserError(f"line {number}: {error}") from error
            self.tokens.append(len(source.pieces))

    def page(self, index: int, *, in_index: bool = False) -> str:
        """Return the page of one text."""
        recording = self._record(index)
        views = self._views(recording)
        faithful = self.faithfulness.all if "attention" in self.names else []
        start = None
        if self.place != (None, None, None):
            attention, layer, head = self._placed(recording)
            start = (attention.kind, layer or 0, head or 0)
        return page(
            recording, views, faithfulness=faithful, language=self.language, in_index=in_index, start=start
        )  # fmt: skip

    def index(self, hrefs: Sequence[str]) -> str:
        """Return the page that lists the pages of all texts."""
        lines = [
            Line(href, " ⇥ ".join(each for each in _both(text) if each is not None), tokens)
            for href, text, tokens in zip(hrefs, self.texts, self.tokens, strict=True)
        ]
        return index_page(self.loaded.name, lines, self.language)

    def pictures(self, kind: str) -> list[bytes]:
        """Return the pictures of the only view for the first text, as `png` or `svg`."""
        return [render(figure, kind) for figure in self._figures]

    @cached_property
    def faithfulness(self) -> FaithfulnessNotes:
        """How well attention ranks tokens as leave-one-out does, in sentences."""
        return faithfulness_notes(self.loaded, self.texts, self._targets, self.language, self.done)

    @cached_property
    def _ablation(self) -> View:
        return ablation_view(self.loaded, self.texts, self._targets, self.language, self.done)

    @cached_property
    def _figures(self) -> list[Figure]:
        recording = self._record(0)
        if self.names == ["attention"]:
            attention, layer, head = self._placed(recording)
            if layer is not None and head is not None:
                return [draw_head(attention, layer, head, self.language)]
            layers = sorted(attention.weights) if layer is None else [layer]
            return [draw_heads(attention, layers, self.language)]
        return [draw_panel(panel, self.language) for view in self._views(recording) for panel in view.panels]

    @property
    def _targets(self) -> list[str] | None:
        return None if self.target is None else [self.target]

    def _record(self, index: int) -> Recording:
        first, second = _both(self.texts[index])
        found = record(
            self.loaded.model, self.loaded.tokenizer, first, text_b=second, target=self.target,
            values="rollout" in self.names, hidden="lens" in self.names,
        )  # fmt: skip
        found.model = self.loaded.name
        return found

    def _views(self, recording: Recording) -> list[View]:
        make: dict[str, Callable[[], View]] = {
            "attention": lambda: attention_view(recording, self.language),
            "lens": lambda: lens_view(self.loaded, recording, self.language),
            "rollout": lambda: rollout_view(
                recording, self.faithfulness.by_method, self.faithfulness.rest, self.language
            ),
            "ablation": lambda: self._ablation,
            "positions": lambda: positions_view(self.loaded, self.language),
            "attribution": lambda: attribution_view(self.loaded, recording, self.language),
        }
        return [make[name]() for name in self.names]

    def _placed(self, recording: Recording) -> tuple[Attention, int | None, int | None]:
        """Return the attention, layer and head that the user asked for. Raises UserError for one that is not there."""
        kind, layer, head = self.place
        there = recording.attentions
        if kind is not None and kind not in there:
            raise UserError(f"--kind {kind}: this {recording.family} model has {' and '.join(there)} attention only")
        name = kind or ("cross" if "cross" in there else next(iter(there)))
        attention = next(each for each in there.values() if each.kind == name)
        for option, number, count in (("layer", layer, attention.num_layers), ("head", head, attention.num_heads)):
            if number is not None and number >= count:
                raise UserError(
                    f"--{option} {number}: there are {count} {option}s of {name} attention, from 0 to {count - 1}"
                )
        return attention, layer, head


def _both(text: Text) -> tuple[str, str | None]:
    return text if isinstance(text, tuple) else (text, None)
