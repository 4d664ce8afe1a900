"""Draw what finished runs find in photographs: the pictures of docs/make_answer_pictures.py with boxes."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from make_pictures import DOCS, ORANGE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from decero.data.boxes import Boxes
from decero.data.images import open_image
from decero.evaluation.average_precision import right_boxes

DATA, RUNS = DOCS.parent / "data", DOCS.parent / "runs"
SURE, IOU = 0.5, 0.5  # the probability from which a box is drawn, the IoU from which it is right
TAGS = "", "white", "platelet"  # of the three classes of cells; red ones have none


def show(axes: Axes, picture: np.ndarray | Image.Image, title: str = "", smooth: bool = False) -> None:
    """Draw a picture without ticks; grey pixels are 0 to 255. smooth: for a picture that is larger than its place."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="hanning" if smooth else "none")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)


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


def judge(row: Any) -> Judged:
    """Match the boxes of a row of `predictions.parquet`."""
    sure = row.scores > SURE
    said = Boxes(np.stack(row.predicted_boxes)[sure], row.predicted_classes[sure], row.scores[sure])
    true = Boxes(np.stack(row.boxes), row.classes)
    return Judged(row.row, said, true, right_boxes(said, true, np.array([IOU]))[0])


def outline(axes: Axes, box: np.ndarray, **style: Any) -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.3, **style))


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
            other = (~each.right).sum()
            counts = (
                f"{each.right.sum()} of {len(each.true.classes)} found, {other} other box{'' if other == 1 else 'es'}"
            )
            show(axes, open_image(pictures[each.row], str(data)), counts, smooth=True)
            for box in each.true.boxes:
                outline(axes, box, color="black", linestyle=":")
            for box, kind in zip(each.said.boxes, each.said.classes, strict=True):
                outline(axes, box, color=ORANGE)
                if TAGS[kind]:
                    paper = {"facecolor": ORANGE, "edgecolor": "none", "pad": 1}
                    side = "bottom" if box[1] > 40 else "top"  # above the box, where the picture has room
                    axes.text(*box[:2], TAGS[kind], fontsize=7, va=side, bbox=paper)
    return figure
