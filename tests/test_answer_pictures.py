"""docs/make_answer_pictures.py chooses and draws answers of made runs: the real ones are not in the repository."""

import importlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from decero.models import DeceroVisionConfig, DeceroVisionForMaskedImageModeling

ROOT = Path(__file__).parents[1]
LIMIT = 200_000  # bytes


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("make_answer_pictures")


@pytest.fixture
def objects(module):
    return importlib.import_module("object_answers")


@pytest.fixture
def run(tmp_path):
    """Return a function that writes a made run, its rows and its pictures, and returns both places.

    columns: more of the rows, beside the image and the label.
    """

    def write(predictions: list[dict], size: tuple[int, int], labels: list[int], **columns: list) -> tuple[Path, Path]:
        pd.DataFrame(predictions).to_parquet(tmp_path / "predictions.parquet")
        files = []
        for number in range(len(labels)):
            file = io.BytesIO()
            Image.new("L", size, 40 * number).save(file, format="png")
            files.append({"bytes": file.getvalue(), "path": None})
        pd.DataFrame({"image": files, "label": labels} | columns).to_parquet(tmp_path / "data.parquet")
        return tmp_path, tmp_path / "data.parquet"

    return write


def answer(row: int, label: int, prediction: int, sure: float) -> dict:
    names = {"label_name": f"name {label}", "prediction_name": f"name {prediction}"}
    return {"row": row, "label": label, "prediction": prediction, "probabilities": [sure, 1 - sure]} | names


def test_clothes_are_the_surest_answers_of_each_class(module, run):
    answers = [
        answer(0, 0, 0, 0.6),
        answer(1, 0, 0, 0.9),
        answer(2, 1, 0, 0.7),
        answer(3, 1, 0, 0.8),
        answer(4, 1, 1, 0.5),
    ]
    assert module.surest(pd.DataFrame(answers), right=True)["row"].tolist() == [1, 4]
    assert module.surest(pd.DataFrame(answers), right=False)["row"].tolist() == [3]
    right, wrong = module.clothes(*run(answers, (28, 28), [0, 0, 1, 1, 1])).subfigs
    assert [axes.get_title() for axes in right.axes[:3]] == ["name 0", "name 1", ""]
    assert wrong.axes[0].get_title() == "said: name 0\ntrue: name 1"


def test_reconstructions_show_what_the_run_scored(module, run):
    """A model of zeros writes mean grey, so the error of a plain picture is known."""
    hidden = round(0.6 * 49) * 16  # of 28 x 28 pixels
    greys = [0, 40, 80, 120]
    rows = [{"row": row, "distance": hidden * abs(grey / 127.5 - 1)} for row, grey in enumerate(greys)]
    place, data = run(rows, (28, 28), [0, 0, 0, 1])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = DeceroVisionForMaskedImageModeling(DeceroVisionConfig(image_size=28, patch_size=4, num_channels=1, **sizes))
    for parameter in model.parameters():
        parameter.data.zero_()
    model.save_pretrained(place / "model")
    (place / "config.yaml").write_text(json.dumps({"seed": 3, "objective": {"mask_ratio": 0.6}}))
    table = pd.DataFrame(rows).assign(label=[0, 0, 0, 1])
    assert [module.of_error(table, share)["row"].tolist() for share in (0, 0.5, 1)] == [[2, 3], [1, 3], [0, 3]]

    pictures = np.array(greys, dtype=np.uint8)[:, None, None].repeat(28, axis=1).repeat(28, axis=2)
    masks, written = module.reconstruct(place, pictures, table)
    assert masks.sum(axis=(1, 2)).tolist() == [hidden] * 4
    assert (written == np.where(masks, 127.5, pictures)).all()
    with pytest.raises(ValueError, match="are not those of its"):
        module.reconstruct(place, pictures[::-1], table)
    assert [len(part.axes) for part in module.reconstructions(place, data).subfigs] == [6, 6, 6]


def boxes(row: int, said: list, scores: list[float], true: list) -> dict:
    kinds = {"classes": [0] * len(true), "predicted_classes": [0] * len(said)}
    return {"row": row, "boxes": true, "predicted_boxes": said, "scores": scores} | kinds


def test_cells_are_the_best_and_the_worst_pictures(objects, run):
    one, two, far = [0.0, 0.0, 9.0, 9.0], [20.0, 0.0, 29.0, 9.0], [40.0, 0.0, 49.0, 9.0]
    answers = [
        boxes(0, [one, two, far], [0.9, 0.9, 0.9], [one]),  # all found, two others
        boxes(1, [one, two], [0.9, 0.4], [one, two]),  # one of two found: the other is not sure
        boxes(2, [one, two], [0.9, 0.8], [one, two]),
        boxes(3, [far, one], [0.9, 0.9], [one, two]),  # one of two found, one other
    ]
    table = pd.read_parquet(run(answers, (64, 48), [0] * 4)[0] / "predictions.parquet")
    judged = [objects.judge(row) for row in table.itertuples()]
    assert [each.f1 for each in judged] == pytest.approx([1 / 2, 2 / 3, 1, 1 / 2])
    assert [each.recall for each in judged] == [1, 0.5, 1, 0.5]
    best, worst, missed = objects.cells(*run(answers, (64, 48), [0] * 4)).subfigs
    assert [axes.get_title() for axes in best.axes] == [
        "2 of 2 found, 0 other boxes", "1 of 2 found, 0 other boxes", "1 of 1 found, 2 other boxes",
    ]  # fmt: skip
    assert worst.axes[0].get_title() == "1 of 2 found, 1 other box"
    assert missed.axes[0].get_title() == "1 of 2 found, 0 other boxes"


def test_boxes_are_of_seen_drawings_most_objects_first(objects, run):
    one, two, far = [0.0, 0.0, 9.0, 9.0], [20.0, 0.0, 29.0, 9.0], [40.0, 0.0, 49.0, 9.0]
    answers = [
        boxes(0, [one, two, far], [0.9] * 3, [one, two, far]),  # unseen
        boxes(1, [one], [0.9], [one]),
        boxes(2, [one, two], [0.9, 0.8], [one, two]),
        boxes(3, [far], [0.9], [one]),
        boxes(4, [far], [0.9], [one, two]),
    ]
    place, data = run(answers, (96, 96), [0] * 5, seen_stamps=[False, True, True, True, True])
    (place / "result.json").write_text(json.dumps({"label_names": ["bird"]}))
    best, worst, _ = objects.boxes(place, data).subfigs
    titles = ["2 of 2 found, 0 other boxes", "1 of 1 found, 0 other boxes"]
    assert [axes.get_title() for axes in best.axes[:2]] == titles
    titles = ["0 of 2 found, 1 other box", "0 of 1 found, 1 other box"]
    assert [axes.get_title() for axes in worst.axes[:2]] == titles
    written = [[text.get_text() for text in part.axes[0].texts] for part in (best, worst)]
    assert written == [["bird"] * 2, ["bird"] * 3]  # said; said and, since they were missed, true


def test_names_of_boxes_take_free_corners(objects):
    box, taken = np.array([30.0, 30, 60, 60]), np.zeros((0, 4))
    for place in ([30, 23], [45.6, 23], [30, 30]):  # above on the left, above on the right, inside
        found = objects.corner(box, 4, taken, below=False)
        assert found[:2] == pytest.approx(place)
        taken = np.concatenate([taken, found[None]])
    assert objects.corner(box, 4, taken, below=True)[:2] == pytest.approx([30, 60])
    assert objects.corner(box - 30, 4, taken, below=False)[:2] == pytest.approx([0, 0])  # stays in the picture


def png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="png")
    return file.getvalue()


def test_masks_are_those_with_most_and_fewest_right_pixels(objects, run):
    """Of 5 x 7 pixels, the first 6 are a bird; each answer says bird (1) or coin (2) in some pixels from the first."""
    true, answers = np.zeros(35, dtype=np.uint8), []
    true[:6] = 1
    for row, (pixels, kind) in enumerate([(6, 1), (6, 1), (6, 2), (3, 1), (12, 1)]):
        said = np.zeros_like(true)
        said[:pixels] = kind
        counts = {"right": said[said == true], "said": said, "true": true}
        counts = {name: np.bincount(ids, minlength=3).tolist() for name, ids in counts.items()}
        answers.append({"row": row, "prediction": png(said.reshape(5, 7))} | counts)
    columns = {"seen_stamps": [False] + [True] * 4, "mask": [{"bytes": png(true.reshape(5, 7)), "path": None}] * 5}
    place, data = run(answers, (7, 5), [0] * 5, **columns)
    (place / "result.json").write_text(json.dumps({"label_names": list("abcdefghijk")}))
    grid, _ = objects.masks(place, data).subfigs
    best, worst = ([line.get_ylabel() for line in part.axes[::3]] for part in grid.subfigs)
    assert best == ["100 % right", "50 % right", "50 % right", "0 % right"]
    assert worst == best[::-1]
    drawn = np.asarray(grid.subfigs[1].axes[1].images[0].get_array())  # what was said for the worst: a coin, orange
    assert drawn[0, 0] * 255 == pytest.approx([0xFF, 0xA9, 0x0E])
    assert drawn[-1, -1] == pytest.approx([0, 0, 0])


def test_pictures_of_answers_are_small_and_shown(module):
    page = (ROOT / "docs" / "experiments" / "pictures.md").read_text(encoding="utf-8")
    shown = re.findall(r"^!\[.{20,}\]\(\.\./pictures/answers_(\w+)\.png\)$", page, flags=re.M)
    assert sorted(shown) == sorted(module.PICTURES)
    for name in shown:
        assert (ROOT / "docs" / "pictures" / f"answers_{name}.png").stat().st_size < LIMIT
