"""Time tokenization and packing against the tokenizers library alone, on the same cores.

python -m decero.benchmark.reading TOKENIZER FILE [FILE ...] [--text-column text] [--max-length 128] [--rounds 5]

decero cuts documents into rows with word starts, in several processes, and writes memory-mapped Arrow files. Then it
reads and packs the rows, one step at a time. The library alone calls `encode_batch` on texts in memory.
"""

import argparse
import os
import tempfile
from contextlib import contextmanager
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from decero.benchmark.batches import stack
from decero.benchmark.measure import interleaved, paired_ratios, timed
from decero.cores import usable_cores
from decero.data.corpus import load_corpus
from decero.data.order import RowIndex, Rows
from decero.data.packing import Packed
from decero.data.tokenization import count_tokens, tokenize_documents
from decero.data.tokenizer import load_tokenizer
from decero.errors import UserError, run_script
from decero.training.data_loader import prefetch

AT_ONCE = 1000  # texts per call of the library
STEP = 256  # rows per packed step
CPU = torch.device("cpu")


def alone(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    """Run only the tokenizers library, on all cores that this process may use."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # `Dataset.map` with processes turns it off
    for start in range(0, len(texts), AT_ONCE):
        backend.encode_batch(texts[start : start + AT_ONCE], add_special_tokens=False)
    os.environ.pop("TOKENIZERS_PARALLELISM") if before is None else os.environ.update(TOKENIZERS_PARALLELISM=before)


def packed(rows: Dataset, capacity: int, workers: int) -> None:
    """Pack every row once, as for training, with `workers` processes."""
    pack, read = Packed(_padded, capacity), Rows(rows)

    def step(start: int) -> dict[str, Tensor]:
        return pack(read.__getitems__([RowIndex(0, row) for row in range(start, min(start + STEP, len(rows)))]))

    for _ in prefetch(step, range(0, len(rows), STEP), workers):
        pass


def _padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    texts = [np.asarray(row["input_ids"]) for row in rows]
    return {"input_ids": stack(texts, 0), "attention_mask": stack([np.ones_like(text) for text in texts], 0)}


@contextmanager
def empty_cache():
    """Use an empty cache folder inside the block, so that no earlier result is found."""
    before = datasets.config.HF_DATASETS_CACHE
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = folder
        try:
            yield
        finally:
            datasets.config.HF_DATASETS_CACHE = before


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", help="hub name, folder or package:NAME/FOLDER")
    parser.add_argument("files", nargs="+", help="txt, jsonl, csv, tsv or parquet")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--max-length", type=int, default=128, help="most tokens per row")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    if options.rounds < 1:
        raise UserError(f"--rounds {options.rounds} must be at least 1")
    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(options.tokenizer)
    corpus = load_corpus(files={"train": options.files}, text_column=options.text_column, columns={})["train"]
    texts = [text for text in corpus[options.text_column] if text and not text.isspace()]
    cores = usable_cores()

    def tokenized() -> Dataset:
        settings = {"max_length": options.max_length, "text_column": options.text_column}
        return tokenize_documents(corpus, tokenizer, **settings, num_proc=cores)

    def ours(pack: bool) -> None:
        with empty_cache():
            rows = tokenized()
            if pack:
                packed(rows, options.max_length, cores or 1)

    with empty_cache():
        rows = tokenized()
        size = f"{len(rows):,} rows of at most {options.max_length}, {count_tokens(rows):,} tokens"
        print(f"{cores} cores, {len(texts):,} texts, {size}")
    units = {"alone": lambda: alone(tokenizer, texts), "rows": lambda: ours(False), "packed": lambda: ours(True)}
    times = interleaved({n: partial(timed, unit, CPU) for n, unit in units.items()}, options.rounds, warmup=1, seed=0)
    print(f"tokenizers alone: {np.median(times['alone']):.2f} s")
    for name, label in (("rows", "tokenised"), ("packed", "tokenised and packed")):
        ratio = paired_ratios(times["alone"], times[name])
        low, high = ratio["quartiles"]
        print(f"{label}: {np.median(times[name]):.2f} s, {ratio['median']:.2f} [{low:.2f}, {high:.2f}] of its speed")


if __name__ == "__main__":
    run_script(main)
