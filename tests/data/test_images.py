"""Pictures of every kind become the pixels that they show; what cannot be read is one line with file and row."""

import io
import struct
import zlib

import numpy as np
import pytest
from datasets import Dataset, Image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from decero.data.augmentation import Augmentation, Window, cut_boxes, cut_pixels
from decero.data.boxes import FORMATS, checked_boxes, from_corners, to_corners
from decero.data.corpus import ROW, source_rows
from decero.data.image_rows import Columns, Pixels, decode_rows
from decero.data.images import find_images, open_image, to_mask, to_pixels
from decero.errors import UserError

GREY = np.arange(7 * 11, dtype=np.uint8).reshape(7, 11) * 3


def stored(image, form="PNG", **how):
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def read(data, channels=1, size=(7, 11)):
    return to_pixels(open_image(data, "x, row 3"), size, channels, "x, row 3")


def test_grey_palette_16_bits_and_exif_are_what_they_show():
    assert (read(stored(Pillow.fromarray(GREY)))[..., 0] == GREY).all()
    assert (read(stored(Pillow.fromarray(GREY)), 3) == GREY[..., None]).all()
    wide = Pillow.fromarray(GREY.astype(np.uint16) * 256 + 7)
    assert (read(stored(wide))[..., 0] == GREY).all()
    assert (read(stored(wide.convert("I"), "TIFF"))[..., 0] == GREY).all()
    palette = Pillow.fromarray(GREY).convert("RGB").quantize(256)
    assert abs(read(stored(palette), 3).astype(int) - GREY[..., None]).max() <= 3
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = stored(Pillow.fromarray(np.rot90(GREY)), "PNG", exif=exif)
    assert (read(turned)[..., 0] == GREY).all()


@pytest.mark.parametrize("orientation", [3, 6])
def test_boxes_and_masks_fit_the_picture_turned_by_exif(orientation):
    """A square at x 6 to 10, y 2 to 5 of the picture as it is shown; its file holds it turned."""
    shown = np.full((7, 11), 40, np.uint8)
    shown[2:5, 6:10] = 200
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = stored(Pillow.fromarray(np.rot90(shown, {3: 2, 6: 1}[orientation])), "PNG", exif=exif)
    mask = np.uint8(shown == 200)
    row = {"image": [data], "mask": [stored(Pillow.fromarray(mask))]}
    row["objects"] = [{"bbox": [[6.0, 2.0, 4.0, 3.0]], "category": ["x"]}]
    columns = Columns("image", mask="mask", known=2, objects="objects", category_ids={"x": 0})
    found = decode_rows(Dataset.from_dict(row), columns, Pixels((7, 11), 1))[0]
    assert (found["width"], found["height"]) == (11, 7)
    assert np.allclose(found["boxes"], np.array([6, 2, 10, 5]) / [11, 7, 11, 7])
    assert found["pixels"] == shown.tobytes()
    assert found["mask"] == mask.tobytes()
    row["mask"] = [stored(Pillow.fromarray(np.rot90(mask)))]
    with pytest.raises(UserError, match="row 0: the mask has 7 x 11 pixels, its picture 11 x 7"):
        decode_rows(Dataset.from_dict(row), columns, Pixels((7, 11), 1))


def test_what_is_transparent_becomes_white():
    colours = np.zeros((7, 11, 4), np.uint8)
    colours[2, 3] = (10, 200, 30, 255)
    found = read(stored(Pillow.fromarray(colours)), 3)
    assert tuple(found[2, 3]) == (10, 200, 30)
    assert (found[0] == 255).all()


def test_a_torn_missing_or_null_picture_is_one_line(tmp_path):
    whole = stored(Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)))
    for data, why in (
        (whole[: len(whole) // 2], "cannot read the picture"), (b"no picture", "this is no picture"), (None, "null"),
        ({"bytes": None, "path": str(tmp_path / "a.png")}, "a.png"), (b"", "row 3"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=why) as caught:
            open_image(data, "x.parquet, row 3")
        assert str(caught.value).startswith("x.parquet, row 3")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot read the picture: image file is truncated; replace it"):
        open_image(whole[:60], "x.parquet, row 3")
    with pytest.raises(UserError, match="float values"):
        read(stored(Pillow.fromarray(GREY.astype(np.float32)), "TIFF"))


def test_masks_keep_ids_and_are_refused_with_wrong_ones():
    ids = (GREY % 5).astype(np.uint8)
    palette = Pillow.fromarray(ids)
    palette.putpalette([200, 100, 50] * 256)
    for mask in (Pillow.fromarray(ids), palette):
        assert (to_mask(mask, (11, 7), (7, 11), 5, 255, "x, row 3") == ids).all()
    with pytest.raises(UserError, match=r"x, row 3: the mask has the unknown id 4; ids are 0 to 3, or 255"):
        to_mask(Pillow.fromarray(ids), (11, 7), (7, 11), 4, 255, "x, row 3")
    with pytest.raises(UserError, match="the mask has 11 x 7 pixels, its picture 7 x 11"):
        to_mask(Pillow.fromarray(ids), (7, 11), (7, 11), 5, 255, "x, row 3")
    with pytest.raises(UserError, match="the mask is of mode RGB"):
        to_mask(Pillow.fromarray(ids).convert("RGB"), (11, 7), (7, 11), 5, 255, "x, row 3")


def test_rows_are_read_once_from_bytes_paths_and_features(tmp_path, monkeypatch):
    Pillow.fromarray(GREY).save(tmp_path / "a.png")
    png = stored(Pillow.fromarray(GREY))
    rows = [
        Dataset.from_dict({"image": ["a.png"], "labels": [1]}),
        Dataset.from_dict({"image": [png], "labels": [1]}),
        Dataset.from_dict({"image": [{"bytes": png, "path": None}], "labels": [1]}).cast_column("image", Image()),
    ]
    pixels, columns = Pixels((7, 11), 1), Columns("image", folder=tmp_path)
    for each in rows:
        found = decode_rows(each, columns, pixels)[0]
        assert found["labels"] == 1
        assert found["pixels"] == GREY.tobytes()
    monkeypatch.setattr("decero.data.image_rows.open_image", None)  # the second time nothing is read
    assert decode_rows(rows[1], columns, pixels)[0]["pixels"] == GREY.tobytes()
    monkeypatch.undo()
    numbered = Dataset.from_dict({"image": [png, png], ROW: [5, 2]})
    assert list(source_rows(decode_rows(numbered, columns, pixels))) == [5, 2]
    with pytest.raises(UserError, match=r"t.parquet, row 1: there is no picture \(null\)"):
        decode_rows(Dataset.from_dict({"image": [png, None]}), columns, pixels, where="t.parquet")


def test_pictures_of_a_folder_are_found_in_order(tmp_path):
    for name in ("b/2.JPG", "a.png", "b/1.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images(tmp_path)] == ["a.png", "1.png", "2.JPG"]
    with pytest.raises(UserError, match="no such picture or folder"):
        find_images(tmp_path / "c")


boxes = st.tuples(st.integers(0, 90), st.integers(0, 50), st.integers(1, 40), st.integers(1, 30))


@given(boxes, st.sampled_from(FORMATS))
def test_a_pasted_box_is_read_back_in_every_format(box, form):
    left, top, width, height = box
    size = left + width + 3, top + height + 5
    picture = np.zeros((size[1], size[0]), np.uint8)
    picture[top : top + height, left : left + width] = 9
    corners = np.array([[left, top, left + width, top + height]], dtype=float)
    written = from_corners(corners, form)
    assert np.allclose(to_corners(written, form), corners)
    x1, y1, x2, y2 = (checked_boxes(written.tolist(), form, size, "x")[0] * [*size, *size]).round().astype(int)
    inside = picture[y1:y2, x1:x2]
    assert (inside == 9).all()
    assert inside.sum() == picture.sum()


@pytest.mark.parametrize(
    ("box", "line"),
    [
        ([1.0, 2.0, 0.0, 3.0], "x, row 3, box 0 [1, 2, 0, 3]: it has no size, 0 x 3 pixels"),
        ([5.0, 2.0, 9.0, 3.0], "x 5 to 14, y 2 to 5 is outside of its picture of 11 x 7 pixels"),
        ([1.0, 2.0, 3.0], "a box has four numbers (xywh, in pixels)"),
        ([1.0, 2.0, float("nan"), 1.0], "a box has four numbers"),
        ([11.5, 0.0, 0.4, 3.0], "it is outside of its picture"),
    ],
)
def test_a_wrong_box_is_refused_in_one_line(box, line):
    with pytest.raises(UserError) as caught:
        checked_boxes([box], "xywh", (11, 7), "x, row 3")
    assert line in str(caught.value)


def test_augmentation_is_a_function_of_seed_epoch_and_row():
    drawn = Augmentation(horizontal_flip=True, padding=3, min_scale=0.5, seed=5)
    windows = [drawn.window((31, 37), epoch, row) for epoch in range(3) for row in range(20)]
    assert windows == [drawn.window((31, 37), epoch, row) for epoch in range(3) for row in range(20)]
    assert len(set(windows)) == 60
    assert 15 < sum(window.flipped for window in windows) < 45
    assert {tuple(w)[:4] for w in (Augmentation().window((31, 37), 0, r) for r in range(9))} == {(0, 0, 31, 37)}


@settings(max_examples=40)
@given(
    st.integers(0, 10_000), st.booleans(), st.integers(0, 9), st.sampled_from([None, 0.4]), st.sampled_from([1.0, 3])
)
def test_boxes_and_masks_follow_their_picture(row, flip, padding, least, most):
    picture = np.zeros((40, 60, 1), np.uint8)
    picture[10:30, 20:44] = 200
    window = Augmentation(flip, padding, least, 1, most).window((40, 60), 0, row)
    cut = cut_pixels(picture, window)
    mask = cut_pixels(picture[..., 0] // 200, window, 255, smooth=False)
    assert ((cut[..., 0] > 100) == (mask == 1)).mean() > 0.97
    found, stay = cut_boxes(np.array([[20 / 60, 10 / 40, 44 / 60, 30 / 40]]), (40, 60), window)
    ys, xs = np.nonzero(mask == 1)
    if stay.all():
        x1, y1, x2, y2 = found[0] * [60, 40, 60, 40]
        assert abs(np.array([x1, y1, x2, y2]) - [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).max() <= 2


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([(40, 60), (31, 200), (96, 96)]), st.sampled_from([0.3, 0.9, 1.0]))
def test_crops_keep_their_share_and_their_shape(row, size, least):
    window = Augmentation(min_scale=least).window(size, 0, row)
    height, width = size
    assert window.height * window.width >= least * height * width - 0.5 * (height + width)  # rounded to pixels
    shape = (window.width / window.height) / (width / height)
    assert 3 / 4 - 0.06 <= shape <= 4 / 3 + 0.09


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_a_larger_window_shows_the_whole_picture_smaller(row):
    window = Augmentation(max_scale=4).window((40, 60), 0, row)
    area = window.height * window.width / (40 * 60)
    assert 0.97 <= area <= 4.05
    if window.height >= 40 and window.width >= 60:  # one side may be shorter when its shape changes
        ys, xs = np.nonzero(cut_pixels(np.full((40, 60), 9, np.uint8), window, smooth=False))
        assert abs((np.ptp(ys) + 1) * (np.ptp(xs) + 1) / (40 * 60) * area - 1) < 0.2
    assert Augmentation(min_scale=0.3).window((40, 60), 0, row) == Augmentation(False, 0, 0.3).window((40, 60), 0, row)


def test_colors_change_by_the_share_that_was_asked():
    plain = np.full((5, 7, 3), 100, np.uint8)  # contrast and saturation leave one grey as it is: brightness is left
    drawn = Augmentation(color_jitter=0.3, seed=2)
    values = np.array([drawn.recolored(plain, 0, row) for row in range(200)])
    assert (values == values[:, :1, :1, :1]).all()
    assert 70 <= values.min() < 76
    assert 124 < values.max() <= 130
    colors = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert (drawn.recolored(colors, 1, 3) == drawn.recolored(colors, 1, 3)).all()
    assert (drawn.recolored(colors, 1, 3) != drawn.recolored(colors, 2, 3)).any()
    assert drawn.recolored(colors[..., :1], 0, 0).shape == (5, 7, 1)
    assert Augmentation().recolored(colors, 0, 0) is colors


def test_a_rectangle_is_erased_as_often_as_asked():
    picture = np.full((31, 37, 3), 7, np.uint8)
    drawn = Augmentation(erasing=0.6, seed=1)
    changed = [(drawn.erased(picture, 0, row) != 7).any(axis=2) for row in range(300)]
    shares = np.array([each.mean() for each in changed])
    assert 0.53 < (shares > 0).mean() < 0.67
    assert shares[shares > 0].min() > 0.01
    assert 0.3 < shares.max() <= 0.42
    masks = [drawn.erased(picture[..., 0], 0, row, 255) for row in range(300)]
    assert all(((mask == 255) >= each).all() for mask, each in zip(masks, changed, strict=True))  # the same rectangle
    assert set(np.unique(masks)) == {7, 255}
    assert (picture == 7).all()


def test_no_augmentation_is_false():
    assert not Augmentation(seed=3)
    for how in ({"padding": 1}, {"min_scale": 1.0}, {"max_scale": 2.0}, {"color_jitter": 0.1}, {"erasing": 0.1}):
        assert Augmentation(**how)


def test_16_bits_that_would_be_black_are_refused():
    for values, kind in ((GREY.astype(np.uint16), "PNG"), (GREY.astype(np.uint16) * 16, "PNG"), (GREY, "TIFF")):
        dark = Pillow.fromarray(values)
        with pytest.raises(UserError, match="it would be nearly black; save it with 8 bits a channel"):
            read(stored(dark.convert("I") if kind == "TIFF" else dark, kind))
    assert (read(stored(Pillow.fromarray(np.zeros((7, 11), np.uint16)))) == 0).all()


def test_16_bits_of_color_that_would_be_black_are_refused():
    """Pillow writes no such PNG, and reads only the upper 8 bits of one."""

    def png(values_YXC):
        height, width, channels = values_YXC.shape
        head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_YXC)
        parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
        made = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
        return b"\x89PNG\r\n\x1a\n" + b"".join(made)

    values = np.random.default_rng(0).integers(0, 4096, (7, 11, 3))
    opaque = np.full((7, 11, 1), 65_535)
    for dark in (values, values >> 4):  # of 12 and of 8 bits
        for shown in (dark, np.concatenate([dark, opaque], -1), np.concatenate([dark[..., :1], opaque], -1)):
            with pytest.raises(UserError, match=r"row 3: the picture has 16 bits, .* it would be nearly black"):
                open_image(png(shown), "x.parquet, row 3")
    assert (read(png(16 * values), 3) == values >> 4).all()


def test_a_box_that_is_cut_away_is_dropped():
    found, stay = cut_boxes(np.array([[0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 1.0, 1.0]]), (10, 10), Window(5, 5, 5, 5, False))
    assert stay.tolist() == [False, True]
    assert np.allclose(found, [[0, 0, 1, 1]])
