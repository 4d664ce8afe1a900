"""Paint answers over pictures: masks in the colours of their classes, boxes with names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from decero.data.images import pixels_of

COLOURS = np.array(  # of Okabe and Ito 2008, which colour-blind readers tell apart; others follow by rotation
    [
        (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
        (120, 200, 60), (150, 90, 200), (255, 120, 120),
    ],
    dtype=np.uint8,
)  # fmt: skip
LEAST = 320  # pixels of the longer side of a painted picture, so that names can be read


def colour(number: int) -> tuple[int, int, int]:
    """Return the colour of a class."""
    red, green, blue = COLOURS[number % len(COLOURS)].tolist()
    return red, green, blue


def paint_mask(image: Image.Image, mask: np.ndarray, names: Sequence[str], strength: float = 0.5) -> Image.Image:
    """Return a picture with the classes of its pixels in colours, and their names. Class 0 stays as it is.

    mask: class ids, (height, width) of the picture.
    """
    plain = np.asarray(_enlarged(pixels_of(image, 3, "the picture"))).astype(np.float32)
    ids = np.asarray(Image.fromarray(mask).resize((plain.shape[1], plain.shape[0]), Image.Resampling.NEAREST))
    painted = COLOURS[(ids.astype(int) - 1) % len(COLOURS)].astype(np.float32)
    over = np.where((ids > 0)[..., None], (1 - strength) * plain + strength * painted, plain)
    found = Image.fromarray(over.astype(np.uint8))
    draw, top = ImageDraw.Draw(found), 2
    for number in np.unique(ids[ids > 0]).tolist():
        _tag(draw, (2, top), names[number] if number < len(names) else str(number), colour(number - 1))
        top += 14
    return found


def paint_boxes(image: Image.Image, boxes: Sequence[Any]) -> Image.Image:
    """Return a picture with boxes.

    boxes: of `detect`, with `box` (x1, y1, x2, y2 in pixels), `label`, `id`, `score`.
    """
    found = _enlarged(pixels_of(image, 3, "the picture"))
    scale = found.width / image.width
    draw = ImageDraw.Draw(found)
    for each in boxes:
        x1, y1, x2, y2 = (scale * value for value in each.box)
        draw.rectangle((x1, y1, x2, y2), outline=colour(each.id), width=2)
        _tag(draw, (x1, max(0.0, y1 - 13)), f"{each.label} {each.score:.2f}", colour(each.id))
    return found


def _enlarged(image: Image.Image) -> Image.Image:
    factor = -(-LEAST // max(image.size))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def _tag(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: tuple[int, int, int]) -> None:
    font = ImageFont.load_default()
    draw.rectangle(draw.textbbox(place, text, font=font), fill=fill)
    draw.text(place, text, fill="black", font=font)
