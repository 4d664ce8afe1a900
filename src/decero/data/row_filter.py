"""Keep the rows of a data set that have given values, such as those of one language."""

from typing import Any

from datasets import Dataset, DatasetDict

from decero.data.column_names import missing_column
from decero.errors import UserError

Where = dict[str, str | int | list[str | int]]  # column -> the value, or values, to keep
SHOWN = 10  # values that a message names


def rows_where(corpus: DatasetDict, where: Where) -> DatasetDict:
    """Keep the rows whose columns have the wanted values. Values are compared as text; a ClassLabel has its name.

    Raises UserError for a column that is not there, and for a split without such a row; it names the values.
    """
    return DatasetDict({split: _rows_of(dataset, where, split) for split, dataset in corpus.items()})


def _rows_of(dataset: Dataset, where: Where, split: str) -> Dataset:
    for column, wanted in where.items():
        if column not in dataset.column_names:
            raise missing_column(column, dataset.column_names, split, "data.where")
        values = _as_text(dataset, column)
        named = {str(value) for value in (wanted if isinstance(wanted, list) else [wanted])}
        kept = [row for row, value in enumerate(values) if value in named]
        if not kept:
            there = ", ".join(sorted(set(values))[:SHOWN])
            raise UserError(
                f"data.where: no row of {split} has {column} {' or '.join(sorted(named))}; choose from {there}"
            )
        dataset = dataset.select(kept)
    return dataset


def _as_text(dataset: Dataset, column: str) -> list[str]:
    feature: Any = dataset.features[column]
    values = dataset.with_format(None)[column][:]
    named = getattr(feature, "int2str", None)
    return [str(named(value) if named and value is not None and value >= 0 else value) for value in values]
