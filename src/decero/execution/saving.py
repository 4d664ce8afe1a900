"""Write model folders completely or not at all. All models and tokenizers of the project are saved here."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

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


def save_pretrained(model: PreTrainedModel, folder: Path) -> None:
    """Save a model as transformers does, so that its versions 4 and 5 find the same head.

    Version 5 writes `tie_word_embeddings: true` for every T5. Version 4 reads it, and throws away a head of T5 1.1. It
    also divides the output of every T5 with that line by sqrt(d_model); a tied T5 whose `scale_decoder_outputs` is
    false is therefore saved with a copy of its matrix, which version 5 ties again.
    """
    head, weight = model.get_output_embeddings(), getattr(model.get_output_embeddings(), "weight", None)
    if weight is None:
        model.save_pretrained(folder)
        return
    tied = weight is model.get_input_embeddings().weight
    keys = model.all_tied_weights_keys
    stored = tied and getattr(model.config, "scale_decoder_outputs", True) is False
    if stored:
        untie(model)
    model.save_pretrained(folder)
    if stored:
        head.weight, model.all_tied_weights_keys = weight, keys
    if stored or not tied:
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | {"tie_word_embeddings": False}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def untie(model: Any) -> None:
    """Give the head its own matrix. T5's configuration always ties it, and from_pretrained unties it like this."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.all_tied_weights_keys = {k: v for k, v in model.all_tied_weights_keys.items() if k != "lm_head.weight"}


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
