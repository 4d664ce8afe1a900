"""Paste objects of one training picture into another, with their masks: copy-paste (Ghiasi et al. 2021)."""

from typing import NamedTuple

import numpy as np

from decero.data.augmentation import Window, cut_boxes, cut_pixels, still_counts

BACKGROUND = 0  # the id of a mask that is never pasted


class Scene(NamedTuple):
    """A picture, and what is on it.

    pixels: uint8 (height, width, channels). mask: one id a pixel, uint8 (height, width), or None. boxes: x1, y1, x2, y2
    as shares of the picture (boxes, 4), with the class of each, (boxes,); or None.
    """

    pixels: np.ndarray
    mask: np.ndarray | None = None
    boxes: np.ndarray | None = None
    classes: np.ndarray | None = None


def cut_scene(scene: Scene, window: Window, ignored: int) -> Scene:
    """Cut a window out of a picture, its mask and its boxes. ignored: the id of mask pixels beyond the picture."""
    pixels, (mask, boxes, classes) = cut_pixels(scene.pixels, window), scene[1:]
    if mask is not None:
        mask = cut_pixels(mask, window, ignored, smooth=False)
    if boxes is not None and classes is not None:
        boxes, stay = cut_boxes(boxes, scene.pixels.shape[:2], window)
        classes = classes[stay]
    return Scene(pixels, mask, boxes, classes)


def paste(scene: Scene, other: Scene, drawn: np.random.Generator, ignored: int) -> Scene:
    """Paste objects of `other` over `scene`: each with probability one half, at least one. Both need masks.

    An object is a box with its pixels of the mask; without boxes, all pixels of one id. The background is never pasted.
    A box of `scene` that is partly covered shrinks to what is still seen; below a quarter of its pixels it is dropped.
    Where the mask has no pixels of its object, all of the box counts.
    """
    assert scene.mask is not None
    assert other.mask is not None
    objects = objects_of(other, ignored)
    there = np.array([pixels.any() for pixels in objects], dtype=bool)
    if not there.any():
        return scene
    chosen = there & (drawn.random(len(objects)) < 0.5)
    chosen[drawn.choice(np.flatnonzero(there))] = True
    covers_HW = np.any([objects[number] for number in np.flatnonzero(chosen)], axis=0)
    pixels = np.where(covers_HW[:, :, None], other.pixels, scene.pixels)
    mask = np.where(covers_HW, other.mask, scene.mask)
    if scene.boxes is None or scene.classes is None or other.boxes is None or other.classes is None:
        return Scene(pixels, mask)
    boxes, stay = _still_seen(scene, covers_HW, ignored)
    return Scene(
        pixels,
        mask,
        np.concatenate([boxes, other.boxes[chosen]]),
        np.concatenate([scene.classes[stay], other.classes[chosen]]),
    )


def objects_of(scene: Scene, ignored: int) -> list[np.ndarray]:
    """Return the pixels of each object, bool (height, width): one for each box, else one for each id of the mask."""
    assert scene.mask is not None
    if scene.boxes is not None:
        return [object_pixels(scene.mask, box, ignored) for box in scene.boxes]
    return [scene.mask == each for each in np.unique(scene.mask) if each not in (BACKGROUND, ignored)]


def object_pixels(mask_HW: np.ndarray, box: np.ndarray, ignored: int) -> np.ndarray:
    """Return which pixels belong to the object of a box, bool (height, width).

    They have one id: the one whose pixels reach over most of the box. So a mask may have an id for each class, or one
    for each object.
    """
    inside = inside_box(mask_HW.shape, box)
    found = [inside & (mask_HW == each) for each in np.unique(mask_HW[inside]) if each not in (BACKGROUND, ignored)]
    return max(found, key=_size, default=np.zeros_like(inside))


def inside_box(shape: tuple[int, ...], box: np.ndarray) -> np.ndarray:
    """Return which pixels are in a box, bool (height, width); at least one."""
    height, width = shape
    left, top, right, bottom = np.round(box * [width, height, width, height]).astype(int)
    inside = np.zeros(shape, dtype=bool)
    inside[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return inside


def _size(pixels_HW: np.ndarray) -> tuple[int, int]:
    """The area of the smallest box around the pixels, and how many they are."""
    x1, y1, x2, y2 = extent(pixels_HW)
    return (x2 - x1) * (y2 - y1), int(pixels_HW.sum())


def extent(pixels_HW: np.ndarray) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 of the smallest box around the pixels that are true; there must be one."""
    ys, xs = np.flatnonzero(pixels_HW.any(axis=1)), np.flatnonzero(pixels_HW.any(axis=0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _still_seen(scene: Scene, covers_HW: np.ndarray, ignored: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of a scene that are still seen, and which they are."""
    assert scene.boxes is not None
    height, width = covers_HW.shape
    boxes, stay = scene.boxes.copy(), np.ones(len(scene.boxes), dtype=bool)
    for number, pixels in enumerate(objects_of(scene, ignored)):
        pixels = pixels if pixels.any() else inside_box(pixels.shape, scene.boxes[number])
        left = pixels & ~covers_HW
        if left.sum() == pixels.sum():
            continue
        stay[number] = still_counts(left.sum(), pixels.sum())
        if stay[number]:
            boxes[number] = np.array(extent(left)) / [width, height, width, height]
    return boxes[stay], stay
