"""Draw how a model sees positions: waves, learned vectors, rotations, biases by distance."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel

from decero.errors import UserError
from decero.execution.position_modules import PositionSource, find_positions


@dataclass(frozen=True)
class PositionView:
    """Hold one picture of positions: plain numbers and the words beside them.

    form: `heatmap`: values are (rows, columns). `curves`: values are (curves, points); `rows` names the curves.
    columns: the number that stands below each column or point: a position, a distance or a dimension.
    Zero is the middle of a heat map's colours.
    """

    kind: str
    form: Literal["heatmap", "curves"]
    title: str
    caption: str
    values: np.ndarray
    rows: list[str]
    columns: np.ndarray
    row_label: str
    column_label: str


def position_views(model: PreTrainedModel, name: str, *, length: int = 64, language: str = "en") -> list[PositionView]:
    """Return pictures of how a model sees its first `length` positions, or fewer if its table is shorter.

    name: of the model, for the error. language: `en` or `es`.
    Raises UserError if the model has no positions of a known kind, or `length` is below 2.
    """
    if length < 2:
        raise UserError(f"{length} positions are too few to compare; give 2 or more")
    sources = find_positions(model, length)
    if not sources:
        raise UserError(
            f"{name}: this {model.config.model_type} model has no positions that decero can draw "
            "(known: waves, learned vectors, rotary, relative buckets, ALiBi slopes); choose another --view"
        )
    draw = {"waves": _waves, "learned": _learned, "rotary": _rotary, "buckets": _buckets, "slopes": _slopes}
    return [view for source in sources for view in draw[source.kind](source, WORDS[language], length)]


def cosine_similarity(table_LD: np.ndarray) -> np.ndarray:
    """Return the cosine of every pair of rows, (length, length); a row of zeros gives 0."""
    norms_L1 = np.linalg.norm(table_LD, axis=1, keepdims=True)
    unit_LD = np.divide(table_LD, norms_L1, out=np.zeros_like(table_LD), where=norms_L1 > 0)
    return unit_LD @ unit_LD.T


def rotary_decay(turns_P: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how a rotated score depends on the distance, (2, length), and the angles, (pairs, length).

    turns_P: radians a step, for each pair. Scores are relative to distance 0. Row 0: the mean score of a random vector
    with itself, which is the mean of the cosines. Row 1: the bound of Su et al. 2021 (arXiv:2104.09864), eq. 37: the
    mean of the norms of partial sums.
    """
    angle_PL = turns_P[:, None] * np.arange(length)
    mean_L = np.cos(angle_PL).mean(axis=0)
    bound_L = np.abs(np.cumsum(np.exp(1j * angle_PL), axis=0)).mean(axis=0)
    return np.stack([mean_L, bound_L / bound_L[0]]), angle_PL


def mean_by_distance(square_LL: np.ndarray) -> np.ndarray:
    """Return the mean of each diagonal of a square, (length,): entry d is the mean over pairs at distance d."""
    return np.array([np.diagonal(square_LL, distance).mean() for distance in range(len(square_LL))])


def _where(source: PositionSource, words: dict[str, str]) -> str:
    return f" ({words[source.stack]})" if source.stack else ""


def _view(
    source: PositionSource, words: dict[str, str], form: Literal["heatmap", "curves"], key: str, values: np.ndarray,
    rows: list[str], columns: np.ndarray, row_label: str, column_label: str, **numbers: Any,
) -> PositionView:  # fmt: skip
    title = words[f"{key}_title"] + _where(source, words)
    return PositionView(
        source.kind, form, title, words[f"{key}_caption"].format(**numbers), np.asarray(values, dtype=np.float32),
        rows, columns, words[row_label], words[column_label],
    )  # fmt: skip


def _similarity(source: PositionSource, words: dict[str, str], key: str) -> list[PositionView]:
    square_LL = cosine_similarity(source.values)
    positions = np.arange(len(square_LL))
    names = [str(position) for position in positions]
    curve_1L = mean_by_distance(square_LL)[None]
    return [
        _view(source, words, "heatmap", f"{key}_similarity", square_LL, names, positions, "position", "position"),
        _view(
            source, words, "curves", "similarity_curve", curve_1L, [words["mean"]], positions, "cosine", "distance",
        ),
    ]  # fmt: skip


def _waves(source: PositionSource, words: dict[str, str], length: int) -> list[PositionView]:
    rows, width = source.values.shape
    names = [str(position) for position in range(rows)]
    table = _view(
        source, words, "heatmap", "waves", source.values, names, np.arange(width), "position", "dimension", width=width,
    )  # fmt: skip
    return [table, *_similarity(source, words, "waves")]


def _learned(source: PositionSource, words: dict[str, str], length: int) -> list[PositionView]:
    return _similarity(source, words, "learned")


def _rotary(source: PositionSource, words: dict[str, str], length: int) -> list[PositionView]:
    decay_2L, angle_PL = rotary_decay(source.values, length)
    pairs = [str(pair) for pair in range(len(angle_PL))]
    fast, slow = (2 * np.pi / abs(source.values[i]) for i in (0, -1))
    curves = [words["self_score"], words["bound"]]
    distances = np.arange(length)
    return [
        _view(
            source, words, "heatmap", "rotary", np.cos(angle_PL), pairs, distances, "pair", "distance",
            pairs=len(pairs), fast=f"{fast:,.1f}", slow=f"{slow:,.0f}",
        ),
        _view(source, words, "curves", "rotary_decay", decay_2L, curves, distances, "relative_score", "distance"),
    ]  # fmt: skip


def _buckets(source: PositionSource, words: dict[str, str], length: int) -> list[PositionView]:
    assert source.distances is not None
    heads = [str(head) for head in range(len(source.values))]
    return [
        _view(source, words, "heatmap", "buckets", source.values, heads, source.distances, "head", "signed_distance")
    ]


def _slopes(source: PositionSource, words: dict[str, str], length: int) -> list[PositionView]:
    heads = [words["slope_of"].format(head=head, slope=f"{slope:.4f}") for head, slope in enumerate(source.values)]
    distances = np.arange(1 - length, 1)
    return [
        _view(
            source, words, "heatmap", "slopes", source.values[:, None] * distances, heads, distances, "head",
            "signed_distance",
        )
    ]  # fmt: skip


WORDS: dict[str, dict[str, str]] = {
    "en": {
        "encoder": "encoder",
        "decoder": "decoder",
        "position": "position",
        "dimension": "dimension",
        "distance": "distance in tokens",
        "signed_distance": "position of the key minus position of the query",
        "head": "head",
        "pair": "pair of features",
        "cosine": "cosine",
        "mean": "mean over all pairs at this distance",
        "relative_score": "score, relative to distance 0",
        "self_score": "mean score of a random vector with itself",
        "bound": "bound for any pair, relative to its start (Su et al. 2021, eq. 37)",
        "slope_of": "{head}: slope {slope}",
        "waves_title": "Waves",
        "waves_caption": "The vector that is added at each position. Each pair of its {width} dimensions is a sine and "
        "a cosine; no number is learned.",
        "waves_similarity_title": "Similarity of the waves",
        "waves_similarity_caption": "Cosine of the vectors of two positions. It depends on their distance only, so "
        "each diagonal has one colour.",
        "learned_similarity_title": "Similarity of the learned positions",
        "learned_similarity_caption": "Cosine of the learned vectors of two positions. A band along the "
        "diagonal means that the model learned that near positions are alike. Random vectors show none.",
        "similarity_curve_title": "Similarity by distance",
        "similarity_curve_caption": "Mean cosine of two positions, by their distance.",
        "rotary_title": "Rotations",
        "rotary_caption": "Cosine of the angle between a query and a key, for each of {pairs} pairs of features. The "
        "first pair turns once in {fast} tokens, the last once in {slow}.",
        "rotary_decay_title": "Score by distance",
        "rotary_decay_caption": "What the rotation alone does to the score. Both curves are theory for random vectors; "
        "trained queries and keys can undo the decay.",
        "buckets_title": "Bias by distance",
        "buckets_caption": "The number that each head adds to the score. Near distances have a bucket each; far ones "
        "share wide buckets, so the colour stays the same over long stretches.",
        "slopes_title": "ALiBi slopes",
        "slopes_caption": "The number that each head adds to the score: a fixed slope times the distance. Steep heads "
        "see near tokens only (Press et al. 2022).",
    },
    "es": {
        "encoder": "codificador",
        "decoder": "decodificador",
        "position": "posición",
        "dimension": "dimensión",
        "distance": "distancia en tokens",
        "signed_distance": "posición de la clave menos posición de la consulta",
        "head": "cabeza",
        "pair": "par de componentes",
        "cosine": "coseno",
        "mean": "media de todos los pares a esa distancia",
        "relative_score": "puntuación, relativa a la distancia 0",
        "self_score": "puntuación media de un vector aleatorio consigo mismo",
        "bound": "cota para cualquier par, relativa a su inicio (Su et al. 2021, ec. 37)",
        "slope_of": "{head}: pendiente {slope}",
        "waves_title": "Ondas",
        "waves_caption": "El vector que se suma en cada posición. Cada par de sus {width} dimensiones es un seno y un "
        "coseno; ningún número se aprende.",
        "waves_similarity_title": "Similitud de las ondas",
        "waves_similarity_caption": "Coseno entre los vectores de dos posiciones. Depende solo de su distancia, "
        "por eso cada diagonal tiene un solo color.",
        "learned_similarity_title": "Similitud de las posiciones aprendidas",
        "learned_similarity_caption": "Coseno entre los vectores aprendidos de dos posiciones. Una banda a lo largo "
        "de la diagonal indica que el modelo aprendió que las posiciones cercanas se parecen. Los vectores aleatorios "
        "no la muestran.",
        "similarity_curve_title": "Similitud según la distancia",
        "similarity_curve_caption": "Coseno medio entre dos posiciones, según su distancia.",
        "rotary_title": "Rotaciones",
        "rotary_caption": "Coseno del ángulo entre una consulta y una clave, para cada uno de los {pairs} pares de "
        "componentes. El primer par da una vuelta cada {fast} tokens; el último, cada {slow}.",
        "rotary_decay_title": "Puntuación según la distancia",
        "rotary_decay_caption": "Lo que la rotación, por sí sola, hace con la puntuación. Ambas curvas son "
        "teóricas, para vectores aleatorios; las consultas y claves entrenadas pueden anular la caída.",
        "buckets_title": "Sesgo según la distancia",
        "buckets_caption": "El número que cada cabeza suma a la puntuación. Las distancias cortas tienen un intervalo "
        "propio; las largas comparten intervalos anchos, por eso el color no cambia en tramos largos.",
        "slopes_title": "Pendientes de ALiBi",
        "slopes_caption": "El número que cada cabeza suma a la puntuación: una pendiente fija por la distancia. Las "
        "cabezas de mayor pendiente solo ven los tokens cercanos (Press et al. 2022).",
    },
}
