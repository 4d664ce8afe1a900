"""Draw pictures of classes with a trained model, and lay them out on one grid."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from decero.data.image_rows import read_pixels
from decero.data.image_tokens import ImageTokens, describes_pictures, image_tokens_of
from decero.data.images import Resampling, open_image, to_pixels
from decero.errors import UserError, did_you_mean
from decero.execution.model_folder import open_checkpoint
from decero.execution.pretrained import load_pretrained, one_line, read_model_config
from decero.inference.diffusion_sampling import sample_pictures
from decero.inference.loading import load
from decero.inference.text_classification import names_of
from decero.inference.token_drawing import TokenPainter
from decero.models import DeceroDiffusionConfig

GAP = 2  # pixels between the pictures of a grid
LEAST = 64  # pixels of the longer side of a picture in a grid: smaller ones are enlarged
STEPS = 16  # of the solver, where the user gives none


class LoadedDrawing(ABC):
    """Hold a model that draws, in evaluation mode.

    name: as the user gave it. classes: their names by id; empty where captions are free text.
    """

    guidance: float  # what is good where the user gives none
    means_nothing: dict[str, str]  # option that this kind of model lacks -> why, and what to do

    def __init__(self, name: str, model: PreTrainedModel, classes: list[str]):
        self.name, self.model, self.classes = name, model, classes

    def class_named(self, name: str) -> str:
        """Return a class as the model writes it; case does not matter. Raises UserError for an unknown one."""
        if name in self.classes:
            return name
        known = {each.casefold(): each for each in self.classes}
        if not known:
            raise UserError(f"--class {name}: {self.name} knows no classes, it reads captions; give --caption TEXT")
        if name.casefold() not in known:
            near = did_you_mean(name.casefold(), known) or f"; known: {', '.join(self.classes[:20])}"
            raise UserError(f"--class {name}: {self.name} does not know it{near}")
        return known[name.casefold()]

    def options_of(self, given: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        """Return the options that are given, not None, and `guidance`.

        Raises UserError for one of another kind of model.
        """
        found = {name: value for name, value in given.items() if value is not None}
        if wrong := next((name for name in found if name in self.means_nothing), None):
            raise UserError(f"{prefix}{wrong}: {self.name} {self.means_nothing[wrong]}")
        return {"guidance": self.guidance} | found

    @abstractmethod
    def draw(self, names: Sequence[str], **options: Any) -> np.ndarray:
        """Draw a picture for each name of a class and return them as uint8, (N, height, width, channels).

        "" asks for a picture of any class. options: `seed`, `guidance`, `done`, and those of the kind of model; see
        `sample_pictures` and `TokenPainter.draw`.
        """

    @abstractmethod
    def like_drawings(self, rows: Dataset, column: str, where: str, folder: Path | None) -> np.ndarray:
        """Read real pictures in the form of drawings, to compare them: uint8 (rows, height, width, channels)."""


class DiffusionDrawing(LoadedDrawing):
    """Draw by solving a differential equation from noise to a picture."""

    guidance = 2.0
    means_nothing = {
        "temperature": "draws whole pictures, not pixel after pixel; remove it",
        "caption": "knows classes, no captions; give --class NAME",
        "complete": "draws whole pictures from noise; remove it",
    }  # fmt: skip

    def draw(self, names: Sequence[str], **options: Any) -> np.ndarray:
        ids = {name: number for number, name in enumerate([*self.classes, ""])}
        labels = torch.tensor([ids[name] for name in names], dtype=torch.long)
        return sample_pictures(self.model, labels, **{"steps": STEPS} | options).numpy()

    def like_drawings(self, rows: Dataset, column: str, where: str, folder: Path | None) -> np.ndarray:
        config: Any = self.model.config
        return read_pixels(rows, column, tuple(config.picture_size), config.num_channels, where, folder=folder)


class TokenDrawing(LoadedDrawing):
    """Draw by writing a token for each pixel after a caption."""

    guidance = 1.0

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: ImageTokens):
        super().__init__(name, model, tokens.classes)
        self.tokens, self.painter = tokens, TokenPainter(model, tokenizer, tokens)
        self.means_nothing = {"steps": "draws pixel after pixel, with a step for each; remove it"}
        if tokens.classes:
            self.means_nothing["caption"] = "knows classes, no captions; give --class NAME"

    def draw(self, names: Sequence[str], **options: Any) -> np.ndarray:
        """As in `TokenPainter.draw`; names: captions, too."""
        return self.tokens.pictures(self.painter.draw(names, **options))

    def upper_half(self, path: Path) -> np.ndarray:
        """Return the colors of the upper half of a picture, uint8 (1, G). Raises UserError for what is no picture."""
        pixels_YXC = to_pixels(
            open_image(str(path), str(path)), self.tokens.size, self.tokens.channels, str(path), Resampling.BOX
        )
        return self.tokens.upper_half(self.tokens.indexes(pixels_YXC[None]))

    def like_drawings(self, rows: Dataset, column: str, where: str, folder: Path | None) -> np.ndarray:
        found = read_pixels(
            rows, column, self.tokens.size, self.tokens.channels, where, folder=folder, resample=Resampling.BOX
        )
        return self.tokens.pictures(self.tokens.indexes(found))


def load_drawing(name: str, **loading: Any) -> LoadedDrawing:
    """Load a model that draws onto the GPU if there is one: a diffusion model, or a causal one of image tokens.

    loading: revision, trust_remote_code, code_revision. Raises UserError for a checkpoint of another kind.
    """
    with one_line(name, "give --trust-remote-code --revision COMMIT"):
        checkpoint = open_checkpoint(name, **loading)
        config: Any = read_model_config(checkpoint)
        if config.model_type == DeceroDiffusionConfig.model_type:
            model: Any = load_pretrained(AutoModel, checkpoint, new_head=False, dtype=torch.float32)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            return DiffusionDrawing(name, model.to(device).eval(), names_of(config, config.num_labels))
        if not describes_pictures(checkpoint.folder):
            raise UserError(
                f"{name}: this {config.model_type} model draws no pictures; train one with "
                "recipes/pretrain_image_diffusion.py, or a causal one on rows of recipes/tokenize_images.py"
            )
    found = load(name, "generate", **loading)
    tokens = image_tokens_of(found.tokenizer)
    assert tokens is not None  # its tokenizer_config.json says so
    return TokenDrawing(name, found.model, found.tokenizer, tokens)


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
