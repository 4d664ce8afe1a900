"""What columns of text say, asked of the memory-mapped table a chunk at a time: no list of texts is ever made."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset

CHUNK = 1000  # rows that are looked at together


def chunks(dataset: Dataset, columns: Sequence[str]) -> Iterator[list[pa.Array]]:
    """The columns as large strings, CHUNK rows at a time; a column that is null throughout is one of null strings."""
    for table in dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=CHUNK):
        whole = table.combine_chunks()  # of rows that were selected each is a chunk
        yield [pa.concat_arrays(whole[c].cast(pa.large_string()).chunks) for c in columns]


def rows_with_text(dataset: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Indices of the rows that have more than white space (`str.strip`'s, all of Unicode's) in each of the columns."""
    found, start = [np.empty(0, dtype=np.int64)], 0
    for sides in chunks(dataset, columns):
        full = np.ones(len(sides[0]), dtype=bool)
        for texts in sides:
            said = pc.not_equal(pc.utf8_trim_whitespace(texts), "")
            full &= said.fill_null(False).to_numpy(zero_copy_only=False)
        found.append(start + np.flatnonzero(full))
        start += len(full)
    return np.concatenate(found)


def text_hashes(dataset: Dataset, column: str) -> np.ndarray:
    """(rows,) 64-bit hashes of the texts in UTF-8; what is missing (null) hashes as the word None."""
    missing, hashes = xxhash.xxh64_intdigest(b"None"), [np.empty(0, dtype=np.uint64)]
    for (texts,) in chunks(dataset, [column]):
        _, offsets, data = texts.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
        view = memoryview(data or b"")
        each = (xxhash.xxh64_intdigest(view[a:b]) for a, b in pairwise(ends))
        found = np.fromiter(each, dtype=np.uint64, count=len(texts))
        found[texts.is_null().to_numpy(zero_copy_only=False)] = missing
        hashes.append(found)
    return np.concatenate(hashes)
