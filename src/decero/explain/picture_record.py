"""Record what the attention of a model did with one picture, and paint it over the picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from decero.data.images import pixels_of
from decero.errors import UserError
from decero.execution.pretrained import one_line
from decero.execution.transformers_internals import attending_with
from decero.explain.capture import by_kind, run, unchanged
from decero.explain.chapters import view_of
from decero.explain.dream import Goal, dream_view
from decero.explain.phrases import phrases
from decero.explain.pictures import style
from decero.explain.record import CLOSE, answer_of, as_recorded, check_unmoved, proven
from decero.explain.recording import Attention, Piece, Recording
from decero.explain.rollout import rollout
from decero.explain.views import Drawing, View
from decero.inference.image_answers import LoadedPictures

ACROSS = 4  # pictures in a row
STRIDES = tuple(2**halvings for halvings in range(1, 7))  # of a backbone
Overlay = tuple[str, np.ndarray]  # title, and weights (height, width) in patches


def record_picture(loaded: LoadedPictures, picture: Image.Image, path: str) -> Recording:
    """Run a model on one picture and return its attention, proven as for a text: see `record`.

    Pieces are the special tokens, then the patches row by row, named by row and column. Raises UserError for a model
    that shows no attention from patch to patch.
    """
    model: Any = loaded.model
    notes: list[str] = []
    _, inputs = next(loaded.batches([picture], 1))
    with one_line(loaded.name), as_recorded(model, notes):
        inputs = {name: each.float() for name, each in inputs.items()}
        usual = answer_of(run(model, inputs))
        with unchanged(model), attending_with(model, "eager"):
            outputs = run(model, inputs, output_attentions=True)
        shown = by_kind(outputs).get("self")
        height, width = grid_of(loaded, shown[0].shape[-1] if shown else 0)
        special = 0 if not shown else shown[0].shape[-1] - height * width
        if not shown or special < 0:
            raise UserError(f"this {model.config.model_type} model shows no attention from patch to patch")
        check_unmoved(model, usual, answer_of(outputs), CLOSE, "with eager attention")
        count = special + height * width
        weights = {layer: proven(model, each, count, count) for layer, each in enumerate(shown)}
    pieces = [Piece(i, f"[{i}]", None, None) for i in range(special)]
    pieces += [Piece(special + i, f"{i // width},{i % width}", i, i + 1) for i in range(height * width)]
    attention = Attention("self", pieces, pieces, len(weights), weights[0].shape[0], weights)
    kind = model.config.model_type
    return Recording(loaded.name, kind, path, None, {"self": attention}, notes=notes, picture=True)


def grid_of(loaded: LoadedPictures, places: int) -> tuple[int, int]:
    """Return height and width of a picture in patches, or in places of the feature map that a backbone gives.

    places: how many the encoder reads, special tokens included. A backbone halves the picture several times, and
    rounds up. Raises UserError for a model without patches or such a map.
    """
    size, (height, width) = getattr(loaded.model.config, "patch_size", None), loaded.pixels.size
    sides = [size, size] if isinstance(size, int) else size
    if isinstance(sides, list | tuple) and len(sides) == 2:
        return height // sides[0], width // sides[1]
    for stride in STRIDES:
        grid = -(-height // stride), -(-width // stride)
        if grid[0] * grid[1] == places:
            return grid
    raise UserError(f"{loaded.name}: this {loaded.model.config.model_type} model has no patches to show")


def from_patches(matrix_LM: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return how much the class token looks at each patch, (height, width); without one the mean of all patches."""
    special = len(matrix_LM) - grid[0] * grid[1]
    row = matrix_LM[0] if special else matrix_LM.mean(axis=0)
    return row[special:].reshape(grid)


def picture_views(
    loaded: LoadedPictures, recording: Recording, picture: Image.Image, names: Sequence[str], layer: int | None,
    language: str, goal: Goal | None = None,
) -> list[View]:  # fmt: skip
    """Return the chapters `attention`, `rollout` and `dream` of a picture. layer: show the heads of this one.

    goal: the number that a dream raises; None: the model's own answer.

    Raises UserError for another chapter, and for a layer that is not there.
    """
    attention, w = recording.attentions["self"], phrases(language)
    grid = grid_of(loaded, len(attention.keys))
    if layer is not None and layer >= attention.num_layers:
        last = attention.num_layers - 1
        raise UserError(f"--layer {layer}: there are {attention.num_layers} layers of self attention, from 0 to {last}")
    made: dict[str, list[Overlay] | View] = {}
    for name in names:
        if name == "attention" and layer is None:
            means = {i: weights.mean(axis=0) for i, weights in attention.weights.items()}
            made[name] = [(f"{w['layer']} {i}", from_patches(mean, grid)) for i, mean in means.items()]
        elif name == "attention":
            heads = attention.weights[layer]  # type: ignore[index]
            made[name] = [(f"{w['head']} {i}", from_patches(each, grid)) for i, each in enumerate(heads)]
        elif name == "rollout":
            mean = np.mean([each.mean(axis=0, dtype=np.float64) for each in attention.weights.values()], axis=0)
            made[name] = [
                (w["of_all_layers"], from_patches(mean, grid)),
                (w["of_rollout"], from_patches(rollout(attention)[-1], grid)),
            ]
        elif name == "dream":
            made[name] = dream_view(loaded, picture, goal or Goal(), language)
        else:
            raise UserError(f"--view {name}: a picture has the views attention, rollout and dream")
    return [
        overlays
        if isinstance(overlays, View)
        else view_of(
            f"picture_{name}", language, [Drawing(w[f"picture_{name}"], draw_over(picture, overlays, language))]
        )
        for name, overlays in made.items()
    ]


def draw_over(picture: Image.Image, overlays: Sequence[Overlay], language: str) -> Figure:
    """Draw the picture alone, then faded under each overlay. The colours of each end at its largest weight."""
    plain = np.asarray(pixels_of(picture, 3, "the picture"))
    tall = plain.shape[0] / plain.shape[1]
    across = min(ACROSS, len(overlays) + 1)
    down = -(-(len(overlays) + 1) // across)
    with style():
        figure = Figure(figsize=(1.6 * across, (1.6 * tall + 0.25) * down), layout="constrained")
        for place, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
            axes.set_axis_off()
            if place > len(overlays):
                continue
            if not place:
                axes.imshow(plain, interpolation="none")
                title = phrases(language)["picture"]
            else:
                faded = 0.3 + 0.4 * plain.mean(axis=2) / 255  # else a bright patch of the picture looks like attention
                axes.imshow(faded, cmap="gray", vmin=0, vmax=1, interpolation="none")
                title, values = overlays[place - 1]
                edges = (-0.5, plain.shape[1] - 0.5, plain.shape[0] - 0.5, -0.5)
                axes.imshow(values, cmap="inferno", alpha=0.6, extent=edges, interpolation="none", vmin=0)
            axes.set_title(title, fontsize=7, pad=2)
    return figure
