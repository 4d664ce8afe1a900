"""Objects of one training picture, pasted into another."""

from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.recipes.pictures import NAMES, row

from decero.config.finetune_images import BoxedImages
from decero.data.augmentation import Augmentation
from decero.data.copy_paste import Scene, extent, object_pixels, paste
from decero.data.image_rows import Columns, Pixels, decode_rows
from decero.data.order import RowIndex, Rows
from decero.execution.image_objective import PictureCollator

HEIGHT, WIDTH = 31, 37


def drawn_scene(number, ids="classes"):
    """Up to four rectangles, later ones over earlier ones; boxes hold what is seen of each."""
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    owner = np.full((HEIGHT, WIDTH), -1)
    for each in range(int(draw.integers(1, 5))):
        tall, wide = draw.integers(3, 15, 2)
        top, left = draw.integers(0, HEIGHT - tall + 1), draw.integers(0, WIDTH - wide + 1)
        owner[top : top + tall, left : left + wide] = each
    seen = [each for each in range(4) if (owner == each).any()]
    classes = draw.permutation(4)[: len(seen)]  # no two of one class, so an id says which object
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for place, each in enumerate(seen):
        mask[owner == each] = classes[place] + 1 if ids == "classes" else place + 7
    boxes = [np.array(extent(owner == each)) / [WIDTH, HEIGHT, WIDTH, HEIGHT] for each in seen]
    return Scene(pixels, mask, np.array(boxes), classes), [owner == each for each in seen]


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_pixels_of_a_box_do_not_depend_on_how_ids_are_given(number):
    for ids in ("classes", "objects"):
        scene, owned = drawn_scene(number, ids)
        for box, pixels in zip(scene.boxes, owned, strict=True):
            found = object_pixels(scene.mask, box, 255)
            if extent(pixels) == extent(found) and (found != pixels).any():
                assert found.sum() >= pixels.sum()  # two objects fill the box: the larger one
            else:
                assert (found == pixels).all()


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_each_pixel_and_box_after_pasting_is_right(first, second):
    (scene, _), (other, _) = drawn_scene(first), drawn_scene(second)
    other = other._replace(classes=other.classes + 10)
    found = paste(scene, other, np.random.default_rng(first), 255)
    kept = int((found.classes < 10).sum())
    pasted = found.boxes[kept:]
    assert 1 <= len(pasted) <= len(other.boxes)
    covers = np.zeros((HEIGHT, WIDTH), bool)
    for box, kind in zip(pasted, found.classes[kept:], strict=True):
        assert (other.boxes[list(other.classes).index(kind)] == box).all()
        covers |= object_pixels(other.mask, box, 255)
    assert (found.pixels == np.where(covers[:, :, None], other.pixels, scene.pixels)).all()
    assert (found.mask == np.where(covers, other.mask, scene.mask)).all()
    left = []
    for box, kind in zip(scene.boxes, scene.classes, strict=True):
        before = object_pixels(scene.mask, box, 255)
        after = before & ~covers
        if 4 * after.sum() >= before.sum():
            left.append(
                (kind, extent(after) if after.sum() < before.sum() else tuple(np.round(box * [37, 31, 37, 31])))
            )
    said = [tuple(np.round(box * [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(int)) for box in found.boxes[:kept]]
    assert list(zip(found.classes[:kept], said, strict=True)) == left


def test_without_boxes_ids_are_pasted_but_no_background():
    (scene, _), (other, _) = drawn_scene(3), drawn_scene(4)
    ignored = np.where(np.arange(WIDTH) < 9, 255, other.mask).astype(np.uint8)
    for seed in range(20):
        found = paste(Scene(scene.pixels, scene.mask), Scene(other.pixels, ignored), np.random.default_rng(seed), 255)
        changed = found.mask != scene.mask
        assert changed.any()
        assert set(np.unique(found.mask[changed])) <= set(np.unique(other.mask)) - {0}
        assert not changed[:, :9].any()
        assert (found.pixels == np.where(changed[:, :, None], other.pixels, found.pixels)).all()


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), np.array([[0.1, 0.1, 0.9, 0.9]]), None])
def test_nothing_is_pasted_where_there_is_no_object(boxes):
    scene, _ = drawn_scene(5)
    classes = None if boxes is None else np.zeros(len(boxes), int)
    empty = Scene(scene.pixels, np.zeros_like(scene.mask), boxes, classes)
    assert paste(scene, empty, np.random.default_rng(0), 255) is scene


def test_a_covered_box_without_pixels_of_its_own_is_dropped():
    other = np.zeros((20, 20), np.uint8)
    other[:15, :15] = 1
    blank, boxes = np.zeros((20, 20, 3), np.uint8), np.array([[0.1, 0.1, 0.5, 0.5], [0.5, 0.1, 1.0, 0.5]])
    scene = Scene(blank, np.zeros_like(other), boxes, np.array([0, 1]))
    found = paste(
        scene, Scene(blank, other, np.array([[0, 0, 0.75, 0.75]]), np.array([2])), np.random.default_rng(0), 255
    )
    assert found.classes.tolist() == [1, 2]  # half of the second is still seen
    assert found.boxes.tolist() == [[0.75, 0.1, 1.0, 0.5], [0, 0, 0.75, 0.75]]


@pytest.fixture(scope="module")
def stored():
    rows = Dataset.from_list([{key: row(number)[key] for key in ("image", "mask", "objects")} for number in range(30)])
    columns = Columns("image", mask="mask", objects="objects", category_ids={name: n for n, name in enumerate(NAMES)})
    return decode_rows(rows, columns, Pixels((16, 16)))


def test_pasting_is_a_function_of_seed_epoch_and_row(stored):
    collate = PictureCollator(Pixels((16, 16)), Augmentation(copy_paste=0.4, seed=3), scenes=stored)
    read = Rows(stored).__getitems__

    def counts(epoch):
        return [len(collate.scene(read([RowIndex(epoch, index)])[0]).boxes) for index in range(30)]

    batch = collate(read([RowIndex(1, index) for index in range(30)]))
    assert [len(each["class_labels"]) for each in batch["labels"]] == counts(1) == counts(1)
    assert counts(1) != counts(2)
    more = np.array([counts(epoch) for epoch in range(10)]) == 2  # covered objects are dropped, so a little less
    assert 0.25 < more.mean() < 0.45
    plain = replace(collate, augment=Augmentation(horizontal_flip=True, copy_paste=0.0))
    assert all(len(plain.scene(each).boxes) == 1 for each in read([RowIndex(0, index) for index in range(30)]))


def test_pasted_pictures_are_turned_on_their_own(stored):
    first = stored.select([1])
    collate = PictureCollator(Pixels((16, 16)), Augmentation(horizontal_flip=True, copy_paste=1.0), scenes=first)
    scenes = [collate.scene(Rows(first).__getitems__([RowIndex(epoch, 0)])[0]) for epoch in range(30)]
    lefts = {tuple(sorted(scene.boxes[:, 0].round(4))) for scene in scenes}
    assert len(lefts) == 3  # both as they are or both turned (one is covered), or one of two, side by side


def test_boxes_are_pasted_along_masks_only():
    files = {"train": "x.parquet"}
    with pytest.raises(ValueError, match=r"copy_paste: it cuts objects out along their masks; set data\.mask_column"):
        BoxedImages(files=files, augment={"copy_paste": 0.5})
    data = BoxedImages(files=files, augment={"copy_paste": 0.5}, mask_column="mask")
    assert data.others == {"objects": "data.objects_column", "mask": "data.mask_column"}
