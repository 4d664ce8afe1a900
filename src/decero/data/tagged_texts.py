"""Read texts whose words have tags, or that have entities, into one form: characters are the record of truth."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from decero.data.corpus import ROW, check_column, source_rows
from decero.data.label_values import Say, list_in
from decero.data.labels import plain
from decero.data.tag_schemes import OUTSIDE, find_scheme, fits, learnt_scheme, read_spans, write_tags
from decero.data.word_rows import Bounds, split_words
from decero.errors import UserError, did_you_mean

T = TypeVar("T")
LEARNT = ("BIO", "BIOES")
FEATURES = Features(
    {
        "text": Value("string"), "starts": List(Value("int32")), "stops": List(Value("int32")),
        "tags": List(Value("string")), "example": Value("int32"),
        "entities": List({"start": Value("int32"), "end": Value("int32"), "label": Value("string")}),
    }
)  # fmt: skip


@dataclass
class TaggedTexts:
    """Texts with their words and entities.

    corpus: splits with the columns `text`; `starts` and `stops`, the characters of each word; `tags`, one a word;
    `entities`, [{start, end, label}] in characters; `example`, the number of the row.
    scheme: of the tags: BIO, BIOES or none. labels: of train (without it, of all splits), sorted: of entities, or the
    tags themselves.
    """

    corpus: DatasetDict
    scheme: str
    labels: list[str]


@dataclass
class _Split:
    name: str
    columns: dict[str, list] = field(default_factory=lambda: {name: [] for name in FEATURES})

    def add(self, text: str, words: Bounds, tags: list[str], entities: list[dict[str, Any]]) -> None:
        row: dict[str, Any] = {
            "text": text,
            "starts": [start for start, _ in words],
            "stops": [stop for _, stop in words],
        }
        row |= {"tags": tags, "entities": entities, "example": len(self.columns["text"])}
        for name, value in row.items():
            self.columns[name].append(value)

    def dataset(self) -> Dataset:
        return Dataset.from_dict(self.columns, features=FEATURES)


def read_tags(
    corpus: DatasetDict, tokens_column: str, tags_column: str, scheme: str, say: Say, usual: str | None = None
) -> TaggedTexts:
    """Read words with a tag each. The text is the words with a space between.

    say: called with a line about how the tags are read. usual: the scheme where no tag tells, because all are `O`.

    Raises UserError: a missing column; a row without words or tags, or with another number of tags than words; a tag
    that the scheme does not have.
    """
    read = {split: _words_and_tags(dataset, tokens_column, tags_column, split) for split, dataset in corpus.items()}
    if scheme == "auto":
        empty = all(tag == OUTSIDE for rows in to_learn(read) for _, tags in rows for tag in tags)
        scheme = usual if empty and usual else find_scheme(tags for rows in to_learn(read) for _, tags in rows)
    splits, outside = [], 0
    for split, rows in read.items():
        splits.append(_Split(split))
        for number, (words, tags) in zip(source_rows(corpus[split]), rows, strict=True):
            if wrong := next((tag for tag in tags if not fits(tag, scheme)), None):
                raise UserError(
                    f"{split}, row {number}: {wrong!r} is not a tag of {scheme}, which has {OUTSIDE} and tags such as "
                    f"{'B-X or E-X' if scheme == 'BIOES' else 'B-X or I-X'}; set data.scheme=none to read each tag as "
                    f"a class  (column {tags_column!r})"
                )
            ends = np.cumsum([len(word) + 1 for word in words]) - 1
            bounds = [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]
            spans = [] if scheme == "none" else read_spans(tags, scheme)
            entities = [{"start": bounds[a][0], "end": bounds[b - 1][1], "label": label} for a, b, label in spans]
            learnt = tags if scheme == "none" else write_tags(spans, len(words), learnt_scheme(scheme))
            outside += sum(new == OUTSIDE != old for new, old in zip(learnt, tags, strict=True))
            splits[-1].add(" ".join(words), bounds, learnt, entities)
    names = sorted({tag for rows in to_learn(read) for _, tags in rows for tag in tags})
    if scheme == "none":
        say(f"{tags_column!r}: each of the {len(names)} tags is a class of its own: {', '.join(names[:20])}")
    else:
        as_bio = ", learnt as BIO" if scheme == "IOB1" else ""
        say(f"{tags_column!r} holds {scheme} tags{as_bio}; {_strictly(outside, scheme)}")
    return _whole(splits, learnt_scheme(scheme), corpus)


def read_entities(corpus: DatasetDict, text_column: str, entities_column: str, scheme: str, say: Say) -> TaggedTexts:
    """Read texts with entities. Their words are those of `split_words`; spaces at an entity's edge are not part of it.

    scheme: of the tags that a model learns.

    Raises UserError: a missing column; a row without text or entities; an entity that is not in its text, that is
    empty, or that overlaps another.
    """
    splits, inside, in_bytes, in_letters = [], 0, 0, 0
    for split, dataset in corpus.items():
        splits.append(_Split(split))
        read = _texts_and_entities(dataset, text_column, entities_column, split)
        for number, (text, found) in zip(source_rows(dataset), read, strict=True):
            where = f"{split}, row {number}"
            entities = sorted((_entity(text, each, where) for each in found), key=lambda each: each["start"])
            words = split_words(text)
            starts, stops = {start for start, _ in words}, {stop for _, stop in words}
            spans, taken = [], 0  # taken: words before this one have a tag
            for each, before in zip(entities, [None, *entities], strict=False):
                if before and each["start"] < before["end"]:
                    raise UserError(
                        f"{where}: the entities {text[before['start'] : before['end']]!r} and "
                        f"{text[each['start'] : each['end']]!r} overlap; keep one  (column {entities_column!r})"
                    )
                aligned = each["start"] in starts and each["end"] in stops
                inside += not aligned
                if not text[: each["end"]].isascii():
                    in_letters += aligned
                    in_bytes += not aligned and _fits_in_bytes(text, each, starts, stops)
                covered = [w for w, (a, b) in enumerate(words) if a < each["end"] and b > each["start"] and w >= taken]
                if covered:
                    spans.append((covered[0], covered[-1] + 1, each["label"]))
                    taken = covered[-1] + 1
            splits[-1].add(text, words, write_tags(spans, len(words), scheme), entities)
    if in_bytes > max(1, 2 * in_letters):
        raise UserError(
            f"data.entities_column: {entities_column!r} seems to count bytes: {in_bytes} entities fit their words only "
            "then; count characters"
        )
    if inside:
        total = sum(len(row) for each in splits for row in each.columns["entities"])
        say(f"{inside} of {total} entities begin or end inside a word: the whole word is learnt, so these are missed")
    return _whole(splits, scheme, corpus)


def check_labels(tagged: TaggedTexts, column: str) -> None:
    """Raise UserError for a label that train does not have: no model could learn it."""
    for split, dataset in tagged.corpus.items():
        for number, row in zip(source_rows(dataset), labels_of(dataset, tagged.scheme), strict=True):
            if unknown := next((label for label in row if label not in tagged.labels), None):
                near = did_you_mean(unknown, tagged.labels)
                raise UserError(
                    f"{split}, row {number}: {unknown!r} is not among the labels of train"
                    f"{near or '; rename it, or move such rows to train'}  (column {column!r})"
                )


def labels_of(dataset: Dataset, scheme: str) -> list[list[str]]:
    """Return the labels of each row: those of its entities, or its tags."""
    if scheme == "none":
        return dataset["tags"][:]
    return [[each["label"] for each in row] for row in dataset["entities"]]


def to_learn(splits: dict[str, T]) -> list[T]:
    """Return the rows whose labels count: train, or all splits where a model is only scored."""
    return [splits["train"]] if "train" in splits else list(splits.values())


def _whole(splits: list[_Split], scheme: str, read: DatasetDict) -> TaggedTexts:
    corpus = DatasetDict(
        {each.name: each.dataset().add_column(ROW, [*source_rows(read[each.name])]) for each in splits}
    )
    labels = sorted({label for rows in to_learn(corpus) for row in labels_of(rows, scheme) for label in row})
    if "train" not in corpus:
        return TaggedTexts(corpus, scheme, labels)
    if not labels or (scheme == "none" and len(labels) < 2):
        if scheme == "none":
            raise UserError("train: all words have the same tag; give texts with two tags or more")
        raise UserError("train: no row has an entity; give texts with entities, or check data.scheme and the columns")
    return TaggedTexts(corpus, scheme, labels)


def _strictly(outside: int, scheme: str) -> str:
    if not outside:
        return "all of them are in entities that the scheme allows"
    if scheme == "BIO":
        return f"{outside} I- without B- before begin no entity and count as {OUTSIDE}; data.scheme=IOB1 reads them"
    return f"{outside} are in incomplete entities and count as {OUTSIDE}"


def _words_and_tags(dataset: Dataset, tokens_column: str, tags_column: str, split: str) -> list:
    check_column(dataset, tokens_column, split, "data.tokens_column")
    check_column(dataset, tags_column, split, "data.tags_column")
    name, plainly = _namer(getattr(dataset.features[tags_column], "feature", None)), dataset.with_format(None)
    rows = []
    for number, words, tags in zip(source_rows(dataset), plainly[tokens_column], plainly[tags_column], strict=True):
        where = f"{split}, row {number}"
        words = _items(words, f"{where}: no words", tokens_column)
        tags = [name(tag, where) for tag in _items(tags, f"{where}: no tags", tags_column)]
        if wrong := next((word for word in words if not isinstance(word, str)), None):
            kind = type(wrong).__name__
            raise UserError(f"{where}: {wrong!r} is not text but {kind}; write it as text  (column {tokens_column!r})")
        if len(words) != len(tags):
            raise UserError(
                f"{where}: {len(words)} words but {len(tags)} tags; give each word one tag  "
                f"(columns {tokens_column!r} and {tags_column!r})"
            )
        rows.append((words, tags))
    return rows


def _items(value: Any, none: str, column: str) -> list:
    """Return the items of a list, or of a text that is split at spaces, which must not be blank.

    A text such as "['B-PER', 'O']" is a list that csv files hold as Python or JSON writes it.
    """
    items = (list_in(value) or value.split()) if isinstance(value, str) else value
    if not isinstance(items, list) or None in items or (isinstance(value, str) and not items):
        what = "null" if value is None or isinstance(value, list) else "blank" if items == [] else "not a list"
        raise UserError(f"{none} ({what}); give a list, or words with spaces between  (column {column!r})")
    return items


def _namer(feature: Any) -> Callable[[Any, str], str]:
    """Return (tag, where) -> its name. An id of a ClassLabel has one."""

    def name(tag: Any, where: str) -> str:
        if not isinstance(feature, ClassLabel) or isinstance(tag, str):
            return plain(str(tag))
        if not 0 <= tag < len(feature.names):
            raise UserError(f"{where}: there is no label {tag}; give an id from 0 to {len(feature.names) - 1}")
        return plain(feature.names[tag])

    return name


def _texts_and_entities(dataset: Dataset, text_column: str, entities_column: str, split: str) -> list:
    check_column(dataset, entities_column, split, "data.entities_column")
    feature: Any = dataset.features[entities_column]
    inner = getattr(feature, "feature", feature)
    labels = inner.get("label") if isinstance(inner, dict) else None
    name, plainly, rows = _namer(getattr(labels, "feature", labels)), dataset.with_format(None), []
    for number, text, found in zip(source_rows(dataset), plainly[text_column], plainly[entities_column], strict=True):
        where = f"{split}, row {number}"
        if text is None:
            raise UserError(f"{where}: no text (null); fill or drop it  (column {text_column!r})")
        if isinstance(found, dict):  # as `datasets` once stored lists of objects
            found = [dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True)]
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise UserError(
                f"{where}: not a list of entities; give [{{start, end, label}}], or [] for none  "
                f"(column {entities_column!r})"
            )
        for each in found:
            if lacking := [key for key in ("start", "end", "label") if each.get(key) is None]:
                raise UserError(f"{where}: an entity has no {lacking[0]}  (column {entities_column!r})")
        rows.append((text, [each | {"label": name(each["label"], where)} for each in found]))
    return rows


def _entity(text: str, each: dict[str, Any], where: str) -> dict[str, Any]:
    """Return an entity without spaces at its edges. Raises UserError for one that is not in its text."""
    start, end, label = each["start"], each["end"], each["label"]
    if type(start) is not int or type(end) is not int:
        raise UserError(f"{where}: the entity from {start!r} to {end!r} needs whole numbers; count characters from 0")
    if not 0 <= start < end <= len(text):
        counted = "; were bytes counted?" if len(text) < end <= len(text.encode()) else ""
        raise UserError(
            f"{where}: the entity {label!r} from {start} to {end} is not in its text of {len(text)} characters{counted}"
        )
    given = each.get("text")
    if isinstance(given, str) and given != text[start:end]:
        raise UserError(
            f"{where}: the entity {given!r} is not at {start} to {end}, where the text has {text[start:end]!r}; count "
            "characters from 0, not bytes"
        )
    inner = text[start:end].strip()
    if not inner or not label:
        what = "without a label" if inner else "of spaces alone"
        raise UserError(f"{where}: the entity from {start} to {end} is one {what}; correct or remove it")
    start += len(text[start:end]) - len(text[start:end].lstrip())
    return {"start": start, "end": start + len(inner), "label": label}


def _fits_in_bytes(text: str, each: dict[str, Any], starts: set[int], stops: set[int]) -> bool:
    """Return whether an entity has whole words when its numbers count bytes."""
    raw = text.encode()
    try:
        start, end = (len(raw[: each[key]].decode()) for key in ("start", "end"))
    except UnicodeDecodeError:
        return False
    return start in starts and end in stops
