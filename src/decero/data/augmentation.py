"""Change training pictures at random: a pure function of (seed, epoch, row), so that a resumed run draws the same."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

ASPECT = 3 / 4, 4 / 3  # of a random resized crop, as in Szegedy et al. 2015
FILL_MASK = 255  # what a padded place of a mask is; it is not scored


class Window(NamedTuple):
    """The part of a picture that is kept, in pixels; it may reach beyond the picture. flipped: left for right."""

    top: int
    left: int
    height: int
    width: int
    flipped: bool


@dataclass(frozen=True)
class Augmentation:
    """Draw a window for a training picture, and cut pixels, masks and boxes by it.

    horizontal_flip: flip every other picture. padding: pixels around the picture (black) that the window may reach.
    min_scale: resize a window of random size. It has at least this share of the area, and keeps the picture's shape
    within 3/4 and 4/3.

    Sources: padded crops, He et al. 2016, section 4.2; random resized crops, Szegedy et al. 2015.
    """

    horizontal_flip: bool = False
    padding: int = 0
    min_scale: float | None = None
    seed: int = 0

    def window(self, size: tuple[int, int], epoch: int, index: int) -> Window:
        """Draw the window of row `index` in an epoch. size: (height, width)."""
        rng = np.random.default_rng([self.seed, epoch, index, 1])  # 1: another stream than that of masks
        height, width = size
        flip, *places = rng.random(5)
        if self.min_scale is not None:
            area = height * width * (self.min_scale + (1 - self.min_scale) * places[0])
            low, high = np.log(ASPECT[0]), np.log(ASPECT[1])
            aspect = float(np.exp(low + (high - low) * places[1])) * width / height  # beside the picture's own shape
            aspect = float(np.clip(aspect, area / height**2, width**2 / area))  # a window that fits keeps its area
            cut_height = int(np.clip(round((area / aspect) ** 0.5), 1, height))
            cut_width = int(np.clip(round((area * aspect) ** 0.5), 1, width))
        else:
            cut_height, cut_width = height, width
        room_y, room_x = height + 2 * self.padding - cut_height, width + 2 * self.padding - cut_width
        top, left = int(places[2] * (room_y + 1)) - self.padding, int(places[3] * (room_x + 1)) - self.padding
        return Window(top, left, cut_height, cut_width, self.horizontal_flip and flip < 0.5)


def cut_pixels(pixels: np.ndarray, window: Window, fill: int = 0, smooth: bool = True) -> np.ndarray:
    """Cut a window out of uint8 (height, width[, channels]), and resize it to the size of the picture.

    fill: the value beyond the picture. smooth: bilinear, else the nearest pixel, for masks.
    """
    height, width = pixels.shape[:2]
    top, left, cut_height, cut_width, flipped = window
    if (top, left, cut_height, cut_width) != (0, 0, height, width):
        cut = np.full((cut_height, cut_width, *pixels.shape[2:]), fill, dtype=pixels.dtype)
        y0, y1 = max(0, top), min(height, top + cut_height)
        x0, x1 = max(0, left), min(width, left + cut_width)
        if y0 < y1 and x0 < x1:
            cut[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0:y1, x0:x1]
        pixels = cut if cut.shape[:2] == (height, width) else _resized(cut, height, width, smooth)
    return pixels[:, ::-1] if flipped else pixels


def cut_boxes(boxes_N4: np.ndarray, size: tuple[int, int], window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes in the window, and which of them stay: those with at least a quarter of their area inside.

    boxes_N4: x1, y1, x2, y2 as shares of the picture, (boxes, 4). size: (height, width) of the picture.
    """
    height, width = size
    scale = np.array([width, height, width, height], dtype=np.float64)
    shift = np.array([window.left, window.top] * 2, dtype=np.float64)
    ends = np.array([window.width, window.height] * 2, dtype=np.float64)
    moved = (boxes_N4 * scale - shift) / ends
    inside = moved.clip(0, 1)
    area, kept = _areas(moved), _areas(inside)
    stay = kept >= 0.25 * area
    if window.flipped:
        inside = np.stack([1 - inside[:, 2], inside[:, 1], 1 - inside[:, 0], inside[:, 3]], axis=1)
    return inside[stay], stay


def _areas(boxes_N4: np.ndarray) -> np.ndarray:
    return (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])


def _resized(pixels: np.ndarray, height: int, width: int, smooth: bool) -> np.ndarray:
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    image = Image.fromarray(pixels[:, :, 0] if grey else pixels)
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    found = np.asarray(image.resize((width, height), how))
    return found[:, :, None] if grey else found
