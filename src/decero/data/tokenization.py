"""Tokenize text to rows, once: in parallel processes, memory-mapped, cached by fingerprint."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
import xxhash
from datasets import Dataset, Features, Sequence, Value
from transformers import PreTrainedTokenizerBase

from decero.data.cached_map import cached_map
from decero.data.corpus import check_text, refuse_missing
from decero.data.languages import end_token
from decero.data.special_tokens import TEXT, encode_behind, special_tokens_around
from decero.data.stream import Stream, Texts
from decero.data.words import splits_at_whitespace, word_starts, word_starts_by_id
from decero.errors import UserError

SETTINGS = (  # of a tokenizer, besides those in its backend
    "truncation_side", "padding_side", "model_max_length", "model_input_names", "special_tokens_map",
    "split_special_tokens", "chat_template",
)  # fmt: skip


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
    """Cut each document into rows of at most `max_length` tokens, with or without special tokens.

    Returns the columns `input_ids` (list of int32) and `starts_word` (list of bool: does a word begin at this token?).
    A row never holds text of two documents. Rows with fewer than two ordinary tokens are dropped, because nothing can
    be learnt from them. For `Texts`, returns a `Stream` of the same rows.
    where: the name of the data in error messages.

    Raises UserError when no text is left.
    """
    around = special_tokens_around(tokenizer) if special_tokens else ([], [])
    before, after = (np.array(ids, dtype=np.int32) for ids in around)
    room = max_length - len(before) - len(after)
    by_id, by_pre_token = word_starts_by_id(tokenizer), splits_at_whitespace(tokenizer)
    backend = tokenizer.backend_tokenizer  # saves the time that transformers adds around it, a tenth and more

    def cut(documents):
        texts = [str(t) for t in documents if t and not t.isspace()]
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # "<s>" in a page of HTML is text
        columns: dict[str, list[np.ndarray]] = {"input_ids": [], "starts_word": []}
        if not texts:
            return columns
        encode = backend.encode_batch if by_id is None else backend.encode_batch_fast
        encoded = encode(texts, add_special_tokens=False)
        every = [np.fromiter(whole.ids, dtype=np.int32, count=len(whole)) for whole in encoded]
        of_each = word_starts(encoded, texts, by_pre_token) if by_id is None else [by_id[ids] for ids in every]
        for ids, starts in zip(every, of_each, strict=True):
            for begin in range(0, len(ids) - 1, room):
                starts[begin] = True
                part = slice(begin, begin + room)
                columns["input_ids"].append(np.concatenate([before, ids[part], after]))
                columns["starts_word"].append(np.concatenate([before >= 0, starts[part], after >= 0]))  # special: True
        return columns

    def cut_table(table: pa.Table) -> pa.Table:
        columns = cut(table[text_column].to_pylist())
        return pa.table({name: _lists(columns[name], feature.feature()) for name, feature in features.items()})

    if isinstance(dataset, Texts):
        return Stream(dataset, keeping_tokenizer_settings(tokenizer, cut), max_length)
    features = Features({"input_ids": Sequence(Value("int32")), "starts_word": Sequence(Value("bool"))})
    key = ("documents", max_length, text_column, special_tokens)
    tables = dataset.with_format("arrow")
    rows = map_rows(tables, cut_table, features, tokenizer, key, num_proc, f"tokenize {where}").with_format(None)
    if len(rows) == 0:
        raise UserError(f"{where}: no text is left after tokenization; is column {text_column!r} the text?")
    return rows


def _lists(values: list[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    """Join arrays to one Arrow column of lists, with a single copy of the values."""
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
    """Tokenize each example to one row: the tokenizer's model inputs, `labels` and `truncated`.

    truncated: whether text was cut at `max_length`. where: the name of the data in error messages.
    With `text_pair_column` the tokenizer joins the two texts to a pair. An empty text gives a row of special tokens
    only. A special token that is spelt out in a text is text. Raises UserError for a missing text (null).
    """
    columns = [text_column] + ([text_pair_column] if text_pair_column else [])
    for column in columns:
        check_text(dataset, column, where, "data.text_column" if column == text_column else "data.text_pair_column")
    refuse_missing(dataset, columns, where)
    names = [n for n in tokenizer.model_input_names if n != "attention_mask"]
    # A model needs a token to read, and GPT-2's tokenizer adds none to an empty text.
    empty = {n: [tokenizer.pad_token_id if n == "input_ids" else 0] for n in names}

    def tokenize(batch):
        texts = [batch[c] for c in columns]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, **TEXT)
        full = [len(ids) == max_length for ids in encoded["input_ids"]]
        cut = [  # only a row of full length can have been cut, so only that is tokenized again
            is_full and len(tokenizer(*([text] for text in pair), **TEXT)["input_ids"][0]) > max_length
            for is_full, *pair in zip(full, *texts, strict=True)
        ]
        rows = {n: [ids or empty[n] for ids in encoded[n]] for n in names}
        return rows | {"labels": batch["labels"], "truncated": cut}

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
    """Tokenize each pair to one row: `input_ids` of prefix + source, `labels` of the target, `truncated`.

    truncated: whether either side was cut. where: the name of the data in error messages.
    Both sides get the tokenizer's special tokens and languages, so a target has an end token. Raises UserError for a
    missing side (null), and for a tokenizer that adds no end token: the model would never learn to stop.
    """
    for column, setting in ((source_column, "source_column"), (target_column, "target_column")):
        check_text(dataset, column, where, setting)
    refuse_missing(dataset, (source_column, target_column), where)
    if end_token(tokenizer) is None:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: it adds no end token, so a model would not learn to stop; "
            "train one with tokenizer.num_sentinels=100"
        )

    def tokenize(batch):
        sides = batch[source_column], batch[target_column]
        ids = encode_behind(tokenizer, prefix, sides[0], max_source_length)
        labels = tokenizer(text_target=sides[1], truncation=True, max_length=max_target_length, **TEXT)["input_ids"]
        # Only a side of full length can have been cut, so only that is tokenized again.
        cut = [
            (len(i) == max_source_length and len(encode_behind(tokenizer, prefix, [source])[0]) > len(i))
            or (len(t) == max_target_length and len(tokenizer(text_target=target, **TEXT)["input_ids"]) > len(t))
            for i, t, source, target in zip(ids, labels, *sides, strict=True)
        ]
        return {"input_ids": ids, "labels": labels, "truncated": cut}

    int_list = Sequence(Value("int32"))
    features = Features({"input_ids": int_list, "labels": int_list, "truncated": Value("bool")})
    languages = (getattr(tokenizer, "src_lang", None), getattr(tokenizer, "tgt_lang", None))
    key = ("pairs", max_source_length, max_target_length, source_column, target_column, prefix, languages)
    return map_rows(dataset, tokenize, features, tokenizer, key, num_proc, f"tokenize {where}")


def map_rows(dataset: Dataset, function, features, tokenizer, key: tuple, num_proc: int | None, desc: str) -> Dataset:
    """Run `cached_map` with a key of the tokenizer, the settings and the tokenizers version.

    By default `datasets` hashes the tokenizer object, which changes with use.
    """
    state = _state(tokenizer)
    parts = (*_settings(tokenizer), *key, tokenizers.__version__)
    rows = cached_map(dataset, function, features, parts, num_proc, desc)
    _restore(tokenizer, *state)
    return rows


def _settings(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Return everything that can change what the tokenizer gives: the backend, what was loaded, what was set since."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else _files(tokenizer)
    loaded = sorted((name, str(value)) for name, value in tokenizer.init_kwargs.items())
    return [
        type(tokenizer).__name__,
        tokenizer.name_or_path,
        backend,
        loaded,
        *(getattr(tokenizer, s) for s in SETTINGS),
    ]


def _files(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return hashes of the files that a slow tokenizer saves: its vocabulary and its models."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return str(
            [(path.name, xxhash.xxh64(path.read_bytes()).hexdigest()) for path in sorted(Path(folder).iterdir())]
        )


def keeping_tokenizer_settings(
    tokenizer: PreTrainedTokenizerBase, cut: Callable[[list], dict]
) -> Callable[[list], dict]:
    """Wrap `cut` so that each call restores the tokenizer's truncation and padding."""

    def restoring_cut(texts: list) -> dict:
        state = _state(tokenizer)
        columns = cut(texts)
        _restore(tokenizer, *state)
        return columns

    return restoring_cut


def _state(tokenizer) -> tuple[Any, Any]:
    """Return truncation and padding of a fast tokenizer; a slow one remembers neither."""
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    return (backend.truncation, backend.padding) if backend else (None, None)


def _restore(tokenizer, truncation, padding) -> None:
    """Reset truncation and padding: a call leaves truncation on, and a saved tokenizer would then cut text."""
    if not tokenizer.is_fast:
        return
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
    backend.enable_padding(**padding) if padding else backend.no_padding()


def side_lengths(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of input tokens and of target tokens of each row, (rows,) each; 0 if there is no target.

    Reads the Arrow offsets, not the values.
    """
    labels = getattr(rows.features.get("labels"), "feature", None)
    has_target = labels is not None and labels.dtype == "int32"  # the label vectors of a classifier are floats
    sides = ["input_ids", "labels"] if has_target else ["input_ids"]
    table = rows.select_columns(sides).with_format("arrow")[:]
    empty = np.empty(0, dtype=np.int64)
    lengths = [np.concatenate([empty, *(c.value_lengths().to_numpy() for c in table[side].chunks)]) for side in sides]
    return lengths[0], lengths[1] if has_target else np.zeros_like(lengths[0])


def token_lengths(rows: Dataset) -> np.ndarray:
    """Return the number of tokens of each row, targets included, (rows,)."""
    inputs, targets = side_lengths(rows)
    return inputs + targets


def count_tokens(rows: Dataset) -> int:
    """Return the number of tokens in all rows, targets included."""
    return int(token_lengths(rows).sum())
