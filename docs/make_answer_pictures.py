"""Draw good and bad answers of finished runs, for docs/experiments/pictures.md. That page has the commands of the runs.

    python docs/make_answer_pictures.py [clothes] [reconstructions] [boxes] [masks] [cells]
    python docs/make_answer_pictures.py boxes=runs/ANOTHER

Reads `data/` and `runs/`, and writes docs/pictures/answers_NAME.png.
"""

import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from make_pictures import DOCS, STYLE
from matplotlib.figure import Figure
from object_answers import DATA, RUNS, boxes, cells, masks, show
from PIL import Image

from decero.config.yaml_files import read_yaml
from decero.data.image_rows import Pixels
from decero.data.images import open_image
from decero.execution.image_objective import PictureCollator
from decero.execution.masked_image_objective import MaskedPictures, pixel_distances
from decero.models import DeceroVisionConfig, DeceroVisionForMaskedImageModeling

HIDDEN = 63, 81, 181  # the color of hidden pixels
COLORS = {"boxes": 256, "masks": 256}  # of a PNG; the others have 64


# --- clothes


def surest(table: pd.DataFrame, right: bool) -> pd.DataFrame:
    """Return the surest right or wrong answer for each true class."""
    chosen = table[(table["label"] == table["prediction"]) == right]
    return chosen.loc[chosen["probabilities"].map(max).groupby(chosen["label"]).idxmax()]


def clothes(run: Path = RUNS / "fashion_mnist_vit", data: Path = DATA / "fashion_mnist" / "test.parquet") -> Figure:
    table, pictures = pd.read_parquet(run / "predictions.parquet"), pd.read_parquet(data)["image"]
    figure = Figure(figsize=(8, 7.4), layout="constrained")
    for part, right in zip(figure.subfigures(2, 1), (True, False), strict=True):
        part.suptitle(f"surest {'right' if right else 'wrong'} answer for each class", fontweight="bold")
        for axes, row in zip(part.subplots(2, 5).flat, surest(table, right).itertuples(), strict=False):
            title = row.label_name if right else f"said: {row.prediction_name}\ntrue: {row.label_name}"
            show(axes, open_image(pictures[row.row], str(data)), title)
    return figure


# --- reconstructions


def of_error(table: pd.DataFrame, share: float) -> pd.DataFrame:
    """Return a row of each class by its error. share: 0 for the smallest, 0.5 for the median, 1 for the largest."""
    parts = [part.sort_values("distance", kind="stable") for _, part in table.groupby("label")]
    return pd.concat([part.iloc[[round(share * (len(part) - 1))]] for part in parts])


def reconstruct(run: Path, pictures: np.ndarray, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels were hidden, and the pictures with what the model wrote there, 0 to 255.

    pictures: uint8 (pictures, height, width). rows: of `predictions.parquet`; their numbers decide what is hidden.
    Raises ValueError where the errors are not those of the run.
    """
    settings, config = read_yaml(run / "config.yaml"), DeceroVisionConfig.from_pretrained(run / "model")
    model = DeceroVisionForMaskedImageModeling.from_pretrained(run / "model").eval()
    height, width = pictures.shape[1:]
    patch, collate = config.patch_size, PictureCollator(Pixels((height, width), channels=1))
    grid, ratio = (height // patch, width // patch), settings["objective"]["mask_ratio"]
    numbered = zip(pictures, rows["row"], strict=True)
    batch = MaskedPictures(collate, grid, ratio, seed=settings["seed"], frozen=True)(
        [{"pixels": each.tobytes(), "epoch": 0, "index": int(number)} for each, number in numbered]
    )
    with torch.no_grad():
        written = 127.5 * (1 + model(**batch).reconstruction[:, 0].numpy())
        errors = pixel_distances(model, batch, grid).numpy()
    if not np.allclose(errors, rows["distance"], rtol=0.1):  # the run computed in bf16
        raise ValueError(f"{run}: these pictures or hidden patches are not those of its predictions.parquet")
    hidden = batch["bool_masked_pos"].numpy().reshape(-1, *grid).repeat(patch, axis=1).repeat(patch, axis=2)
    return hidden, np.where(hidden, written, pictures).clip(0, 255)


def reconstructions(
    run: Path = RUNS / "masked_image_fashion_mnist", data: Path = DATA / "fashion_mnist" / "validation.parquet"
) -> Figure:
    source = pd.read_parquet(data)
    table = pd.read_parquet(run / "predictions.parquet").assign(label=source["label"])
    figure = Figure(figsize=(8, 8.2), layout="constrained")
    shares = {"smallest": 0, "median": 0.5, "largest": 1}
    for part, (name, share) in zip(figure.subfigures(3, 1), shares.items(), strict=True):
        rows = of_error(table, share)
        pictures = np.stack([np.asarray(open_image(source["image"][row], str(data))) for row in rows["row"]])
        hidden, written = reconstruct(run, pictures, rows)
        read = np.where(hidden[..., None], HIDDEN, pictures[..., None])
        part.suptitle(f"{name} error for each class", fontweight="bold")
        panels = part.subplots(3, len(rows), squeeze=False)
        for line, kind, drawn in zip(
            panels, ("picture", "model reads", "model writes"), (pictures, read, written), strict=True
        ):
            line[0].set_ylabel(kind, fontsize=8)
            for axes, picture in zip(line, drawn, strict=True):
                show(axes, picture)
    return figure


PICTURES = {draw.__name__: draw for draw in (clothes, reconstructions, boxes, masks, cells)}


def picture(draw: Callable[[], Figure], colors: int) -> bytes:
    """Return a drawing as PNG with few colors, which keeps photographs small."""
    with matplotlib.rc_context(STYLE):
        drawn, file = io.BytesIO(), io.BytesIO()
        draw().savefig(drawn, format="png", dpi=100)
    cover = Image.Quantize.MAXCOVERAGE  # MEDIANCUT would lose colors of small areas
    small = Image.open(drawn).convert("RGB").quantize(colors, cover, kmeans=4, dither=Image.Dither.NONE)
    small.save(file, format="png", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    for argument in sys.argv[1:] or PICTURES:
        name, _, run = argument.partition("=")
        draw = partial(PICTURES[name], Path(run)) if run else PICTURES[name]
        (DOCS / "pictures" / f"answers_{name}.png").write_bytes(picture(draw, COLORS.get(name, 64)))
