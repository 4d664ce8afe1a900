"""Write pictures as rows of text that a causal language model learns: a caption, then a token for each pixel.

Source: Image GPT (Chen et al. 2020, section 2) for reduced pictures, a palette and raster order; DALL-E (Ramesh et al.
2021, section 2) for the caption in front. Each color of the palette has one character of Unicode's block of Braille
patterns, so that a row is an ordinary text.

Dimensions: N pictures, Y and X height and width, C channels, P = Y * X pixels, K colors.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from decero.errors import UserError

PICTURE = "<|picture|>"  # stands between the caption and the pixels
FIRST = 0x2800  # the code of the first Braille pattern; the block has 256
KEY = "image_tokens"  # of tokenizer_config.json: facts that lead from tokens back to a picture
SAMPLE = 50_000  # pixels that k-means reads


@dataclass(frozen=True)
class ImageTokens:
    """Describe how pictures are written.

    size: (height, width). palette: a list of K colors, each a list of 1 or 3 numbers from 0 to 255. classes: the
    captions, where they are names of classes; else empty.
    """

    size: tuple[int, int]
    palette: list[list[int]]
    classes: list[str]

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def channels(self) -> int:
        return len(self.palette[0])

    @property
    def characters(self) -> list[str]:
        return [chr(FIRST + number) for number in range(len(self.palette))]

    def indexes(self, pictures_NYXC: np.ndarray) -> np.ndarray:
        """Return the nearest color of each pixel, uint8 (N, P), in raster order."""
        colors_KC = np.array(self.palette, dtype=np.int32)
        found = np.empty(pictures_NYXC.shape[:3], dtype=np.uint8)
        for number, picture_YXC in enumerate(pictures_NYXC.astype(np.int32)):
            apart_YXK = ((picture_YXC[:, :, None] - colors_KC) ** 2).sum(axis=-1)
            found[number] = apart_YXK.argmin(axis=-1)
        return found.reshape(len(found), -1)

    def pictures(self, indexes_NP: np.ndarray) -> np.ndarray:
        """Return uint8 (N, height, width, channels) of colors (N, P)."""
        return np.array(self.palette, dtype=np.uint8)[indexes_NP].reshape(len(indexes_NP), *self.size, -1)

    def upper_half(self, indexes_NP: np.ndarray) -> np.ndarray:
        """Return the colors of the upper rows, (N, G): half of them, rounded down."""
        return indexes_NP[:, : self.size[0] // 2 * self.size[1]]

    def text(self, caption: str, indexes_P: np.ndarray) -> str:
        """Return the row of a picture. An empty caption leaves the picture without one."""
        return f"{caption}{PICTURE}{''.join(chr(FIRST + int(each)) for each in indexes_P)}"

    def parse(self, text: str, where: str) -> tuple[str, np.ndarray]:
        """Return the caption and the colors, uint8 (P,), of a row. Raises UserError for a text that is none."""
        caption, mark, rest = text.rpartition(PICTURE)
        found = np.array([ord(each) - FIRST for each in rest])
        if not mark or len(found) != self.pixels or not ((found >= 0) & (found < len(self.palette))).all():
            raise UserError(
                f"{where}: this is no picture of {self.size[0]} x {self.size[1]} pixels and {len(self.palette)} "
                "colors; give the files that recipes/tokenize_images.py wrote"
            )
        return caption, found.astype(np.uint8)

    def add_to(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add a token for each color and PICTURE, and these facts, which `save_pretrained` keeps."""
        added = [AddedToken(each, special=False, normalized=False) for each in (PICTURE, *self.characters)]
        tokenizer.add_tokens(added)
        tokenizer.init_kwargs[KEY] = asdict(self)


def image_tokens_of(tokenizer: PreTrainedTokenizerBase) -> ImageTokens | None:
    """Return what the tokenizer says about pictures; None for a tokenizer of text.

    Raises UserError for damaged facts.
    """
    facts: Any = tokenizer.init_kwargs.get(KEY)
    if facts is None:
        return None
    try:
        height, width = (int(side) for side in facts["size"])
        palette = np.array(facts["palette"])
        found = ImageTokens((height, width), palette.astype(int).tolist(), [str(each) for each in facts["classes"]])
        known = tokenizer.get_vocab()
        right = palette.ndim == 2 and palette.shape[1] in (1, 3) and palette.min() >= 0 and palette.max() <= 255
        right &= min(height, width) > 0 and all(each in known for each in (PICTURE, *found.characters))
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise UserError(f"{tokenizer.name_or_path}: {KEY} in tokenizer_config.json is damaged; train the model again")
    return found


def describes_pictures(folder: Path) -> bool:
    """Tell whether the tokenizer in a folder reads pictures. Its facts are not checked."""
    try:
        return KEY in json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def palette_of(pictures_NYXC: np.ndarray, colors: int, seed: int) -> list[list[int]]:
    """Return at most `colors` colors: greys at equal distances for 1 channel, for 3 those that k-means finds.

    The palette is sorted by brightness. Pictures that have fewer colors get exactly those.
    """
    if pictures_NYXC.shape[-1] == 1:
        return np.linspace(0, 255, colors).round().astype(int)[:, None].tolist()
    pixels_MC = pictures_NYXC.reshape(-1, 3)
    different_MC = _different_colors(pictures_NYXC)
    if len(different_MC) > colors:
        from scipy.cluster.vq import kmeans2  # slow to import, and other recipes import this module

        rng = np.random.default_rng(seed)
        if len(pixels_MC) > SAMPLE:
            pixels_MC = pixels_MC[rng.choice(len(pixels_MC), SAMPLE, replace=False)]
        found, _ = kmeans2(pixels_MC.astype(np.float64), colors, iter=25, minit="++", missing="warn", rng=rng)
        different_MC = np.unique(found.round().clip(0, 255).astype(int), axis=0)
    order = np.argsort(different_MC.astype(int) @ np.array([299, 587, 114]), kind="stable")
    return different_MC[order].astype(int).tolist()


def _different_colors(pictures_NYXC: np.ndarray) -> np.ndarray:
    """Return the colors that occur, (colors, 3), each once. A color is packed into one number of 24 bits."""
    occurs = np.zeros(2**24, dtype=bool)
    for picture_YXC in pictures_NYXC:
        red, green, blue = np.moveaxis(picture_YXC.astype(np.int32), -1, 0)
        occurs[red << 16 | green << 8 | blue] = True
    packed_M = np.flatnonzero(occurs)
    return np.stack([packed_M >> 16, packed_M >> 8 & 255, packed_M & 255], axis=1)


def is_caption(text: str) -> bool:
    """Tell whether a text has words, and nothing that stands for pictures."""
    return bool(text.strip()) and PICTURE not in text and not any(FIRST <= ord(each) < FIRST + 256 for each in text)


def check_captions(captions: list[str | None], where: str, column: str) -> list[str]:
    """Return captions without spaces at their ends.

    Raises UserError for null, a caption that is empty or no text, and one that holds a token of pictures.
    """
    for number, caption in enumerate(captions):
        if caption is not None and not isinstance(caption, str):
            kind = type(caption).__name__
            raise UserError(f"{where} row {number}: column {column!r} holds {kind}, no text; give captions")
        if not (caption or "").strip():
            raise UserError(
                f"{where} row {number}: there is no caption in column {column!r}; fill it or remove the row"
            )
        if not is_caption(caption or ""):
            raise UserError(
                f"{where} row {number}: the caption in column {column!r} holds {PICTURE} or a Braille pattern, which "
                "stand for pictures; remove it"
            )
    return [(caption or "").strip() for caption in captions]
