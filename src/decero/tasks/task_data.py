"""What a task hands on: its texts or pictures, its rows, its scores."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from datasets import Dataset, concatenate_datasets

from decero.data.stream import Stream
from decero.errors import UserError


class Corpus(NamedTuple):
    """The texts of a run.

    splits: split -> part -> rows. A part is a data set of its own, such as one translation task of several; a corpus of
    one part names it "". columns: those that hold text. label_names: of a classifier. notes: lines about guesses.
    unlabelled: texts that only a teacher labels, as rows of train.
    """

    splits: dict[str, dict[str, Any]]
    columns: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unlabelled: Dataset | None = None


@dataclass
class TaskData:
    """The tokenized rows of a run. held_out: split -> part -> rows, of all splits but train."""

    train: Dataset | Stream
    held_out: dict[str, dict[str, Dataset]] = field(default_factory=dict)

    @cached_property
    def validation(self) -> Dataset | None:
        """All validation rows, or None."""
        parts = list(self.held_out.get("validation", {}).values())
        return concatenate_datasets(parts) if len(parts) > 1 else parts[0] if parts else None

    @property
    def scored_split(self) -> str:
        """The split of the final scores: test, or validation where there is no test. Raises UserError for neither."""
        for split in ("test", "validation"):
            if split in self.held_out:
                return split
        raise UserError(
            "there is neither a test nor a validation split to score on; give data.test_fraction (for pairs of texts: "
            "test_fraction of a task)"
        )


def cut_note(what: str, kept: int, total: int, setting: str) -> list[str]:
    """Return a line about rows that a setting leaves out; nothing where it leaves out none."""
    return [f"{what}: {kept:,} of {total:,} rows ({setting})"] if kept < total else []


class Scores(NamedTuple):
    """The scores of a trained model. metric: name -> value, the main one first. record: more facts for result.json."""

    metric: dict[str, float]
    record: dict[str, Any]
