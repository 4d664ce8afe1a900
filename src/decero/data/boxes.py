"""Boxes of objects: three ways to write them, checked against their picture, and kept as shares of it."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from decero.errors import UserError

FORMATS = ("xywh", "xyxy", "cxcywh")  # COCO; Pascal VOC; centre and size
SLACK = 1.0  # pixels that a box may reach beyond its picture; annotators round


class Boxes(NamedTuple):
    """Boxes of one picture: x1, y1, x2, y2 in pixels (boxes, 4), classes (boxes,), and scores (boxes,) if predicted."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None


def to_corners(boxes_N4: np.ndarray, form: str) -> np.ndarray:
    """Return x1, y1, x2, y2 of boxes that are written as `form`, one of FORMATS, (boxes, 4)."""
    first, second = boxes_N4[..., :2], boxes_N4[..., 2:]
    if form == "xyxy":
        return np.array(boxes_N4)
    low = first if form == "xywh" else first - second / 2
    return np.concatenate([low, low + second], axis=-1)


def from_corners(boxes_N4: np.ndarray, form: str) -> np.ndarray:
    """Return boxes x1, y1, x2, y2 written as `form`, one of FORMATS, (boxes, 4)."""
    low, high = boxes_N4[..., :2], boxes_N4[..., 2:]
    if form == "xyxy":
        return np.array(boxes_N4)
    return np.concatenate([low if form == "xywh" else (low + high) / 2, high - low], axis=-1)


def checked_boxes(boxes: Any, form: str, size: tuple[int, int], where: str) -> np.ndarray:
    """Return x1, y1, x2, y2 as shares of the picture, float64 (boxes, 4).

    boxes: four numbers each, in pixels, written as `form`. size: (width, height) of the picture.

    Raises UserError for other than four numbers, a box of no size, and one outside of its picture.
    """
    width, height = size
    found = []
    for number, box in enumerate(boxes or ()):
        name = f"{where}, box {number} {_shown(box)}"
        values = box if isinstance(box, Sequence | np.ndarray) and not isinstance(box, str) else [None]
        if len(values) != 4 or not all(isinstance(v, int | float) and np.isfinite(v) for v in values):
            raise UserError(f"{name}: a box has four numbers ({form}, in pixels); correct it")
        x1, y1, x2, y2 = to_corners(np.array(values, dtype=np.float64), form)
        mend = f"correct it, or set data.box_format (now {form})"
        if x2 <= x1 or y2 <= y1:
            raise UserError(f"{name}: it has no size, {x2 - x1:g} x {y2 - y1:g} pixels; {mend}")
        if min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
            place = f"x {x1:g} to {x2:g}, y {y1:g} to {y2:g}"
            raise UserError(f"{name}: {place} is outside of its picture of {width} x {height} pixels; {mend}")
        inside = np.clip([x1, y1, x2, y2], 0, [width, height, width, height])
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            raise UserError(f"{name}: it is outside of its picture of {width} x {height} pixels; {mend}")
        found.append(inside / [width, height, width, height])
    return np.array(found, dtype=np.float64).reshape(-1, 4)


def check_pixels(pictures: Iterable[tuple[str, Any]]) -> None:
    """Raise UserError for boxes that are shares of their pictures: all numbers in [0, 1], and not all whole.

    pictures: the name of each picture of a split in messages, and its boxes as they are written. It reads no further
    than the first box that lies elsewhere. A split of whole numbers only may have boxes of one pixel.
    """
    first, whole = "", True
    for name, boxes in pictures:
        for number, box in enumerate(boxes or ()):
            values: Any = box if isinstance(box, Sequence | np.ndarray) else [None]
            if not all(isinstance(v, int | float) and 0 <= v <= 1 for v in values):
                return
            first = first or f"{name}, box {number} {_shown(box)}"
            whole = whole and all(float(v).is_integer() for v in values)
    if first and not whole:
        raise UserError(
            f"{first}: here all boxes lie in [0, 1], as shares of the picture, but boxes are in pixels; multiply them "
            "by the width and height of their pictures  (setting: data.box_format)"
        )


def _shown(box: Any) -> str:
    values = [f"{v:g}" if isinstance(v, int | float) else str(v)[:20] for v in box] if isinstance(box, list) else [box]
    return f"[{', '.join(map(str, values[:6]))}]"
