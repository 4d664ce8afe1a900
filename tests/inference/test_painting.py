"""Painted pictures show what the model sees."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from decero.explain.picture_record import draw_over
from decero.inference.painting import paint_boxes, paint_mask

GREY = np.arange(0, 250, 10, dtype=np.uint8).repeat(25).reshape(25, 25)


def grey16():
    return Image.fromarray((GREY.astype(np.uint16) << 8) + 200)


def transparent():
    pixels = np.zeros((25, 25, 4), np.uint8)  # black under what is transparent
    pixels[:10] = (9, 9, 9, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("picture", "seen"), [(grey16(), GREY), (transparent(), np.where(np.arange(25) < 10, 9, 255)[:, None])]
)
def test_painted_pictures_are_those_that_the_model_sees(picture, seen):
    nothing = np.zeros((25, 25), np.uint8)
    box = SimpleNamespace(box=(0.0, 0.0, 25.0, 25.0), label="", id=0, score=1.0)
    for painted in (paint_mask(picture, nothing, ["ground"]), paint_boxes(picture, [])):
        small = np.asarray(painted.resize((25, 25), Image.Resampling.NEAREST)).astype(int)
        assert (small == np.broadcast_to(seen, (25, 25))[..., None]).all()
    assert paint_boxes(picture, [box]).size == (325, 325)
    plain = draw_over(picture, [("x", np.ones((5, 5)))], "en").axes[0].images[0].get_array()
    assert (np.asarray(plain) == np.broadcast_to(seen, (25, 25))[..., None]).all()
