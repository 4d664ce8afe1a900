"""Average precision of boxes, by pycocotools; and what each picture adds to it, for the paired tests."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from decero.errors import UserError
from decero.evaluation.examples import ExampleStatistics

BOX_METRICS = ("map", "map_50", "map_75")
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the IoU from which a box is right
OF_METRIC = {"map": THRESHOLDS, "map_50": THRESHOLDS[:1], "map_75": THRESHOLDS[5:6]}
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # boxes of a picture that count, as in COCO
BINS = 100  # of scores, for the paired tests


class Pictured(Protocol):
    """Boxes of one picture: x1, y1, x2, y2 in pixels (boxes, 4), classes (boxes,), and scores (boxes,) if predicted."""

    @property
    def boxes(self) -> np.ndarray: ...
    @property
    def classes(self) -> np.ndarray: ...
    @property
    def scores(self) -> np.ndarray | None: ...


def need_pycocotools() -> None:
    """Raise UserError where pycocotools is not installed."""
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        raise UserError("average precision needs pycocotools: pip install 'decero[vision]'") from None


def average_precision(said: Sequence[Pictured], true: Sequence[Pictured], num_classes: int) -> dict[str, float]:
    """Return map (mean over the IoU thresholds 0.5, 0.55 ... 0.95), map_50 and map_75; 0 without an object.

    Means are over the classes that have an object. Source: COCO's own program, as pycocotools has it.
    Raises UserError where pycocotools is not installed.
    """
    need_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not sum(len(each.classes) for each in true) or not sum(len(each.classes) for each in said):
        return dict.fromkeys(BOX_METRICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO()
        truth.dataset = {
            "images": [{"id": number} for number in range(len(true))],
            "categories": [{"id": number} for number in range(num_classes)],
            "annotations": list(_annotations(true)),
        }
        truth.createIndex()
        found = COCOeval(truth, truth.loadRes(list(_annotations(said))), "bbox")
        found.evaluate()
        found.accumulate()
    precision_TRK = found.eval["precision"][:, :, :, 0, -1]  # all areas, most boxes
    means_T = [float(each[each > -1].mean()) if (each > -1).any() else 0.0 for each in precision_TRK]
    return {"map": float(np.mean(means_T)), "map_50": means_T[0], "map_75": means_T[5]}


def _annotations(pictures: Sequence[Pictured]) -> Any:
    number = 0
    for picture, each in enumerate(pictures):
        scores = each.scores if each.scores is not None else [None] * len(each.classes)
        for (x1, y1, x2, y2), kind, score in zip(each.boxes.tolist(), each.classes.tolist(), scores, strict=True):
            number += 1
            size = [x1, y1, x2 - x1, y2 - y1]
            found = {"id": number, "image_id": picture, "category_id": int(kind), "bbox": size}
            found |= {"area": size[2] * size[3], "iscrowd": 0}
            yield found if score is None else found | {"score": float(score)}


def pairwise_iou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """Return the IoU of every box of one list with every box of another, (N, M)."""
    low = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    high = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=-1)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=-1) for each in (a_N4, b_M4)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clip(min=1e-12)


def right_boxes(said: Pictured, true: Pictured, thresholds: np.ndarray) -> np.ndarray:
    """Return which predicted boxes are right at each threshold, bool (thresholds, boxes), as COCO matches them.

    The surest box comes first; it takes the object of its class that it covers best, of those that are left.
    """
    assert said.scores is not None
    right = np.zeros((len(thresholds), len(said.classes)), dtype=bool)
    iou = pairwise_iou(said.boxes, true.boxes)
    iou[said.classes[:, None] != true.classes[None]] = -1
    order = np.argsort(-said.scores, kind="mergesort")
    for row, threshold in enumerate(thresholds):
        left = np.ones(len(true.classes), dtype=bool)
        for number in order:
            free = np.where(left, iou[number], -1)
            if free.size and free.max() >= threshold - 1e-10:
                best = len(free) - 1 - int(free[::-1].argmax())  # of equal ones COCO takes the last
                left[best], right[row, number] = False, True
    return right


def box_statistics(
    metric: str, said: Sequence[Pictured], true: Sequence[Pictured], num_classes: int
) -> ExampleStatistics:
    """Return what each picture adds to an average precision: right and wrong boxes of each class and bin of scores.

    The order of all boxes by score decides an average precision, so its exact value is no function of sums. With BINS
    bins of scores it is nearly: what falls into one bin counts as equally sure. Most bins are empty, but each run
    fills others. So rows have a column for each bin; `without_empty_columns` drops those that no run fills.
    """
    thresholds = OF_METRIC[metric]
    T, N = len(thresholds), len(true)
    counts_NCTB2 = np.zeros((N, num_classes, T, BINS, 2), dtype=np.float32)
    objects_NC = np.zeros((N, num_classes), dtype=np.float32)
    for number, (ours, theirs) in enumerate(zip(said, true, strict=True)):
        np.add.at(objects_NC[number], theirs.classes, 1)
        assert ours.scores is not None
        bins = np.minimum((ours.scores * BINS).astype(int), BINS - 1)
        for row, right in enumerate(right_boxes(ours, theirs, thresholds)):
            places: Any = (ours.classes, row, bins, (~right).astype(int))
            np.add.at(counts_NCTB2[number], places, 1)

    def score(sum_K: np.ndarray) -> float:
        return binned_precision(sum_K[:num_classes], sum_K[num_classes:].reshape(num_classes, T, BINS, 2))

    return ExampleStatistics(np.concatenate([objects_NC, counts_NCTB2.reshape(N, -1)], axis=1), score)


def binned_precision(objects_C: np.ndarray, counts_CTB2: np.ndarray) -> float:
    """Return the mean average precision of counts of right and wrong boxes in bins of scores; 0 without an object."""
    found = []
    for objects, counts_TB2 in zip(objects_C, counts_CTB2, strict=True):
        if objects <= 0:
            continue
        for counts_B2 in counts_TB2:
            right, wrong = counts_B2[::-1].cumsum(axis=0).T
            precision = right / np.maximum(right + wrong, 1e-12)
            precision = np.maximum.accumulate(precision[::-1])[::-1]
            place = np.searchsorted(right / objects, RECALLS - 1e-12, side="left")
            found.append(np.append(precision, 0.0)[place].mean())
    return float(np.mean(found)) if found else 0.0
