"""Draw pictures of classes with a trained model, and lay them out on one grid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, PreTrainedModel

from decero.errors import UserError, did_you_mean
from decero.execution.model_folder import open_checkpoint
from decero.execution.pretrained import load_pretrained, one_line, read_model_config
from decero.inference.diffusion_sampling import sample_pictures
from decero.inference.text_classification import names_of
from decero.models import DeceroDiffusionConfig

GAP = 2  # pixels between the pictures of a grid
LEAST = 64  # pixels of the longer side of a picture in a grid: smaller ones are enlarged


@dataclass
class LoadedDrawing:
    """Hold a model that draws, in evaluation mode, and the names of its classes by id."""

    name: str
    model: PreTrainedModel
    classes: list[str]

    def class_id(self, name: str) -> int:
        """Return the id of a class; case does not matter. Raises UserError for an unknown one, with the nearest."""
        known = {each.casefold(): number for number, each in enumerate(self.classes)}
        if name.casefold() not in known:
            near = did_you_mean(name.casefold(), known) or f"; known: {', '.join(self.classes[:20])}"
            raise UserError(f"--class {name}: {self.name} does not know it{near}")
        return known[name.casefold()]


def load_drawing(name: str, **loading: Any) -> LoadedDrawing:
    """Load a diffusion model onto the GPU if there is one.

    loading: revision, trust_remote_code, code_revision. Raises UserError for a checkpoint of another kind.
    """
    with one_line(name, "give --trust-remote-code --revision COMMIT"):
        checkpoint = open_checkpoint(name, **loading)
        config: Any = read_model_config(checkpoint)
        if config.model_type != DeceroDiffusionConfig.model_type:
            raise UserError(
                f"{name}: this {config.model_type} model draws no pictures; train one with "
                "recipes/pretrain_image_diffusion.py"
            )
        model: Any = load_pretrained(AutoModel, checkpoint, new_head=False, dtype=torch.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return LoadedDrawing(name, model.to(device).eval(), names_of(config, config.num_labels))


def draw(
    loaded: LoadedDrawing, classes: Sequence[int], *, steps: int = 50, guidance: float = 2.0, seed: int = 0,
    done: Callable[[int], Any] = lambda pictures: None,
) -> np.ndarray:  # fmt: skip
    """Draw one picture a class id and return them as uint8, (N, height, width, channels).

    steps, guidance, seed, done: as in `sample_pictures`.
    """
    labels = torch.tensor(list(classes), dtype=torch.long)
    return sample_pictures(loaded.model, labels, steps=steps, guidance=guidance, seed=seed, done=done).numpy()


def grid_of(pictures: np.ndarray, columns: int) -> Image.Image:
    """Lay pictures, uint8 (N, height, width, 1 or 3), out in rows of `columns`, on white."""
    count, height, width, channels = pictures.shape
    factor = max(1, -(-LEAST // max(height, width)))
    large = pictures.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = factor * height, factor * width
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), 255, np.uint8)
    for number, picture in enumerate(large):
        y, x = number // columns * (height + GAP), number % columns * (width + GAP)
        sheet[y : y + height, x : x + width] = picture
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG completely or not at all. Raises UserError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"--out {path}: cannot be written: {error.strerror or error}") from None
