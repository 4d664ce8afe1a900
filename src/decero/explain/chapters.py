"""Turn what was found inside a model into the chapters of a page."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from decero.errors import UserError
from decero.explain.alignment import align
from decero.explain.attribution import Attribution, attribute
from decero.explain.explained import own_answer
from decero.explain.lens import Lens, lens
from decero.explain.phrases import phrases
from decero.explain.pieces import token_text
from decero.explain.position_views import PositionView, position_views
from decero.explain.record import accepted, as_recorded, read_texts
from decero.explain.recording import Attention, HiddenStates, Recording
from decero.explain.rollout import rollout
from decero.explain.stream_measures import cosines_to_last, cosines_to_next, norms
from decero.explain.views import Curves, Heatmap, Panel, Passage, View, labels, printable
from decero.inference.loading import Loaded


def view_of(name: str, language: str, panels: Sequence[Panel], **numbers: str | int) -> View:
    """Return a chapter with the words that belong to its name; `numbers` are filled in."""
    w = phrases(language)
    return View(name, w[name], w[f"{name}_about"].format(**numbers), w[f"{name}_caution"], panels)


def attention_view(recording: Recording, language: str) -> View:
    """Return the chapter of all heads; of a translation also the words of both sides."""
    w = phrases(language)
    panels: list[Panel] = []
    if "cross" in recording.attentions:
        try:
            words = align(recording)
        except UserError:  # no word on one side: then there is nothing to align
            return view_of("attention", language, [])
        panels.append(
            Heatmap(
                w["alignment"], [printable(word.text) for word in words.target],
                [printable(word.text) for word in words.source], words.weights, "weights",
                row_title=w["target_word"], column_title=w["source_word"], notes=[words.caveat(language)],
            )
        )  # fmt: skip
    return view_of("attention", language, panels)


def rollout_view(recording: Recording, faithfulness: dict[str, str], rest: Sequence[str], language: str) -> View:
    """Return the chapter of the mean of all heads, rollout and value-weighted attention.

    faithfulness: name of a method -> its sentence, which stands below its picture. rest: sentences below the last one.
    Raises UserError as `rollout` does.
    """
    w = phrases(language)
    panels: list[Panel] = []
    for kind, attention in recording.attentions.items():
        if kind == "cross":
            continue
        matrices = {"all_layers": _mean(attention.weights), "rollout": rollout(attention)[-1]}
        if attention.value_norms:
            weighted_LM = _mean(attention.value_norms)
            sums_L1 = weighted_LM.sum(-1, keepdims=True)
            matrices["value_weighted"] = np.divide(weighted_LM, sums_L1, out=weighted_LM, where=sums_L1 > 0)
        for name, matrix in matrices.items():
            said = [faithfulness[name]] if name in faithfulness else []
            last = rest if name == list(matrices)[-1] else []
            panels.append(_square(w[f"of_{name}"], attention, matrix, [w[kind], *said, *last], language))
    return view_of("rollout", language, panels)


def lens_view(loaded: Loaded, recording: Recording, language: str) -> View:
    """Return the chapter of hidden states and, for a model with a head over a vocabulary, the logit lens.

    recording: with hidden states. Raises UserError for a model whose layers cannot be found.
    """
    w = phrases(language)
    panels: list[Panel] = []
    if loaded.model.get_output_embeddings() is not None:
        panels += _lens_panels(lens(loaded.model, loaded.tokenizer, recording.text, target=recording.target), language)
    for stack, hidden in recording.hidden.items():
        where = f" ({w[stack]})" if len(recording.hidden) > 1 else ""
        panels += _hidden_panels(hidden, where, language)
    if not panels:
        raise UserError(f"{loaded.name}: the layers of this {recording.family} model cannot be found")
    return view_of("lens", language, panels)


def positions_view(loaded: Loaded, language: str) -> View:
    """Return the chapter of positions. Raises UserError as `position_views` does."""
    found = position_views(loaded.model, loaded.name, language=language)
    return view_of("positions", language, [_position_panel(each) for each in found])


def attribution_view(loaded: Loaded, recording: Recording, language: str) -> View:
    """Return the chapter of integrated gradients: a passage for each explained output.

    Raises UserError as `attribute` and `own_answer` do.
    """
    w = phrases(language)
    model, tokenizer = loaded.model, loaded.tokenizer
    with as_recorded(model):
        source, decoder, _ = read_texts(model, tokenizer, recording.text, recording.text_b, recording.target)
        explained = own_answer(model, tokenizer, accepted(model, source.inputs | (decoder.inputs if decoder else {})))
        written = [not piece.special for piece in source.pieces]
        whole = explained.what == "target"  # its tokens are many, so their sum is explained
        found = attribute(model, tokenizer, explained, written=written, summed=whole)
    titles = [_answer(loaded, found, number, language) for number in range(len(found.scores))]
    panels = [
        Passage(
            title, labels(source.pieces), scores.tolist(),
            notes=[
                w["complete" if closed else "incomplete"].format(
                    difference=f"{difference:.3f}", sum=f"{scores.sum():.3f}"
                )
            ],
        )
        for title, scores, difference, closed in zip(
            titles, found.scores, found.differences, found.closed, strict=True
        )
    ]  # fmt: skip
    return view_of("attribution", language, panels, baseline=found.compared_with(language))


def _mean(matrices: dict[int, np.ndarray]) -> np.ndarray:
    return np.mean([each.mean(axis=0, dtype=np.float64) for each in matrices.values()], axis=0)


def _square(title: str, attention: Attention, matrix: np.ndarray, notes: Sequence[str], language: str) -> Heatmap:
    w = phrases(language)
    return Heatmap(
        title, labels(attention.queries), labels(attention.keys), matrix, "weights", notes=notes,
        row_title=w["query"], column_title=w["key"],
    )  # fmt: skip


def _layer_names(count: int, language: str) -> list[str]:
    w = phrases(language)
    return [w["embeddings"], *(w["after_layer"].format(layer=layer) for layer in range(count - 1))]


def _lens_panels(found: Lens, language: str) -> list[Panel]:
    w = phrases(language)
    names, columns = _layer_names(len(found.ids), language), labels(found.pieces)
    shared = {"row_title": w["layer"], "column_title": w["token"]}
    texts = [[printable(found.texts[int(number)].strip(" ")) or "␣" for number in row] for row in found.ids[..., 0]]
    note = w[f"lens_{found.predicts}"]
    likeliest = found.probabilities[..., 0]
    return [
        Heatmap(w["lens_of"], names, columns, likeliest, "weights", texts=texts, notes=[note], **shared),
        Heatmap(w["rank_of_answer"], names, columns, found.ranks, "logs", notes=[w["rank_note"]], **shared),
    ]


def _hidden_panels(hidden: HiddenStates, where: str, language: str) -> list[Panel]:
    w = phrases(language)
    names, columns = _layer_names(len(hidden.states), language), labels(hidden.pieces)
    shared = {"row_title": w["layer"], "column_title": w["token"]}
    lengths = norms(hidden)
    return [
        Heatmap(
            w["state_norm"] + where, names, columns, lengths, "logs" if lengths.min() > 0 else "values",
            notes=[w["norm_note"]], **shared,
        ),
        Heatmap(w["to_next"] + where, names[:-1], columns, cosines_to_next(hidden), "signed", **shared),
        Heatmap(w["to_last"] + where, names, columns, cosines_to_last(hidden), "signed", **shared),
    ]  # fmt: skip


def _position_panel(found: PositionView) -> Panel:
    if found.form == "curves":
        return Curves(
            found.title, found.rows, found.columns.tolist(), found.values, found.column_label, found.row_label,
            notes=[found.caption],
        )  # fmt: skip
    return Heatmap(
        found.title, found.rows, [str(number) for number in found.columns], found.values, "signed",
        notes=[found.caption], row_title=found.row_label, column_title=found.column_label,
    )  # fmt: skip


def _answer(loaded: Loaded, found: Attribution, number: int, language: str) -> str:
    w = phrases(language)
    what = found.explained.what
    if what in ("target", "vector"):
        return w[f"explains_{what}"]
    token = found.explained.ids[number]
    if what == "label":
        names: Any = loaded.model.config.id2label
        return w["explains_label"].format(answer=printable(str(names[token])))
    return w["explains_token"].format(answer=printable(token_text(loaded.tokenizer, token).strip(" ")) or "␣")
