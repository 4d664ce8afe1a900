"""Read text columns of a memory-mapped table in chunks, without a list of all texts in memory."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset

CHUNK = 1000  # rows


def chunks(dataset: Dataset, columns: Sequence[str]) -> Iterator[list[pa.Array]]:
    """Yield the columns as large strings, CHUNK rows at a time; a null column becomes null strings.

    The items of a list are joined with spaces.
    """
    for table in dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=CHUNK):
        whole = table.combine_chunks()  # after `select` each row is a chunk of its own
        yield [pa.concat_arrays(_joined(whole[c]).cast(pa.large_string()).chunks) for c in columns]


def _joined(column: pa.ChunkedArray) -> pa.ChunkedArray:
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return pc.binary_join(column.cast(pa.list_(pa.string())), " ") if is_list else column


def rows_with_text(dataset: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Return the indices of rows with more than white space (Unicode's, as `str.strip`) in each column."""
    found, start = [np.empty(0, dtype=np.int64)], 0
    for arrays in chunks(dataset, columns):
        keep = np.ones(len(arrays[0]), dtype=bool)
        for texts in arrays:
            has_text = pc.not_equal(pc.utf8_trim_whitespace(texts), "")
            keep &= has_text.fill_null(False).to_numpy(zero_copy_only=False)
        found.append(start + np.flatnonzero(keep))
        start += len(keep)
    return np.concatenate(found)


def missing_rows(dataset: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Return the indices of rows that have null in one of the columns of texts."""
    found, start = [np.empty(0, dtype=np.int64)], 0
    if any(dataset.data.column(column).null_count for column in columns):  # known without reading the texts
        for arrays in chunks(dataset, columns):
            missing = np.any([texts.is_null().to_numpy(zero_copy_only=False) for texts in arrays], axis=0)
            found.append(start + np.flatnonzero(missing))
            start += len(missing)
    return np.concatenate(found)


def text_hashes(dataset: Dataset, column: str) -> np.ndarray:
    """Return (rows,) 64-bit hashes of the texts in UTF-8; a missing text (null) hashes as the word None."""
    missing, hashes = xxhash.xxh64_intdigest(b"None"), [np.empty(0, dtype=np.uint64)]
    for (texts,) in chunks(dataset, [column]):
        _, offsets, data = texts.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
        view = memoryview(data or b"")
        digests = (xxhash.xxh64_intdigest(view[a:b]) for a, b in pairwise(ends))
        chunk_hashes = np.fromiter(digests, dtype=np.uint64, count=len(texts))
        chunk_hashes[texts.is_null().to_numpy(zero_copy_only=False)] = missing
        hashes.append(chunk_hashes)
    return np.concatenate(hashes)
