"""Classify the rows of a table, write them with their predictions, and score them where they have labels."""

import argparse
import base64
import csv
import json
import sys
from collections.abc import Callable, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from decero.cli.answer_lines import TO_LINE
from decero.data.corpus import check_text
from decero.data.file_bytes import extension
from decero.data.label_values import check_number, is_missing
from decero.data.labels import encode_labels, plain
from decero.data.text_files import read_files
from decero.errors import UserError, did_you_mean
from decero.evaluation.metrics import compute_metrics
from decero.evaluation.per_class import per_class, text_table
from decero.inference.loading import Loaded
from decero.inference.text_classification import classify, names_of, threshold_of
from decero.training.records import finite

TABLES = ("csv", "tsv", "jsonl", "json", "ndjson", "parquet")
WRITERS = (".csv", ".tsv", ".jsonl", ".parquet")


def is_table(text: str) -> bool:
    """Tell whether the argument names an existing table. Its lines are no texts: the first may be a header."""
    return extension(Path(text))[0] in TABLES and Path(text).exists()


def classify_table(loaded: Loaded, arguments: argparse.Namespace) -> None:
    """Answer each row of `arguments.text`. Print answers, or write them to `arguments.out` with all columns.

    Raises UserError: a column that has the name of one that is added; no column named, or one that is not there; an
    ending of --out that is no table; a label that the model does not have.
    """
    out = arguments.out
    if not Path(arguments.text).exists() and not set("*?[") & set(arguments.text):
        need = "--column, --pair-column, --label-column and --out need a table"
        raise UserError(f"{arguments.text}: there is no such file; {need}")
    if out is not None and out.suffix not in WRITERS:
        raise UserError(f"--out {out}: give a name that ends in {', '.join(WRITERS)}")
    if out is not None and out.exists() and Path(arguments.text).exists() and out.samefile(arguments.text):
        raise UserError(f"--out {out}: this is the table that is read; give another name")
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {out}: {error.strerror}: {error.filename}; give another name") from error
    wanted = {c: f"--{n}" for n in ("column", "pair-column", "label-column") if (c := _option(arguments, n))}
    if "--column" not in wanted.values():
        columns = read_files("train", arguments.text, "line").column_names
        near = did_you_mean("text", columns) if "text" not in columns else "; for example --column text"
        raise UserError(f"{arguments.text} is a table: name its column of texts with --column NAME{near}; "
                        f"columns: {', '.join(columns)}")  # fmt: skip
    rows = read_files("train", arguments.text, "line", wanted)
    for column in filter(None, (arguments.column, arguments.pair_column)):
        check_text(rows, column, arguments.text, wanted[column])
    if out is not None and (taken := sorted(set(_added(loaded)) & set(rows.column_names))):
        raise UserError(f"{arguments.text}: its column {taken[0]!r} has the name of one that --out adds; rename it")
    texts = [text or "" for text in rows[arguments.column]]
    pairs = (
        list(zip(texts, (t or "" for t in rows[arguments.pair_column]), strict=True)) if arguments.pair_column else None
    )
    references = _references(loaded, rows, arguments.label_column) if arguments.label_column else None
    bar = tqdm(total=len(rows), unit="row", file=sys.stderr, dynamic_ncols=True, disable=not sys.stderr.isatty())
    answers = []
    with bar:
        options: dict[str, Any] = {"batch_tokens": arguments.batch_tokens, "too_long": arguments.too_long}
        options["warn"] = lambda line: bar.write(f"warning: {line}", file=sys.stderr)
        for answer in classify(loaded, pairs or texts, **options):
            answers.append(answer)
            bar.update()
    if out is not None:
        order = read_files("train", arguments.text, "line").column_names
        _write(_table(loaded, rows.select_columns(sorted(rows.column_names, key=_place_in(order))), answers), out)
        print(f"{out}: {len(rows):,} rows", file=sys.stderr)
    elif references is None:
        write = TO_LINE["classify"][arguments.jsonl]
        for text, answer in zip(pairs or texts, answers, strict=True):
            print(write(text, answer))
    if references is not None:
        read = np.array([bool(answer) for answer in answers])
        if not read.all():
            print(f"warning: {(~read).sum():,} rows have no text, so they are not scored", file=sys.stderr)
        if read.any():
            _report(loaded, [answer for answer in answers if answer], references[read], arguments.jsonl)


def _place_in(order: Sequence[str]) -> Callable[[str], int]:
    return lambda name: order.index(name) if name in order else len(order)


def _option(arguments: argparse.Namespace, name: str) -> str | None:
    return getattr(arguments, name.replace("-", "_"))


def _problem(loaded: Loaded) -> str:
    config: Any = loaded.model.config
    return config.problem_type or ("single_label_classification" if config.num_labels > 1 else "regression")


def _names(loaded: Loaded) -> list[str]:
    config: Any = loaded.model.config
    return names_of(config, config.num_labels)


def _references(loaded: Loaded, rows: Dataset, column: str) -> np.ndarray:
    """Return the labels of the table as the model numbers them."""
    names, problem = _names(loaded), _problem(loaded)
    values = rows.with_format(None)[column][:]
    if problem == "regression":
        return np.array([check_number(value, f"row {row}", column) for row, value in enumerate(values)])
    if problem == "multi_label_classification":
        encoded, found = encode_labels(DatasetDict(train=rows), column, problem, known=names)
        if unknown := sorted(set(found) - set(names)):
            raise UserError(f"column {column!r}: label {unknown[0]!r} is not one of the model's: {', '.join(names)}")
        return np.asarray(encoded["train"]["labels"])
    feature = rows.features[column]
    written = [feature.int2str(v) if hasattr(feature, "int2str") and v is not None else v for v in values]
    ids = {plain(name): i for i, name in enumerate(names)}
    for row, value in enumerate(written):
        if is_missing(value) or plain(str(value)) not in ids:
            what = "no label" if is_missing(value) else f"label {value!r} is not one of the model's"
            near = did_you_mean(str(value), names) or f": {', '.join(names)}"
            raise UserError(f"row {row}: {what}{near}  (column {column!r})")
    return np.array([ids[plain(str(value))] for value in written])


def _added(loaded: Loaded) -> list[str]:
    """Return the names of the columns that --out adds."""
    if _problem(loaded) == "regression":
        return ["prediction"]
    probability = [] if _problem(loaded) == "multi_label_classification" else ["probability"]
    return ["prediction", *probability, *(f"probability of {name}" for name in _names(loaded))]


def _table(loaded: Loaded, rows: Dataset, answers: list[dict[str, float]]) -> pa.Table:
    """Return all columns of the rows as they are, then `prediction`, `probability` and the value of each label."""
    names, problem = _names(loaded), _problem(loaded)
    found: dict[str, list] = {}
    if problem == "regression":
        found["prediction"] = [next(iter(answer.values()), None) for answer in answers]
    elif problem == "multi_label_classification":
        least = threshold_of(loaded.model.config)
        found["prediction"] = [[n for n in names if answer.get(n, 0) > least] for answer in answers]
    else:
        found["prediction"] = [next(iter(answer), None) for answer in answers]
        found["probability"] = [next(iter(answer.values()), None) for answer in answers]
    if problem != "regression":
        found |= {f"probability of {name}": [answer.get(name) for answer in answers] for name in names}
    table: pa.Table = rows.with_format("arrow")[:]
    for name, values in found.items():
        table = table.append_column(name, pa.array(values))
    return table.replace_schema_metadata(None)


def _write(table: pa.Table, out: Path) -> None:
    """Write a table. Values stay as they are. Lists and objects are JSON in csv and tsv; NaN is null in JSON."""
    partial = out.with_name(f".{out.name}.partial")
    if out.suffix == ".parquet":
        pq.write_table(table, partial)
    else:
        with partial.open("w", encoding="utf-8", newline="") as file:
            rows = (row for batch in table.to_batches() for row in batch.to_pylist())
            if out.suffix == ".jsonl":
                file.writelines(f"{_json(row)}\n" for row in rows)
            else:
                fields = [table.column_names, *([_field(value) for value in row.values()] for row in rows)]
                tabs = out.suffix == ".tsv"
                # In a tsv file a quoted field may hold a tab or a line end only where all names are quoted, too.
                splits = tabs and any(isinstance(f, str) and set("\t\r\n") & set(f) for row in fields for f in row)
                quoting: Any = csv.QUOTE_ALL if splits else csv.QUOTE_MINIMAL
                writer = csv.writer(file, delimiter="\t" if tabs else ",", lineterminator="\n", quoting=quoting)
                writer.writerows(fields)
    partial.replace(out)


def _field(value: Any) -> Any:
    if isinstance(value, list | dict):
        return _json(value)
    return _spelt(value) if isinstance(value, date | time) else value


def _json(value: Any) -> str:
    return json.dumps(finite(value), ensure_ascii=False, default=_spelt)


def _spelt(value: Any) -> str:
    """Spell a date as in ISO 8601, and bytes in base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _report(loaded: Loaded, answers: list[dict[str, float]], references: np.ndarray, as_json: bool) -> None:
    """Print the metrics of the rows, and precision and recall of each label."""
    names, problem = _names(loaded), _problem(loaded)
    values = np.array([[answer.get(name, 0.0) for name in names] for answer in answers])
    if problem == "regression":
        predictions = values[:, 0]
    else:
        first = np.array([names.index(next(iter(answer), names[0])) for answer in answers])
        least = threshold_of(loaded.model.config)
        predictions = first if problem == "single_label_classification" else (values > least).astype(int)
    metric, details = (
        compute_metrics(problem, predictions, references),
        per_class(problem, predictions, references, names),
    )
    if as_json:
        print(json.dumps({"metric": metric, "examples": len(references)} | details, ensure_ascii=False))
        return
    print(", ".join(f"{name} {value:.4f}" for name, value in metric.items()), f"on {len(references):,} rows")
    if details:
        print(text_table(details))
