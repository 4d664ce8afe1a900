"""Measure a model that draws with an independent classifier: no Inception network is needed, so no FID is reported.

Dimensions: N pictures, D features of the classifier, P values of a picture.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from decero.config.drawings import EvaluateDrawings
from decero.data.corpus import load_corpus
from decero.data.image_rows import picture_folder
from decero.data.labels import encode_labels
from decero.errors import UserError
from decero.evaluation.drawing_measures import frechet_distance, nearest_rows, shares
from decero.inference.drawing import LoadedDrawing, grid_of, save_png
from decero.inference.image_answers import LoadedPictures
from decero.inference.picture_features import classes_and_features
from decero.tasks.picture_task import picture_source
from decero.training.runs import Run

SHOWN = 4  # pictures of a class, beside their nearest training pictures


class Real(NamedTuple):
    """The pictures that drawings are compared with: labels and uint8 pixels, (N, height, width, channels)."""

    labels: np.ndarray
    pixels: np.ndarray


def read_real(run: Run, config: EvaluateDrawings, loaded: LoadedDrawing) -> dict[str, Real]:
    """Read train and test in the size of the drawings.

    Raises UserError for data without one of them, for fewer than 2 pictures, which have no distribution, and for other
    classes than those of the model.
    """
    corpus = load_corpus(**picture_source(config.data), say=run.print)
    if lacking := [split for split in ("train", "test") if split not in corpus]:
        raise UserError(f"data: there is no {lacking[0]} split; give data.files.{lacking[0]}")
    if few := [split for split in ("train", "test") if len(corpus[split]) < 2]:
        raise UserError(f"data: the {few[0]} split has one picture, too few for a distribution; give at least 2")
    if len(loaded.classes) * config.pictures_per_class < 2:
        raise UserError("pictures_per_class: one picture is too few for a distribution; give at least 2")
    corpus, names = encode_labels(
        corpus, config.data.label_column, "single_label_classification", known=loaded.classes, say=run.print
    )
    if names != loaded.classes:
        raise UserError(
            f"{config.model}: it draws {', '.join(loaded.classes[:20])}, and the data has {', '.join(names[:20])}; "
            "give the data that it was trained on"
        )
    return {split: _read(corpus[split], split, config, loaded) for split in ("train", "test")}


def _read(rows: Dataset, split: str, config: EvaluateDrawings, loaded: LoadedDrawing) -> Real:
    folder = picture_folder(config.data.files, split)
    pixels = loaded.like_drawings(rows, config.data.image_column, split, folder)
    return Real(np.asarray(rows["labels"]), pixels)


def order_of(judge: LoadedPictures, classes: list[str], name: str) -> np.ndarray:
    """Return for each class id of the classifier that of the model. Raises UserError for other classes."""
    said: Any = judge.model.config.id2label
    names = [str(said[number]) for number in range(len(said))]
    if sorted(names) != sorted(classes):
        raise UserError(f"{name}: it knows {', '.join(names[:20])}, and the model draws {', '.join(classes[:20])}")
    return np.array([classes.index(each) for each in names])


def images(pixels: np.ndarray) -> Iterator[Image.Image]:
    """Yield pictures of uint8 (N, height, width, 1 or 3)."""
    for each in pixels:
        yield Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each)


def measure(
    run: Run, config: EvaluateDrawings, loaded: LoadedDrawing, judge: LoadedPictures, real: dict[str, Real]
) -> dict[str, Any]:  # fmt: skip
    """Draw pictures of each class with each seed, measure them, and write `samples.png` and `nearest.png`.

    Returns the record. For comparison it also measures real pictures of test against train.
    """
    classes, each = len(loaded.classes), config.pictures_per_class
    options = loaded.options_of({name: getattr(config, name) for name in ("steps", "temperature", "guidance")})
    to_model = order_of(judge, loaded.classes, config.classifier)
    wanted, size = np.repeat(np.arange(classes), each), config.per_device_eval_batch_size

    def judged(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found, features_ND = classes_and_features(judge, images(pixels), size)
        return to_model[found], features_ND

    test_classes, test_ND = judged(real["test"].pixels)
    train_NP = real["train"].pixels.reshape(len(real["train"].pixels), -1)
    by_seed = []
    for seed in range(config.seed, config.seed + config.repeats):
        rng = np.random.default_rng(seed)
        count = min(len(wanted), len(test_ND), len(train_NP))
        some = {split: rng.permutation(len(real[split].labels))[:count] for split in real}
        _, train_ND = judged(real["train"].pixels[some["train"]])
        with tqdm(total=2 * len(wanted), desc=f"draw, seed {seed}", unit="picture", dynamic_ncols=True) as bar:
            arguments = options | {"seed": seed, "done": bar.update}
            drawn = loaded.draw([loaded.classes[each] for each in wanted], **arguments)
            free = loaded.draw([""] * len(wanted), **arguments | {"guidance": 1.0})
        predicted, drawn_ND = judged(drawn)
        kinds, _ = judged(free)
        rows, distances = nearest_rows(drawn.reshape(len(drawn), -1), train_NP)
        tested_NP = real["test"].pixels[some["test"]].reshape(count, -1)
        by_seed.append({
            "seed": seed, "accuracy": float((predicted == wanted).mean()),
            "accuracy_by_class": {
                name: float((predicted[wanted == number] == number).mean())
                for number, name in enumerate(loaded.classes)
            },
            "frechet": frechet_distance(drawn_ND[rng.permutation(len(drawn_ND))[:count]], test_ND[some["test"]]),
            "frechet_of_train": frechet_distance(train_ND, test_ND[some["test"]]),
            "nearest_train": float(distances.mean()), "nearest_train_least": float(distances.min()),
            "nearest_train_of_test": float(nearest_rows(tested_NP, train_NP)[1].mean()),
            "shares_without_class": dict(zip(loaded.classes, shares(kinds, classes), strict=True)),
        })  # fmt: skip
        if seed == config.seed:
            first = [row for number in range(classes) for row in range(number * each, number * each + min(8, each))]
            save_png(grid_of(drawn[first], min(8, each)), run.output / "samples.png")
            few = [row for number in range(classes) for row in range(number * each, number * each + min(SHOWN, each))]
            pairs = np.stack([drawn[few], real["train"].pixels[rows[few]]], axis=1).reshape(-1, *drawn.shape[1:])
            save_png(grid_of(pairs, 2 * min(SHOWN, each)), run.output / "nearest.png")
    metric = {name: float(np.mean([one[name] for one in by_seed])) for name in ("accuracy", "frechet")}
    right = float((test_classes == real["test"].labels).mean())
    return {"metric": metric, "classifier_accuracy_on_test": right, "by_seed": by_seed, "pictures": len(wanted)}


def table(record: dict[str, Any]) -> list[str]:
    """Return the lines of a table: a row a seed."""
    head = "seed  accuracy  Frechet  train-test  nearest  of test  smallest and largest class without a class told"
    lines = [head]
    for each in record["by_seed"]:
        free = each["shares_without_class"]
        least, most = min(free, key=free.get), max(free, key=free.get)
        lines.append(
            f"{each['seed']:>4}  {100 * each['accuracy']:>7.1f}%  {each['frechet']:>7.3f}  "
            f"{each['frechet_of_train']:>10.3f}  {each['nearest_train']:>7.1f}  {each['nearest_train_of_test']:>7.1f}  "
            f"{least} {100 * free[least]:.1f}%, {most} {100 * free[most]:.1f}%"
        )
    return lines
