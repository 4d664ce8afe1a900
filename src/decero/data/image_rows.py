"""Rows of pictures: read once, stored as uint8 in a memory-mapped file, cached by fingerprint."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL
import xxhash
from datasets import Dataset, Features, Value, concatenate_datasets
from tqdm.auto import tqdm

from decero.data.boxes import checked_boxes
from decero.data.cached_map import cached_map
from decero.data.corpus import ROW, check_column, source_rows
from decero.data.images import Resampling, open_image, to_mask, to_pixels
from decero.data.text_files import find_files, read_files
from decero.errors import UserError

MOST_BYTES = 64_000_000  # of pixels in memory at a time
BYTES, PATH = "bytes", "path"  # the fields of a picture, as `datasets` stores it


@dataclass(frozen=True)
class Pixels:
    """The form in which a model gets a picture.

    size: (height, width); pictures are stretched to it. channels: 1 or 3. mean, std: of each channel, subtracted from
    and divided into pixels in [0, 1]. resample: Pillow's number of the filter that resizes.
    """

    size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: int = int(Resampling.BILINEAR)

    def normalized(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """Return float32 (batch, channels, height, width) of uint8 (batch, height, width, channels)."""
        mean, std = (np.array(each[: self.channels], dtype=np.float32) for each in (self.mean, self.std))
        scaled = (pixels_BHWC.astype(np.float32) * np.float32(1 / 255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


@dataclass(frozen=True)
class Columns:
    """Which columns of a corpus hold what; "" for none. folder: where relative paths of pictures begin.

    mask: one class id a pixel. known: number of classes of masks; None for any. ignored: an id that is not scored.
    objects: {bbox, category} or a list of them; box_format: how `bbox` is written. category_ids: category as it is
    written -> id.
    """

    image: str
    mask: str = ""
    known: int | None = None
    ignored: int = 255
    objects: str = ""
    bbox: str = "bbox"
    category: str = "category"
    box_format: str = "xywh"
    category_ids: dict[Any, int] = field(default_factory=dict)
    folder: Path | None = None


def check_pictures(dataset: Dataset, column: str, where: str, setting: str = "data.image_column", *_: Any) -> None:
    """Raise UserError when the data set has no such column, or it holds neither pictures, nor bytes, nor paths."""
    check_column(dataset, column, where, setting)
    feature: Any = dataset.features[column]
    stored = isinstance(feature, dict) and (BYTES in feature or PATH in feature)
    kind = getattr(feature, "dtype", type(feature).__name__)
    if not isinstance(feature, datasets.Image) and not stored and kind not in ("string", "binary", "large_binary"):
        raise UserError(f"{where}: column {column!r} holds {kind}, not pictures  (setting: {setting})")


def undecoded(dataset: Dataset, column: str) -> Dataset:
    """Return the data set with the bytes and paths of a column of pictures, not what `datasets` makes of them."""
    if isinstance(dataset.features[column], datasets.Image):
        return dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def picture_folder(files: dict[str, str | list[str]] | None, split: str) -> Path | None:
    """Return the folder where relative paths of a split begin: that of its files. A split without files is of train.

    None where there are no files, or files in several folders: `read_picture_files` makes their paths whole.
    """
    if patterns := (files or {}).get(split, (files or {}).get("train")):
        parents = {path.parent for path in find_files(split, patterns)[1]}
        return parents.pop() if len(parents) == 1 else None
    return None


def read_picture_files(split: str, patterns: str | list[str], *given: Any, columns: Sequence[str]) -> Dataset:
    """Read files as `read_files`. Where they lie in several folders, each path begins at the folder of its own file.

    columns: those that may hold paths. Raises UserError.
    """
    _, paths = find_files(split, patterns)
    if len({path.parent for path in paths}) == 1:
        return read_files(split, patterns, *given)
    parts = []
    for path in paths:
        rows = read_files(split, [str(path)], *given)
        for column in columns:
            if column in rows.column_names:
                rows = undecoded(rows, column).map(_begin_at, fn_kwargs={"column": column, "folder": str(path.parent)})
        parts.append(rows)
    return concatenate_datasets(parts)


def _begin_at(row: dict[str, Any], column: str, folder: str) -> dict[str, Any]:
    value = row[column]
    if isinstance(value, str) and value:
        return {column: str(Path(folder) / value)}
    if isinstance(value, dict) and value.get(BYTES) is None and value.get(PATH):
        return {column: value | {PATH: str(Path(folder) / value[PATH])}}
    return {column: value}


def picture_hashes(dataset: Dataset, column: str, folder: Path | None = None) -> np.ndarray:
    """Return (rows,) 64-bit hashes of the files of the pictures; 0 for none. Equal files have equal hashes."""
    found = np.zeros(len(dataset), dtype=np.uint64)
    values = undecoded(dataset.select_columns([column]), column).with_format(None)
    for number, row in enumerate(values):
        value = row[column]
        data = value.get(BYTES) if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            path = _path_of(value, folder)
            data = path.read_bytes() if path and path.is_file() else str(path or "").encode()
        found[number] = xxhash.xxh64_intdigest(data) if data else 0
    return found


def decode_rows(
    dataset: Dataset, columns: Columns, pixels: Pixels, *, where: str = "data", num_proc: int | None = None
) -> Dataset:
    """Return rows with `pixels`, uint8 (height, width, channels) as bytes, and what belongs to them.

    `labels` of the corpus and the numbers of its rows stay. With masks: `mask`, uint8 (height, width). With objects:
    `boxes` (x1, y1, x2, y2 as shares of the picture, flat), `classes`; `width` and `height` are those of the picture
    as it was.

    Raises UserError, one line with file and row, for what cannot be read or does not fit.
    """
    rows = dataset
    for column in (columns.image, columns.mask):
        rows = undecoded(rows, column) if column else rows
    names = [name for name in (columns.image, columns.mask, columns.objects) if name]
    given = [name for name in ("labels", ROW) if name in rows.column_names]
    rows = rows.select_columns([*names, *given]).with_format(None)
    features = {"pixels": Value("binary"), "width": Value("int32"), "height": Value("int32")}
    features |= {name: rows.features[name] for name in given}
    features |= {"mask": Value("binary")} if columns.mask else {}
    if columns.objects:
        features |= {"boxes": datasets.List(Value("float32")), "classes": datasets.List(Value("int32"))}

    def decode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        out: dict[str, list] = {name: [] for name in features}
        numbers = batch.get(ROW, indices)
        for place, number in enumerate(numbers):
            name = f"{where}, row {number}"
            image = open_image(batch[columns.image][place], name, columns.folder)
            out["pixels"].append(to_pixels(image, pixels.size, pixels.channels, name, pixels.resample).tobytes())
            out["width"].append(image.width)
            out["height"].append(image.height)
            if columns.mask:
                mask = open_image(batch[columns.mask][place], f"{name}, mask", columns.folder)
                ids = to_mask(mask, image.size, pixels.size, columns.known, columns.ignored, name)
                out["mask"].append(ids.tobytes())
            if columns.objects:
                boxes, classes = objects_of(batch[columns.objects][place], columns, name)
                shares = checked_boxes(boxes, columns.box_format, image.size, name)
                out["boxes"].append(shares.astype(np.float32).ravel().tolist())
                unknown = [each for each in classes if each not in columns.category_ids]
                if unknown:
                    raise UserError(f"{name}: category {unknown[0]!r} is not in train; move a picture of it there")
                out["classes"].append([columns.category_ids[each] for each in classes])
            for kept in given:
                out[kept].append(batch[kept][place])
        return out

    known = columns if not columns.category_ids else (columns, sorted(map(str, columns.category_ids.items())))
    key: tuple[Any, ...] = ("pictures 3", known, pixels.size, pixels.channels, pixels.resample, PIL.__version__)
    key += (_files_key(rows, names, columns.folder),)
    one = pixels.size[0] * pixels.size[1] * (pixels.channels + bool(columns.mask))
    at_once = max(1, min(256, MOST_BYTES // one))
    return cached_map(
        rows, decode, Features(features), key, num_proc, f"read pictures of {where}", at_once, with_indices=True,
        writer_batch_size=max(1, min(1000, MOST_BYTES // one)),
    )  # fmt: skip


def read_pixels(
    dataset: Dataset, column: str, size: tuple[int, int], channels: int, where: str, *, folder: Path | None = None,
    resample: int = Resampling.BILINEAR,
) -> np.ndarray:  # fmt: skip
    """Return all pictures in memory: uint8 (rows, height, width, channels), stretched to `size`.

    Raises UserError, one line with file and row, for a picture that cannot be read.
    """
    values = undecoded(dataset.select_columns([column]), column).with_format(None)
    found = np.empty((len(values), *size, channels), dtype=np.uint8)
    for number, row in enumerate(tqdm(values, desc=f"read {where}", unit="picture", dynamic_ncols=True)):
        name = f"{where} row {number}"
        found[number] = to_pixels(open_image(row[column], name, folder), size, channels, name, resample)
    return found


def objects_of(value: Any, columns: Columns, where: str) -> tuple[list, list[Any]]:
    """Return the boxes and the categories of a row, from {bbox: [...], category: [...]} or [{bbox, category}, ...].

    Raises UserError for anything else, for lists of different lengths, and for a box without a category.
    """
    box, kind = columns.bbox, columns.category
    if value is None:
        return [], []
    if isinstance(value, list) and all(isinstance(each, dict) and {box, kind} <= set(each) for each in value):
        value = {name: [each[name] for each in value] for name in (box, kind)}
    if not isinstance(value, dict) or not {box, kind} <= set(value):
        raise UserError(
            f"{where}: column {columns.objects!r} has no {box!r} and {kind!r}  (settings: data.objects_column, "
            "data.box_field, data.category_field)"
        )
    boxes, kinds = value[box] or [], value[kind] or []
    if len(boxes) != len(kinds):
        raise UserError(f"{where}: {len(boxes)} boxes and {len(kinds)} categories; give one category a box")
    if None in kinds:
        number = kinds.index(None)
        raise UserError(f"{where}, box {number}: it has no category (null); write one, or remove the box")
    return boxes, kinds


def first_size(dataset: Dataset, column: str, where: str, folder: Path | None = None) -> tuple[int, int]:
    """Return (height, width) of the first picture."""
    value = undecoded(dataset.select_columns([column]), column).with_format(None)[0][column]
    image = open_image(value, f"{where}, row {source_rows(dataset)[0]}", folder)
    return image.height, image.width


def _path_of(value: Any, folder: Path | None) -> Path | None:
    name = value.get(PATH) if isinstance(value, dict) else value
    return (folder or Path()) / name if isinstance(name, str) and name else None


def _files_key(rows: Dataset, columns: list[str], folder: Path | None) -> int:
    """Return a number for the sizes and times of the files that rows name by path; their bytes are not in the rows."""
    digest = xxhash.xxh64()
    for column in columns:
        feature: Any = rows.features[column]
        pictures = isinstance(feature, datasets.Image) or (isinstance(feature, dict) and PATH in feature)
        if not pictures and getattr(feature, "dtype", "") != "string":
            continue
        for row in rows.select_columns([column]):
            value = row[column]
            if isinstance(value, dict) and value.get(BYTES) is not None:
                continue
            path = _path_of(value, folder)
            if path is not None and path.is_file():
                found = os.stat(path)
                digest.update(f"{path} {found.st_size} {found.st_mtime_ns}".encode())
    return digest.intdigest()
