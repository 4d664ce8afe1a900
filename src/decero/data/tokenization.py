"""Text to token rows: once, in parallel processes, memory-mapped, cached by fingerprint."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import tokenizers
import xxhash
from datasets import Dataset, Features, Sequence, Value
from transformers import PreTrainedTokenizerBase

from decero.data.corpus import check_text
from decero.data.stream import Stream, Texts
from decero.data.tokenizer import around
from decero.data.words import splits_at_whitespace, word_starts
from decero.errors import UserError


def tokenize_documents(
    dataset: Dataset | Texts,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    text_column: str = "text",
    special_tokens: bool = True,
    num_proc: int | None = None,
    where: str = "data",
) -> Any:
    """Cut each document into rows of at most `max_length` tokens, each with its special tokens or all without.

    Returns the columns `input_ids` (list of int32) and `starts_word` (list of bool: does a word begin here?). No row
    holds text of two documents; rows of fewer than two ordinary tokens have nothing to learn from and are dropped.
    Of `Texts`, a `Stream` of the same rows.

    Raises UserError when no text is left.
    """
    before, behind = (np.array(ids, dtype=np.int32) for ids in (around(tokenizer) if special_tokens else ([], [])))
    room = max_length - len(before) - len(behind)
    by_pre_token = splits_at_whitespace(tokenizer)
    backend = tokenizer.backend_tokenizer  # what transformers puts around it takes a tenth of the time and more

    def cut(documents):
        texts = [str(t) for t in documents if t and not t.isspace()]
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # "<s>" in a page of HTML is text
        encoded = backend.encode_batch(texts, add_special_tokens=False)
        columns: dict[str, list[np.ndarray]] = {"input_ids": [], "starts_word": []}
        if not texts:
            return columns
        for whole, starts in zip(encoded, word_starts(encoded, texts, by_pre_token), strict=True):
            ids = np.fromiter(whole.ids, dtype=np.int32, count=len(whole))
            for begin in range(0, len(ids) - 1, room):
                starts[begin] = True
                part = slice(begin, begin + room)
                columns["input_ids"].append(np.concatenate([before, ids[part], behind]))
                columns["starts_word"].append(np.concatenate([before >= 0, starts[part], behind >= 0]))  # special: True
        return columns

    def cut_table(table: pa.Table) -> pa.Table:
        columns = cut(table[text_column].to_pylist())
        return pa.table({name: _lists(columns[name], feature.feature()) for name, feature in features.items()})

    if isinstance(dataset, Texts):
        return Stream(dataset, leaving_no_trace(tokenizer, cut), max_length)
    features = Features({"input_ids": Sequence(Value("int32")), "starts_word": Sequence(Value("bool"))})
    key = ("documents", max_length, text_column, special_tokens)
    tables = dataset.with_format("arrow")
    rows = map_rows(tables, cut_table, features, tokenizer, key, num_proc, f"tokenize {where}").with_format(None)
    if len(rows) == 0:
        raise UserError(f"{where}: no text is left after tokenization; is column {text_column!r} the text?")
    return rows


def _lists(values: list[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    """Arrays as one column of lists, their numbers copied in one go."""
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, pa.array(np.concatenate(values) if values else [], type=kind))


def tokenize_examples(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    text_column: str = "text",
    text_pair_column: str | None = None,
    num_proc: int | None = None,
    where: str = "data",
) -> Dataset:
    """One row an example: the tokenizer's model inputs, `labels` and `truncated` (was text cut at `max_length`?).

    With `text_pair_column` the two texts are joined as the tokenizer joins a pair. An example without text stays an
    example (its special tokens); a missing one (null) raises UserError.
    """
    columns = [text_column] + ([text_pair_column] if text_pair_column else [])
    for column in columns:
        check_text(dataset, column, where, "data.text_column" if column == text_column else "data.text_pair_column")
    names = [n for n in tokenizer.model_input_names if n != "attention_mask"]

    def tokenize(batch):
        texts = [batch[c] for c in columns]
        if any(t is None for column in texts for t in column):
            raise UserError(f"{where}: a row has no text (null) in {' or '.join(map(repr, columns))}; fill or drop it")
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        full = [len(ids) == max_length for ids in encoded["input_ids"]]
        cut = [  # only what fills its room can have been cut, so only that is tokenized again
            whole and len(tokenizer(*pair, verbose=False)["input_ids"]) > max_length
            for whole, *pair in zip(full, *texts, strict=True)
        ]
        return {n: encoded[n] for n in names} | {"labels": batch["labels"], "truncated": cut}

    features = Features({n: Sequence(Value("int32")) for n in names})
    features |= {"labels": dataset.features["labels"], "truncated": Value("bool")}
    key = ("examples", max_length, *columns)
    return map_rows(dataset, tokenize, Features(features), tokenizer, key, num_proc, f"tokenize {where}")


def tokenize_pairs(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_source_length: int,
    max_target_length: int,
    source_column: str = "source",
    target_column: str = "target",
    prefix: str = "",
    num_proc: int | None = None,
    where: str = "data",
) -> Dataset:
    """One row a pair: `input_ids` of prefix + source, `labels` of the target, `truncated` (was either side cut?).

    Both sides carry the tokenizer's special tokens, so a target ends as its text does. Raises UserError for a missing
    side (null) and for a tokenizer that does not end a text, which would never learn to stop.
    """
    for column, setting in ((source_column, "source_column"), (target_column, "target_column")):
        check_text(dataset, column, where, setting)
    if tokenizer("a")["input_ids"][-1] not in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: it puts no end after a text, so that no model learns to stop; "
            "train one with tokenizer.num_sentinels=100"
        )

    def tokenize(batch):
        sides = batch[source_column], batch[target_column]
        if any(text is None for side in sides for text in side):
            raise UserError(
                f"{where}: a row has no text (null) in {source_column!r} or {target_column!r}; fill or drop it"
            )
        sources = [prefix + text for text in sides[0]]
        read = tokenizer(sources, truncation=True, max_length=max_source_length)["input_ids"]
        written = tokenizer(text_target=sides[1], truncation=True, max_length=max_target_length)["input_ids"]
        full = zip(read, written, strict=True)
        # Only what fills its room can have been cut, so only that is tokenized again.
        cut = [
            (len(r) == max_source_length and len(tokenizer(source, verbose=False)["input_ids"]) > len(r))
            or (len(w) == max_target_length and len(tokenizer(text_target=target, verbose=False)["input_ids"]) > len(w))
            for (r, w), source, target in zip(full, sources, sides[1], strict=True)
        ]
        return {"input_ids": read, "labels": written, "truncated": cut}

    ids = Sequence(Value("int32"))
    features = Features({"input_ids": ids, "labels": ids, "truncated": Value("bool")})
    key = ("pairs", max_source_length, max_target_length, source_column, target_column, prefix)
    return map_rows(dataset, tokenize, features, tokenizer, key, num_proc, f"tokenize {where}")


def map_rows(dataset: Dataset, function, features, tokenizer, key: tuple, num_proc: int | None, desc: str) -> Dataset:
    """`Dataset.map` whose cache is found by what matters: the rows, the tokenizer, the settings and the library.

    Left to itself `datasets` hashes the tokenizer object, which changes when it is used; and it caches nothing for a
    data set that was born in memory.
    """
    digest = xxhash.xxh64()
    for part in (
        dataset._fingerprint,
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.name_or_path,
        *key,
        tokenizers.__version__,
    ):
        digest.update(str(part).encode() + b"\0")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "decero"
    folder.mkdir(parents=True, exist_ok=True)
    # A process costs about a second to start: not worth it for a small corpus.
    processes = num_proc or (min(os.cpu_count() or 1, 16) if len(dataset) >= 20_000 else 1)
    state = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
    rows = dataset.map(
        function,
        batched=True,
        batch_size=256,
        remove_columns=dataset.column_names,
        features=features,
        num_proc=processes if processes > 1 else None,
        new_fingerprint=digest.hexdigest(),
        cache_file_name=str(folder / f"{digest.hexdigest()}.arrow"),
        desc=desc,
    )
    _restore(tokenizer, *state)
    return rows


def leaving_no_trace(tokenizer: PreTrainedTokenizerBase, cut: Callable[[list], dict]) -> Callable[[list], dict]:
    """`cut`, after which the tokenizer is set as it was before."""

    def careful(texts: list) -> dict:
        state = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
        columns = cut(texts)
        _restore(tokenizer, *state)
        return columns

    return careful


def _restore(tokenizer, truncation, padding) -> None:
    """Calling a fast tokenizer leaves its truncation set; saved like that it would cut other people's text."""
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
    backend.enable_padding(**padding) if padding else backend.no_padding()


def side_lengths(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each row and of what is to be written beside it, (rows,) each; 0 where nothing is.

    Read from the Arrow offsets without touching the values.
    """
    labels = getattr(rows.features.get("labels"), "feature", None)
    written = labels is not None and labels.dtype == "int32"  # several labels of a classifier are floats
    sides = ["input_ids", "labels"] if written else ["input_ids"]
    table = rows.select_columns(sides).with_format("arrow")[:]
    none = np.empty(0, dtype=np.int64)
    lengths = [np.concatenate([none, *(c.value_lengths().to_numpy() for c in table[side].chunks)]) for side in sides]
    return lengths[0], lengths[1] if written else np.zeros_like(lengths[0])


def token_lengths(rows: Dataset) -> np.ndarray:
    """Tokens of each row, those to be written included."""
    read, written = side_lengths(rows)
    return read + written


def count_tokens(rows: Dataset) -> int:
    """Tokens in all rows."""
    return int(token_lengths(rows).sum())
