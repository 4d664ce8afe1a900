"""Measure how well a causal model of image tokens foresees pictures, beside compressors and n-grams.

Dimensions: N pictures, P pixels of a picture.
"""

import io
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from decero.config.image_token_runs import EvaluateImageTokens
from decero.data.corpus import load_corpus
from decero.data.image_tokens import ImageTokens
from decero.errors import UserError
from decero.evaluation.baselines import ByteNgrams, compressed_bits_per_byte
from decero.inference.drawing import LoadedDrawing, TokenDrawing, grid_of, save_png
from decero.training.runs import Run

DRAWN = 4  # pictures beside each real one
CAPTIONS = ("own", "another", "none")  # what the model is told before a picture


class TokenRows(NamedTuple):
    """Captions and colors, uint8 (N, P), of pictures."""

    captions: list[str]
    indexes: np.ndarray


def of_tokens(loaded: LoadedDrawing) -> TokenDrawing:
    """Return the model. Raises UserError for one that draws without tokens."""
    if not isinstance(loaded, TokenDrawing):
        raise UserError(f"{loaded.name}: it writes no image tokens; recipes/evaluate_drawings.py measures it")
    return loaded


def read_rows(run: Run, config: EvaluateImageTokens, tokens: ImageTokens) -> tuple[TokenRows, TokenRows]:
    """Return train and test. Raises UserError for rows that are no pictures of the model, and without a split."""
    corpus = load_corpus(**config.data.source(), say=run.print)
    if lacking := [split for split in ("train", "test") if split not in corpus]:
        raise UserError(f"data: there is no {lacking[0]} split; give data.files.{lacking[0]}")
    test = corpus["test"]
    if len(test) < 2:
        raise UserError("data.files.test: it has one picture, too few for a standard error; give at least 2")
    if config.max_pictures and config.max_pictures < len(test):
        some = np.random.default_rng(config.seed).permutation(len(test))[: config.max_pictures]
        test = test.select(np.sort(some))
    return _parsed(corpus["train"], "train", tokens), _parsed(test, "test", tokens)


def _parsed(rows: Dataset, split: str, tokens: ImageTokens) -> TokenRows:
    parsed = [tokens.parse(text or "", f"{split} row {number}") for number, text in enumerate(rows["text"])]
    return TokenRows([caption for caption, _ in parsed], np.stack([indexes_P for _, indexes_P in parsed]))


def other_captions(captions: list[str], seed: int) -> list[str]:
    """Return for each picture the caption of another one, by lot among the different ones; "" where there is none."""
    rng, found = np.random.default_rng(seed), []
    different = sorted(set(captions))
    for caption in captions:
        others = [each for each in different if each != caption]
        found.append(others[rng.integers(len(others))] if others else "")
    return found


def different(indexes_NP: np.ndarray) -> np.ndarray:
    """Return each picture once, where it stands first: a picture with two captions has two rows."""
    _, first = np.unique(indexes_NP, axis=0, return_index=True)
    return indexes_NP[np.sort(first)]


def png_bits(tokens: ImageTokens, indexes_NP: np.ndarray) -> float:
    """Return the bits a pixel of one PNG with a palette that holds all pictures, one below the other."""
    sheet = Image.fromarray(indexes_NP.reshape(-1, tokens.size[1]))
    sheet.putpalette([number for color in tokens.palette for number in (color * 3)[:3]])
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True, bits=max(1, (len(tokens.palette) - 1).bit_length()))
    return 8 * len(file.getvalue()) / indexes_NP.size


def measure(
    run: Run, config: EvaluateImageTokens, loaded: TokenDrawing, train: TokenRows, test: TokenRows
) -> dict[str, Any]:
    """Return the record, and write `bits.parquet`, `completed.png` and `captions.png`.

    `bits_per_pixel` is the mean over test with the own caption of each picture. An n-gram and lzma read train first; a
    PNG reads test alone. They read each picture once.
    """
    told = {
        "own": test.captions,
        "another": other_captions(test.captions, config.seed),
        "none": [""] * len(test.captions),
    }
    found = {}
    for name in CAPTIONS:
        with tqdm(total=len(test.captions), desc=f"caption: {name}", unit="picture", dynamic_ncols=True) as bar:
            bits_NP = loaded.painter.bits(told[name], test.indexes, config.per_device_eval_batch_size, bar.update)
        found[name] = bits_NP.mean(axis=1)
    table = pd.DataFrame({"caption": test.captions, "another_caption": told["another"], **found})
    table.to_parquet(run.output / "bits.parquet", index=False)
    known, wanted = (different(each.indexes) for each in (train, test))
    show(run, config, loaded, test)
    return {
        "metric": {"bits_per_pixel": float(found["own"].mean())},
        "standard_error": float(found["own"].std(ddof=1) / np.sqrt(len(table))),
        "bits_per_pixel_by_caption": {name: float(found[name].mean()) for name in CAPTIONS},
        "own_caption_is_better": float((found["own"] < found["another"]).mean()),
        "baselines": {
            "uniform": float(np.log2(len(loaded.tokens.palette))),
            "png": png_bits(loaded.tokens, wanted),
            "lzma": compressed_bits_per_byte(known.tobytes(), wanted.tobytes()),
            "ngram": float(-np.log2(ByteNgrams(known.tobytes()).probabilities(wanted.tobytes())).mean()),
        },
        "pictures": len(table),
    }  # fmt: skip


def show(run: Run, config: EvaluateImageTokens, loaded: TokenDrawing, test: TokenRows) -> None:
    """Draw beside the first pictures of test: the lower half anew, and the whole picture from its caption alone."""
    count = min(config.completed, len(test.captions))
    captions = [caption for caption in test.captions[:count] for _ in range(DRAWN)]
    real_NP = test.indexes[:count]
    upper_NG = loaded.tokens.upper_half(real_NP)
    options: dict[str, Any] = {"seed": config.seed, "temperature": config.temperature}
    real = loaded.tokens.pictures(real_NP)
    halves = real.copy()
    halves[:, loaded.tokens.size[0] // 2 :] = 255
    completed = loaded.draw(captions, given_NG=upper_NG.repeat(DRAWN, axis=0), **options)
    whole = loaded.draw(captions, **options)
    for name, first, drawn in (("completed.png", [real, halves], completed), ("captions.png", [real], whole)):
        rows = np.concatenate([np.stack(first, axis=1), drawn.reshape(count, DRAWN, *real.shape[1:])], axis=1)
        save_png(grid_of(rows.reshape(-1, *real.shape[1:]), rows.shape[1]), run.output / name)


def lines_of(record: dict[str, Any]) -> list[str]:
    """Return the lines of a table of bits a pixel."""
    by_caption, others = record["bits_per_pixel_by_caption"], record["baselines"]
    rows = [(f"the model, caption: {name}", by_caption[name]) for name in CAPTIONS]
    rows += [(name, others[name]) for name in ("ngram", "lzma", "png", "uniform")]
    better = f"the own caption needs fewer bits than another one in {100 * record['own_caption_is_better']:.1f}%"
    return ["bits a pixel", *(f"{name:<28}{bits:>7.3f}" for name, bits in rows), "", better]
