"""Check the pixels of pictures."""

from collections.abc import Iterator

import numpy as np

from decero.doctor.findings import Finding, percent
from decero.doctor.inspected_run import InspectedRun

MOST = 2000  # pictures to look at


UNBOUNDED = {  # recipe whose loss has no simple bound -> what to say instead
    "finetune_object_detection": "a loss of boxes has no simple bound; compare with the baseline mean_box",
    "pretrain_masked_image": "a loss of pixels has no simple bound; compare by fine-tuning",
    "pretrain_image_diffusion": "a loss of velocities has no simple bound; look at drawings of the model",
}


def pictures(work: InspectedRun) -> Iterator[Finding]:
    """Say in which form the model reads pictures; find pictures of one colour, and sizes that are stretched much."""
    pixels = work.task.pixels  # type: ignore[attr-defined]
    rows = work.rows.select(range(min(MOST, len(work.rows))))
    values = [np.frombuffer(each, dtype=np.uint8) for each in rows["pixels"]]
    flat = np.array([each.min() == each.max() for each in values])
    height, width = pixels.size
    shape = np.array(rows["width"][:]) / np.array(rows["height"][:]) / (width / height)
    stretched = np.maximum(shape, 1 / shape) > 1.5
    found = False
    if flat.mean() >= 0.01:
        found, first = True, int(flat.argmax())
        what = f"{percent(float(flat.mean()))} of {len(rows):,} pictures have one colour (such as row {first})"
        yield Finding("rows", "warn", what, "train", f"check column {work.corpus.columns[0]!r}")
    if stretched.mean() >= 0.1:
        found = True
        what = f"{percent(float(stretched.mean()))} of {len(rows):,} pictures are stretched by more than half"
        yield Finding("rows", "warn", what, "train", "set data.image_size to a height and width like theirs")
    if not found:
        kind = "grey" if pixels.channels == 1 else "RGB"
        yield Finding("rows", "ok", f"{len(work.rows):,} {kind} pictures, read as {height} x {width} pixels", "train")
