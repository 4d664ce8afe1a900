"""Turn a data set of pictures into rows of text, and make the tokenizer that reads them.

Dimensions: N pictures, P pixels of a picture.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from decero.config.image_token_runs import TokenizeImages
from decero.data.corpus import load_corpus
from decero.data.image_rows import picture_folder, read_pixels
from decero.data.image_tokens import ImageTokens, check_captions, palette_of
from decero.data.images import Resampling
from decero.data.labels import encode_labels
from decero.data.tokenizer import train_tokenizer
from decero.execution.decoder_tokenizer import fit_decoder
from decero.files import write_whole
from decero.tasks.picture_task import picture_source
from decero.training.runs import Run


class Captioned(NamedTuple):
    """The rows of each split, the captions of each split (a list for each column), and the classes, if captions are."""

    corpus: DatasetDict
    captions: dict[str, list[list[str]]]
    classes: list[str]


def read_captioned(run: Run, config: TokenizeImages) -> Captioned:
    """Read where pictures and captions are. Raises UserError for what is missing or empty."""
    data = config.data
    corpus = load_corpus(**picture_source(data), say=run.print)
    if not data.caption_columns:
        corpus, classes = encode_labels(corpus, data.label_column, "single_label_classification", say=run.print)
        named = {split: [[classes[each] for each in rows["labels"]]] for split, rows in corpus.items()}
        checked = {split: [check_captions(named[split][0], split, data.label_column)] for split in corpus}
        return Captioned(corpus, checked, classes)
    found = {
        split: [check_captions(rows[column], split, column) for column in data.caption_columns]
        for split, rows in corpus.items()
    }
    return Captioned(corpus, found, [])


def read_reduced(config: TokenizeImages, corpus: DatasetDict) -> dict[str, np.ndarray]:
    """Read all pictures of each split, reduced by the mean of the pixels that become one: uint8 (N, Y, X, channels)."""
    wanted, found = config.image_tokens, {}
    height, width = wanted.size
    for split, rows in corpus.items():
        folder = picture_folder(config.data.files, split)
        found[split] = read_pixels(
            rows, config.data.image_column, (height, width), wanted.num_channels, split, folder=folder,
            resample=Resampling.BOX,
        )  # fmt: skip
    return found


def make_tokenizer(
    config: TokenizeImages, captions: list[list[str]], train_NYXC: np.ndarray, classes: list[str]
) -> tuple[PreTrainedTokenizerFast, ImageTokens]:
    """Learn a tokenizer of train's captions, and add a token for each color of train's pictures."""
    wanted = config.image_tokens
    height, width = wanted.size
    tokens = ImageTokens((height, width), palette_of(train_NYXC, wanted.colors, config.seed), classes)
    texts = [text for column in captions for text in column]
    longest = max(len(text.encode()) for text in texts)
    tokenizer = train_tokenizer(
        texts, algorithm="byte_level_bpe", vocab_size=wanted.caption_vocab_size,
        model_max_length=tokens.pixels + longest + 3, show_progress=False,
    )  # fmt: skip
    fit_decoder(tokenizer)  # a caption stays open: the picture follows
    tokens.add_to(tokenizer)
    return tokenizer, tokens


def rows_of(
    config: TokenizeImages, split: str, tokens: ImageTokens, captions: list[list[str]], pictures_NYXC: np.ndarray
) -> pd.DataFrame:
    """Return a table with the column `text`: a row for each picture and each of its captions.

    In train, a share of the rows goes without a caption.
    """
    indexes_NP = tokens.indexes(pictures_NYXC)
    pairs = [(caption, row) for column in captions for row, caption in enumerate(column)]
    if split == "train":
        bare = np.random.default_rng(config.seed).random(len(pairs)) < config.image_tokens.uncaptioned
        pairs = [("" if lost else caption, row) for (caption, row), lost in zip(pairs, bare, strict=True)]
    return pd.DataFrame({"text": [tokens.text(caption, indexes_NP[row]) for caption, row in pairs]})


def longest_row(tokenizer: PreTrainedTokenizerFast, tokens: ImageTokens, captions: dict[str, list[list[str]]]) -> int:
    """Return the tokens of the longest row: the start token, a caption, PICTURE, and the pixels."""
    texts = sorted({text for columns in captions.values() for column in columns for text in column})
    longest = max(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    return 1 + longest + 1 + tokens.pixels


def write_rows(run: Run, tables: dict[str, pd.DataFrame]) -> None:
    """Write a parquet file for each split, completely or not at all."""
    for split, table in tables.items():
        write_whole(run.output / f"{split}.parquet", table.to_parquet(index=False))
