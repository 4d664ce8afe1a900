"""Change training pictures at random: a pure function of (seed, epoch, row), so that a resumed run draws the same."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

ASPECT = 3 / 4, 4 / 3  # of a random resized crop, as in Szegedy et al. 2015
ERASED_AREA, ERASED_ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)  # as in Zhong et al. 2020, section 4.2
WINDOW, COLORS, ERASED, PASTED, PASTED_WINDOW = 1, 4, 5, 6, 7  # the streams of random numbers
# 2 and 3 belong to hidden patches, noise and boxes


class Window(NamedTuple):
    """The part of a picture that is kept, in pixels; it may reach beyond the picture. flipped: left for right."""

    top: int
    left: int
    height: int
    width: int
    flipped: bool


@dataclass(frozen=True)
class Augmentation:
    """Draw a window for a training picture, other colors, and a rectangle that is erased.

    horizontal_flip: flip every other picture. padding: pixels around the picture (black) that the window may reach.
    min_scale, max_scale: resize a window of random size. Its area is between these shares of the picture's; a larger
    one shows the picture smaller, with a black edge. Its shape is that of the picture within 3/4 and 4/3.
    color_jitter: change brightness, contrast and saturation, each by up to this share. erasing: the probability to
    erase a rectangle of 2 to 40 % of the area. copy_paste: the probability to paste objects of another picture.

    Sources: padded crops, He et al. 2016, section 4.2; random resized crops, Szegedy et al. 2015; larger windows, SSD
    (Liu et al. 2016, section 3.6); colors, Howard 2013; erasing, Zhong et al. 2020; pasting, Ghiasi et al. 2021.
    """

    horizontal_flip: bool = False
    padding: int = 0
    min_scale: float | None = None
    seed: int = 0
    max_scale: float = 1.0
    color_jitter: float = 0.0
    erasing: float = 0.0
    copy_paste: float = 0.0

    def __bool__(self) -> bool:
        """Whether anything changes."""
        sizes = self.min_scale is not None or self.max_scale > 1
        places = self.horizontal_flip or self.padding or sizes
        return bool(places or self.color_jitter or self.erasing or self.copy_paste)

    def numbers(self, stream: int, epoch: int, index: int) -> np.random.Generator:
        """The random numbers of row `index` in an epoch, for one use."""
        return np.random.default_rng([self.seed, epoch, index, stream])

    def pastes(self, epoch: int, index: int) -> np.random.Generator | None:
        """Draw whether row `index` gets pasted objects in an epoch: the random numbers to choose them, or None."""
        drawn = self.numbers(PASTED, epoch, index)
        return drawn if drawn.random() < self.copy_paste else None

    def window(self, size: tuple[int, int], epoch: int, index: int, stream: int = WINDOW) -> Window:
        """Draw the window of row `index` in an epoch. size: (height, width). stream: which random numbers."""
        height, width = size
        flip, *places = self.numbers(stream, epoch, index).random(5)
        cut_height, cut_width = height, width
        if self.min_scale is not None or self.max_scale > 1:
            least = 1.0 if self.min_scale is None else self.min_scale
            area = height * width * (least + (self.max_scale - least) * places[0])
            low, high = np.log(ASPECT[0]), np.log(ASPECT[1])
            aspect = float(np.exp(low + (high - low) * places[1])) * width / height  # beside the picture's own shape
            if area <= height * width:  # a window that fits keeps its area
                aspect = float(np.clip(aspect, area / height**2, width**2 / area))
            cut_height, cut_width = max(1, round((area / aspect) ** 0.5)), max(1, round((area * aspect) ** 0.5))
            if area <= height * width:
                cut_height, cut_width = min(height, cut_height), min(width, cut_width)
        top, left = (
            int(place * (abs(room) + 1)) + min(room, 0) - self.padding
            for place, room in (
                (places[2], height + 2 * self.padding - cut_height),
                (places[3], width + 2 * self.padding - cut_width),
            )
        )
        return Window(top, left, cut_height, cut_width, self.horizontal_flip and flip < 0.5)

    def recolored(self, pixels: np.ndarray, epoch: int, index: int) -> np.ndarray:
        """Return uint8 pixels (height, width, channels) with the colors of row `index`; grey ones stay grey."""
        if not self.color_jitter:
            return pixels
        grey = pixels.shape[2] == 1
        image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if grey else pixels))
        for enhance, drawn in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color),
            self.numbers(COLORS, epoch, index).uniform(-1, 1, 3),
            strict=True,
        ):
            image = enhance(image).enhance(1 + self.color_jitter * drawn)
        found = np.asarray(image)
        return found[:, :, None] if grey else found

    def erased(self, pixels: np.ndarray, epoch: int, index: int, fill: int | None = None) -> np.ndarray:
        """Return uint8 pixels with the rectangle of row `index` erased. fill: its value; None for random pixels."""
        if not self.erasing:
            return pixels
        rng = self.numbers(ERASED, epoch, index)
        drawn, *places = rng.random(5)
        if drawn >= self.erasing:
            return pixels
        height, width = pixels.shape[:2]
        area = height * width * (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * places[0])
        low, high = np.log(ERASED_ASPECT[0]), np.log(ERASED_ASPECT[1])
        aspect = float(np.exp(low + (high - low) * places[1]))
        tall = int(np.clip(round((area * aspect) ** 0.5), 1, height))
        wide = int(np.clip(round((area / aspect) ** 0.5), 1, width))
        top, left = int(places[2] * (height - tall + 1)), int(places[3] * (width - wide + 1))
        changed = pixels.copy()
        place = changed[top : top + tall, left : left + wide]
        place[...] = rng.integers(0, 256, place.shape, np.uint8) if fill is None else fill
        return changed


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
    stay = still_counts(kept, area)
    if window.flipped:
        inside = np.stack([1 - inside[:, 2], inside[:, 1], 1 - inside[:, 0], inside[:, 3]], axis=1)
    return inside[stay], stay


def still_counts(seen: Any, whole: Any) -> Any:
    """Whether an object still counts: at least a quarter of it is seen."""
    return seen >= 0.25 * whole


def _areas(boxes_N4: np.ndarray) -> np.ndarray:
    return (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])


def _resized(pixels: np.ndarray, height: int, width: int, smooth: bool) -> np.ndarray:
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    image = Image.fromarray(pixels[:, :, 0] if grey else pixels)
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    found = np.asarray(image.resize((width, height), how))
    return found[:, :, None] if grey else found
