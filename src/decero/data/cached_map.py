"""Run `Dataset.map` once, memory-mapped, with a cache whose key says all that decides the rows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import xxhash
from datasets import Dataset, Features

from decero.cores import usable_cores
from decero.data.cache_errors import writing_cache


@writing_cache()
def cached_map(
    dataset: Dataset, function: Callable, features: Features, key: Sequence[Any], num_proc: int | None, desc: str,
    batch_size: int = 256, **options: Any,
) -> Dataset:  # fmt: skip
    """Map batches of rows to rows with these features; all other columns are dropped.

    By default `datasets` hashes the function, and caches nothing for a data set that was made in memory.
    key: what decides the rows besides the data set.
    """
    digest = xxhash.xxh64()
    for part in (dataset._fingerprint, *key):
        digest.update(str(part).encode() + b"\0")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "decero"
    folder.mkdir(parents=True, exist_ok=True)
    # A process takes about a second to start: too slow for a small corpus.
    processes = num_proc or (min(usable_cores(), 16) if len(dataset) >= 20_000 else 1)
    return dataset.map(
        function,
        batched=True,
        batch_size=batch_size,
        remove_columns=dataset.column_names,
        features=features,
        num_proc=processes if processes > 1 else None,
        new_fingerprint=digest.hexdigest(),
        cache_file_name=str(folder / f"{digest.hexdigest()}.arrow"),
        desc=desc,
        **options,
    )
