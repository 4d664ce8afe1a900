"""Read pictures of any kind to uint8 pixels of one size: grey, RGB, palette, transparent, 16-bit, turned by EXIF."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from decero.errors import UserError, root_line

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
DARK = 4096  # a 16-bit picture whose values stay below: 8 or 12 bits were stored in 16
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
Resampling = Image.Resampling


def open_image(value: Any, where: str, folder: Path | None = None) -> Image.Image:
    """Read a whole picture, turned as its EXIF orientation says; of several frames, the first.

    value: bytes, a path, or {bytes, path} as `datasets` stores them. where: what to call it in messages. folder: what
    relative paths begin at.

    Raises UserError, one line, for null, a file that is missing, no picture, torn, or too large to be safe.
    """
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
    if isinstance(value, str | Path):
        path = str(value)
    elif isinstance(value, bytes):
        data = value
    elif value is not None and not isinstance(value, dict):
        raise UserError(f"{where}: a {type(value).__name__} is no picture; give a path, or the bytes of its file")
    if data is None and not path:
        raise UserError(f"{where}: there is no picture (null); fill it or remove the row")
    if data is None:
        path = (folder or Path()) / str(path)
        where = f"{where} ({path})" if str(path) not in where else where
    try:
        source = io.BytesIO(data) if data is not None else io.BytesIO(Path(str(path)).read_bytes())
        with Image.open(source) as image:
            deep = re.search(r"(RGB.?|LA);16[BLN]", str(image.tile)) is not None  # Pillow reads the upper 8 of 16 bits
            image.load()
            found = ImageOps.exif_transpose(image)
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0] or root_line(error)  # its cause says less
        reason = re.sub(r"cannot identify image file <.*>", "this is no picture, or one of an unknown format", reason)
    except Exception as error:  # Pillow's readers raise all kinds for damaged files: SyntaxError, struct.error ...
        reason = root_line(error) or type(error).__name__
    else:
        if deep:
            check_depth(max(1, 256 * int(np.asarray(found)[..., :3].max())), where)  # a 0 may have been 255
        return found
    raise UserError(f"{where}: cannot read the picture: {reason}; replace it or remove the row")


def pixels_of(image: Image.Image, channels: int, where: str) -> Image.Image:
    """Return a picture with 1 (grey) or 3 (RGB) channels of 8 bits; what is transparent becomes white.

    16-bit greys keep their upper 8 bits. Raises UserError for numbers that are no greys, such as a float TIFF, and for
    fewer bits in 16, which would be nearly black.
    """
    if image.mode in SIXTEEN_BITS or image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise UserError(f"{where}: the picture has values of 32 bits; save it with 8 or 16 bits a channel")
        check_depth(values.max(), where)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise UserError(f"{where}: the picture has float values; save it with 8 or 16 bits a channel")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("L" if channels == 1 else "RGB")


def check_depth(largest: int, where: str) -> None:
    """Raise UserError where 8 or 12 bits were stored in 16: of these the upper 8 are kept."""
    if 0 < largest < DARK:
        raise UserError(
            f"{where}: the picture has 16 bits, but all its values are below {DARK:,}, so it would be nearly black; "
            "save it with 8 bits a channel, or multiply its values so that they reach 65,535"
        )


def to_pixels(
    image: Image.Image, size: tuple[int, int], channels: int, where: str, resample: int = Resampling.BILINEAR
) -> np.ndarray:
    """Return uint8 (height, width, channels), stretched to `size`, which is (height, width)."""
    image = pixels_of(image, channels, where)
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Resampling(resample))
    return np.asarray(image).reshape(height, width, channels)


def to_mask(
    image: Image.Image, shown: tuple[int, int], size: tuple[int, int], known: int | None, ignored: int, where: str
) -> np.ndarray:
    """Return the class id of each pixel, uint8 (height, width); resized by the nearest pixel.

    shown: (width, height) of its picture. known: number of classes; None for any. ignored: the id that is not scored.

    Raises UserError for a mask of another size than its picture, of several channels, or with an unknown id.
    """
    if image.mode not in ("L", "P", "1", "I", *SIXTEEN_BITS):
        raise UserError(f"{where}: the mask is of mode {image.mode}; give one class id a pixel (grey or palette)")
    if image.size != shown:
        raise UserError(
            f"{where}: the mask has {image.width} x {image.height} pixels, its picture {shown[0]} x {shown[1]}"
            " (turned as EXIF says); make them equal"
        )
    ids = np.asarray(image).astype(np.int64)  # of a palette the indices
    least = 256 if known is None else known
    wrong = (ids != ignored) & ((ids < 0) | (ids >= least))
    if wrong.any():
        found = int(ids[wrong][0])
        what = f"0 to {least - 1}, or {ignored} for pixels that are not scored"
        raise UserError(f"{where}: the mask has the unknown id {found}; ids are {what}")
    height, width = size
    small = Image.fromarray(ids.astype(np.uint8))
    return np.asarray(small if small.size == (width, height) else small.resize((width, height), Resampling.NEAREST))


def find_images(place: str | Path) -> list[Path]:
    """Return a picture's path, or those of all pictures in a folder and below, in order. Raises UserError for none."""
    path = Path(place)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{place}: no such picture or folder")
    found = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
    if not found:
        raise UserError(f"{place}: no picture in this folder ({', '.join(SUFFIXES)})")
    return found
