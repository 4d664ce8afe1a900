"""Draw what finished runs find in photographs: the pictures of docs/make_answer_pictures.py with boxes and masks."""

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from make_pictures import DOCS, ORANGE
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from decero.data.boxes import Boxes
from decero.data.images import open_image
from decero.evaluation.average_precision import pairwise_iou, right_boxes

DATA, RUNS = DOCS.parent / "data", DOCS.parent / "runs"
SCENES = DATA / "stamps_scenes" / "test.parquet"
SURE, IOU = 0.5, 0.5  # the probability from which a box is drawn, the IoU from which it is right
# black for the background, then those of Petroff 2021 with white for a second grey: color-blind readers can tell them
CLASSES = (
    "black", "#3f90da", "#ffa90e", "#bd1f01", "white", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
TAGS = "", "white", "platelet"  # of the three classes of cells; red ones have none


def show(axes: Axes, picture: np.ndarray | Image.Image, title: str = "", smooth: bool = False) -> None:
    """Draw a picture without ticks; grey pixels are 0 to 255. smooth: for a picture that is larger than its place."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="hanning" if smooth else "none")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)


# --- boxes


class Judged(NamedTuple):
    """A picture with its sure boxes and its true ones. right: which sure boxes are right, as AP50 counts."""

    row: int
    said: Boxes
    true: Boxes
    right: np.ndarray

    @property
    def recall(self) -> float:
        return self.right.sum() / len(self.true.classes)

    @property
    def f1(self) -> float:
        return 2 * self.right.sum() / (len(self.said.classes) + len(self.true.classes))

    @property
    def counts(self) -> str:
        other = (~self.right).sum()
        return f"{self.right.sum()} of {len(self.true.classes)} found, {other} other box{'' if other == 1 else 'es'}"


def judge(row: Any) -> Judged:
    """Match the boxes of a row of `predictions.parquet`."""
    sure = row.scores > SURE
    said = Boxes(np.stack(row.predicted_boxes)[sure], row.predicted_classes[sure], row.scores[sure])
    true = Boxes(np.stack(row.boxes), row.classes)
    return Judged(row.row, said, true, right_boxes(said, true, np.array([IOU]))[0])


def outline(axes: Axes, box: np.ndarray, linewidth: float = 1.3, **style: Any) -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=linewidth, **style))


# --- drawings on photographs


def read_scenes(run: Path, data: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Return the answers for pictures whose drawings occur in train, all pictures, and the names of the classes."""
    answers, source = pd.read_parquet(run / "predictions.parquet"), pd.read_parquet(data)
    names = json.loads((run / "result.json").read_text(encoding="utf-8"))["label_names"]
    return answers[source["seen_stamps"][answers["row"]].to_numpy()], source, names


def corner(box: np.ndarray, letters: int, taken: np.ndarray, below: bool) -> np.ndarray:
    """Return a place for a name at a corner of a box, where it covers least of the places that are taken.

    The picture has 96 x 96 pixels and is drawn 190 dots wide. below: prefer the lower corners.
    """
    x1, y1, x2, y2 = box
    size = np.array([3.1 * letters + 2, 7])  # of a name, in pixels
    heights = [y1 - size[1], y1, y2 - size[1], y2]
    starts = [(x, y) for y in (heights[::-1] if below else heights) for x in (x1, x2 - size[0])]
    places = [np.concatenate([start, start + size]) for start in np.clip(starts, 0, 95 - size)]
    return min(places, key=lambda place: pairwise_iou(place[None], taken).sum())


def write_names(axes: Axes, each: Judged, names: list[str]) -> None:
    """Write the classes of the boxes that were said and, where objects were missed, of the true ones."""
    taken = np.zeros((0, 4))
    kinds = [(each.said, ORANGE, False), (each.true, "white", True)]
    for found, color, below in kinds if each.recall < 1 else kinds[:1]:
        for box, kind in zip(found.boxes, found.classes, strict=True):
            place = corner(box, len(names[kind]), taken, below)
            taken = np.concatenate([taken, place[None]])
            paper = {"facecolor": color, "edgecolor": "none", "pad": 1}
            middle = (place[:2] + place[2:]) / 2
            axes.text(*middle, names[kind], fontsize=7, ha="center", va="center", bbox=paper)


def boxes(run: Path = RUNS / "scenes_detr", data: Path = SCENES) -> Figure:
    answers, source, names = read_scenes(run, data)
    large = sorted(map(judge, answers.itertuples()), key=lambda each: -len(each.true.classes))
    groups = {
        "best: highest F1": sorted(large, key=lambda each: -each.f1),
        "worst: lowest F1": sorted(large, key=lambda each: each.f1),
    }
    figure = Figure(figsize=(8, 5.1), layout="constrained")
    *parts, key = figure.subfigures(3, 1, height_ratios=(10, 10, 1))
    for part, (name, group) in zip(parts, groups.items(), strict=True):
        part.suptitle(name, fontweight="bold")
        for axes, each in zip(part.subplots(1, 4), group, strict=False):
            show(axes, open_image(source["image"][each.row], str(data)), each.counts, smooth=True)
            for box in each.true.boxes:
                outline(axes, box, color="white")
                outline(axes, box, color="black", linestyle=":")
            for box in each.said.boxes:
                outline(axes, box, color=ORANGE, linewidth=2)
            write_names(axes, each, names)
    said = Patch(edgecolor=ORANGE, fill=False, linewidth=2, label="said")
    true = Patch(edgecolor="black", fill=False, linewidth=1.3, linestyle=":", label="true")
    key.legend(handles=[said, true], loc="center", ncols=2, frameon=False)
    return figure


def right_share(row: Any) -> float:
    """Return the share of right pixels, of those that are or were said to be of a drawing. Class 0 is background."""
    return row.right[1:].sum() / (row.true.sum() - row.right[0])


def masks(run: Path = RUNS / "stamps_masks", data: Path = SCENES) -> Figure:
    answers, source, names = read_scenes(run, data)
    large = sorted(answers.itertuples(), key=lambda row: row.true[0])
    groups = {
        "best: most pixels right": sorted(large, key=right_share, reverse=True),
        "worst: fewest pixels right": sorted(large, key=right_share),
    }
    colors = np.array([to_rgb(color) for color in CLASSES])
    figure = Figure(figsize=(8, 6.2), layout="constrained")
    grid, key = figure.subfigures(2, 1, height_ratios=(11, 1))
    for part, (name, group) in zip(grid.subfigures(1, 2), groups.items(), strict=True):
        part.suptitle(name, fontweight="bold")
        panels = part.subplots(4, 3)
        for line, row in zip(panels, group, strict=False):
            line[0].set_ylabel(f"{100 * right_share(row):.0f} % right")
            show(line[0], open_image(source["image"][row.row], str(data)), smooth=True)
            for axes, mask in zip(line[1:], (row.prediction, source["mask"][row.row]["bytes"]), strict=True):
                show(axes, colors[np.asarray(Image.open(io.BytesIO(mask)))])
        for axes, kind in zip(panels[0], ("picture", "said", "true"), strict=True):
            axes.set_title(kind, fontsize=9)
    patches = [Patch(facecolor=color, edgecolor="grey", label=name) for name, color in zip(names, CLASSES, strict=True)]
    key.legend(handles=patches, loc="center", ncols=6, frameon=False)
    return figure


# --- blood cells


def cells(
    run: Path = RUNS / "compare" / "bccd_0" / "runs" / "ours" / "labels-all" / "seed-0",
    data: Path = DATA / "bccd" / "test.parquet",
) -> Figure:
    pictures, found = pd.read_parquet(data)["image"], pd.read_parquet(run / "predictions.parquet")
    best = sorted(map(judge, found.itertuples()), key=lambda each: -each.f1)
    fewest = sorted(best, key=lambda each: each.recall)
    groups = {
        "best: highest F1": best[:3],
        "worst: lowest F1": best[:-4:-1],
        "worst: most marked cells missed, by share": fewest[:3],
    }
    figure = Figure(figsize=(8, 7.6), layout="constrained")
    for part, (name, group) in zip(figure.subfigures(3, 1), groups.items(), strict=True):
        part.suptitle(name, fontweight="bold")
        for axes, each in zip(part.subplots(1, 3), group, strict=False):
            show(axes, open_image(pictures[each.row], str(data)), each.counts, smooth=True)
            for box in each.true.boxes:
                outline(axes, box, color="black", linestyle=":")
            for box, kind in zip(each.said.boxes, each.said.classes, strict=True):
                outline(axes, box, color=ORANGE)
                if TAGS[kind]:
                    paper = {"facecolor": ORANGE, "edgecolor": "none", "pad": 1}
                    side = "bottom" if box[1] > 40 else "top"  # above the box, where the picture has room
                    axes.text(*box[:2], TAGS[kind], fontsize=7, va=side, bbox=paper)
    return figure
