"""Write model folders completely or not at all. All models and tokenizers of the project are saved here."""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from decero.errors import UserError, WriteError, write_error


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder; at the end flush it and rename it to `target`, in place of an older one.

    After an error nothing of it is left, and an older `target` is unchanged.

    Raises WriteError when the disk is full, read-only or gone: an OSError, a SafetensorError, the bare Exception of a
    tokenizer.
    """
    place = target.absolute()
    partial, old = (place.with_name(f".{place.name}.{state}-{os.getpid()}") for state in ("partial", "old"))
    moved = False
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.rglob("*"), partial):
            flush(path)
        if place.is_dir():
            place.rename(old)
            moved = True
        partial.rename(place)
        flush(place.parent)
    except Exception as error:
        found = None if isinstance(error, UserError) else write_error(error, f"{target}: cannot be written: ")
        if found is None:
            raise
        raise WriteError(str(found).replace(str(partial), str(target))) from error
    finally:
        if moved and not place.exists():  # the second rename failed
            old.rename(place)
        for path in (partial, old):
            shutil.rmtree(path, ignore_errors=True)


def bad_weight(model: nn.Module) -> str | None:
    """Return the name of the first parameter with a NaN or an infinity, or None. Of shards, only the own is read."""
    for name, parameter in model.named_parameters():
        values: Any = parameter.detach()
        values = values.to_local() if hasattr(values, "to_local") else values
        if not values.numel() or not values.is_floating_point():
            continue
        smallest, largest = values.aminmax()  # 30 times as fast as isfinite; NaN is the smallest and the largest
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            return name
    return None


def flush(path: Path) -> None:
    """Flush a file to disk, or a folder, which holds the names of its files. Windows cannot open folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
