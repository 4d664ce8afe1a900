"""Corpora in every format, damaged in every way, read by recipes, the doctor and the commands.

Where a damage keeps the rows apart, the number of training examples is known: another number in result.json is a fault.
"""

import csv
import datetime
import decimal
import gzip
import io
import json
import math
import os
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tests.faults.case import Case, Place, Step
from tests.faults.world import MEASURES, TOPICS, examples, minimal_pairs, pairs

KINDS = ("txt", "jsonl", "csv", "tsv", "parquet")
READERS = {  # recipe -> columns of the rows that it reads
    "finetune_classification": ("text", "label"), "finetune_token_classification": ("tokens", "ner_tags"),
    "finetune_seq2seq": ("en", "es"),
    "finetune_causal_lm": ("en", "es"), "pretrain_mlm": ("text",), "pretrain_causal_lm": ("text",),
    "pretrain_seq2seq": ("text",), "train_tokenizer": ("text",), "evaluate_causal_lm": ("text",),
    "evaluate_masked_lm": ("text",), "evaluate_minimal_pairs": ("good", "bad", "paradigm", "phenomenon"),
    "probe_bias": ("good", "bad", "paradigm"),
}  # fmt: skip

# --- damage to values: a value that takes the place of another in some rows

LABELS = [
    None, True, 0, 1, -1, 2**70, 1.1, 1.10, "01", "1", "None", "NA", "null", "nan", "", " ", "sport ", "e\u0301",
    "\u00e9", math.nan, math.inf, 1e39, [], ["sport"], [["sport"]], [0, 1, 1], [None], {"a": 1}, {}, "x" * 100_000,
    "a\nb", "a\tb", '"', "a,b",
]  # fmt: skip
TEXTS = [
    None, "", " ", "\n", "\x00", "a\x00b", "NA", "null", 7, 1.5, True, [], ["a", "b"], {"a": "b"}, "</s>",
    "[MASK] [SEP] [PAD]", "<pad>", "<extra_id_0>", "word " * 3000, "a" * 300_000, "数字市场", "\u2028\u0085\x0b\x0c",
    "\u202e", "\ufeff", "🎉" * 500, "\ufffd", 'he said "no', '"', "'", "a,b;c\td", "a\r\nb", "a\rb", "...", "\\",
    "<script>", "{{x}}", "-1", "0", "e\u0301",
]  # fmt: skip
DRIFT = [1, "seen", 1.5, None, [1], {"a": 1}, True, "2001-01-01"]


def some(dice, rows: list, most: float = 1.0) -> list[int]:
    """Draw the numbers of some rows, perhaps of all."""
    return sorted(dice.sample(range(len(rows)), dice.choice([1, 2, len(rows) // 2, max(1, int(len(rows) * most))])))


def change_values(dice, rows: list[dict], columns: tuple[str, ...]) -> str:
    column = dice.choice(columns)
    values = LABELS if column == "label" else TEXTS
    drawn = [dice.choice(values) for _ in range(dice.choice([1, 1, 2, 5]))]
    for number in some(dice, rows):
        rows[number] = rows[number] | {column: dice.choice(drawn)}
    return f"values of {column}: {repr(drawn)[:120]}"


def drift(dice, rows: list[dict], columns: tuple[str, ...]) -> str:
    """A column that nobody asked for changes its type."""
    for number, row in enumerate(rows):
        rows[number] = row | {"other": DRIFT[number % 2 if dice.random() < 0.8 else dice.randrange(len(DRIFT))]}
    return "a column that nobody asked for changes its type"


def lose_columns(dice, rows: list[dict], columns: tuple[str, ...]) -> str:
    column = dice.choice(columns)
    for number in some(dice, rows):
        rows[number] = {k: v for k, v in rows[number].items() if k != column}
    return f"rows without {column}"


def one_class(dice, rows: list[dict], columns: tuple[str, ...]) -> str:
    alone = dice.random() < 0.5
    for number, row in enumerate(rows):
        rows[number] = row | {columns[-1]: "same" if alone else f"label {number}"}
    return "one class" if alone else "a class a row"


def few(dice, rows: list[dict], columns: tuple[str, ...]) -> str:
    del rows[dice.choice([0, 1, 2]) :]
    return f"{len(rows)} rows"


# --- damage to bytes: return the new bytes and whether the rows stay apart


def at(dice, data: bytes, piece: bytes) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + piece + data[place:]


def line_by_line(dice, data: bytes, change) -> bytes:
    lines = data.split(b"\n")
    for number in some(dice, lines):
        lines[number] = change(lines[number])
    return b"\n".join(lines)


BYTES = {
    "cut": lambda dice, data: data[: dice.randrange(len(data) + 1)],
    "flipped bytes": lambda dice, data: bytes(b ^ (dice.random() < 0.01) * dice.randrange(256) for b in data),
    "empty": lambda dice, data: b"",
    "blank lines only": lambda dice, data: b"\n \n" * 20,
    "header only": lambda dice, data: data.split(b"\n")[0] + dice.choice([b"", b"\n"]),
    "a NUL": lambda dice, data: at(dice, data, b"\x00" * dice.choice([1, 1000])),
    "a byte order mark": lambda dice, data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda dice, data: data.decode("utf-8", "replace").encode(dice.choice(["utf-16", "utf-16-le", "utf-32"])),
    "cp1252": lambda dice, data: at(dice, data, dice.choice([b"\x93quoted\x94", b"caf\xe9", b"\x80 5"])),
    "a lone surrogate": lambda dice, data: at(dice, data, b"\xed\xa0\x80"),
    "a lone carriage return": lambda dice, data: at(dice, data, b"\r"),
    "carriage returns": lambda dice, data: data.replace(b"\n", dice.choice([b"\r\n", b"\r", b"\n\r"])),
    "an open quote": lambda dice, data: at(dice, data, b'"'),
    "quotes": lambda dice, data: line_by_line(dice, data, lambda line: b'"' + line),
    "wide rows": lambda dice, data: line_by_line(
        dice, data, lambda line: b"shop\t" + line if b"\t" in line else b"shop," + line
    ),
    "trailing commas": lambda dice, data: line_by_line(dice, data, lambda line: line + b","),
    "narrow rows": lambda dice, data: line_by_line(dice, data, lambda line: line.rpartition(b",")[0]),
    "semicolons": lambda dice, data: data.replace(b",", b";").replace(b"\t", b";"),
    "a doubled header": lambda dice, data: data.replace(b"label", b"text", 1).replace(b"es", b"en", 1),
    "an unnamed column": lambda dice, data: b"," + data.replace(b"\n", b"\n,"),
    "no header": lambda dice, data: data.partition(b"\n")[2],
    "the header again": lambda dice, data: data + data,
    "blank lines": lambda dice, data: line_by_line(dice, data, lambda line: line + b"\n"),
    "spaces": lambda dice, data: line_by_line(dice, data, lambda line: b"  " + line + b"\t "),
    "a line that is no JSON": lambda dice, data: line_by_line(
        dice, data, lambda line: dice.choice([b"{", b"[1]", b"7", b"null", b"nan"])
    ),
    "a deep line": lambda dice, data: data + b'{"text": ' + b"[" * 5000 + b"\n",
    "a huge number": lambda dice, data: data + b'{"text": "a", "label": ' + b"9" * 5000 + b"}\n",
    "a list of objects": lambda dice, data: b"[" + data.rstrip().replace(b"\n", b",\n") + b"]",
    "another format": lambda dice, data: dice.choice(
        [b"PAR1" + data + b"PAR1", b"\x1f\x8b" + data, b"PK\x03\x04" + data, b"%PDF-1.4\n"]
    ),
    "doubled keys": lambda dice, data: data.replace(b'"text":', b'"text": "first", "text":'),
    "a line of a megabyte": lambda dice, data: at(dice, data, b"a" * 1_000_000),
}
SAME_ROWS = (
    "a byte order mark",
    "wide rows",
    "trailing commas",
    "semicolons",
    "an unnamed column",
    "blank lines",
    "spaces",
)

# --- damage to files: what stands where the file should be


def pipe(place, path):
    os.mkfifo(path)


def loop(place, path):
    path.symlink_to(path.name)


def bomb(place, path):
    """A gigabyte of zeros in a megabyte."""
    path.with_name(f"{path.name}.gz").write_bytes(place.world.bomb())


def torn_archive(place, path):
    data = gzip.compress(path.read_bytes() if path.exists() else b"text\n" * 50)
    path.with_name(f"{path.name}.gz").write_bytes(
        place.dice.choice([data[: len(data) // 2], data[:12], b"text", data[:-4] + b"\x00" * 4])
    )


FILES = {
    "a named pipe": pipe,
    "a loop of links": loop,
    "a link to nowhere": lambda place, path: path.symlink_to("nowhere"),
    "a link to a device": lambda place, path: path.symlink_to(
        place.dice.choice(["/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem"])
    ),
    "a folder": lambda place, path: path.mkdir(),
    "a folder with a loop": lambda place, path: (path.mkdir(), (path / "up").symlink_to("..")),
    "a folder with a pipe": lambda place, path: (path.mkdir(), os.mkfifo(path / f"x{path.suffix}")),
    "a gzip bomb": bomb,
    "a torn archive": torn_archive,
    "nothing": lambda place, path: None,
}
STEMS = [
    "train[1]",
    "a b",
    "ünï",
    "*",
    "x" * 200,
    "a=b",
    "-x",
    "{a}",
    "$x",
    "train.txt",
    "a#b%20",
    "'",
    "..train",
    "a,b",
    "a:b",
]


def written(kind: str, rows: list[dict]) -> bytes:
    """Rows in a format. What it cannot hold is written as text."""
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "txt":
        return "\n".join(str(next(iter(row.values()), "")) for row in rows).encode("utf-8", "surrogatepass") + b"\n"
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["text"]
    text = io.StringIO()
    table = csv.DictWriter(text, names, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
    table.writeheader()
    table.writerows(
        {n: " ".join(map(str, v)) if n in ("tokens", "ner_tags") and isinstance(v, list) else v for n, v in row.items()}
        for row in rows
    )
    return text.getvalue().encode("utf-8", "surrogatepass")


TYPES = {
    "large_string": pa.large_string(), "string_view": pa.string_view(), "binary": pa.binary(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()), "null": pa.null(), "list": pa.list_(pa.string()),
    "struct": pa.struct([("a", pa.string())]), "map": pa.map_(pa.string(), pa.int64()), "date": pa.date32(),
    "decimal": pa.decimal128(5, 2), "half": pa.float16(), "duration": pa.duration("s"), "bool": pa.bool_(),
}  # fmt: skip
LIKE = {
    "binary": b"\xff text", "null": None, "list": ["a"], "struct": {"a": "b"}, "map": [("a", 1)],
    "date": datetime.date(2001, 1, 1), "decimal": decimal.Decimal("1.10"), "half": 1.5,
    "duration": datetime.timedelta(seconds=3), "bool": True,
}  # fmt: skip


def typed(dice, rows: list[dict], columns: tuple[str, ...]) -> tuple[str, bytes]:
    """A Parquet file with a column of an unusual type."""
    column, name = dice.choice(columns), dice.choice(list(TYPES))
    arrays = {each: pa.array([row[each] for row in rows]) for each in columns}
    values = [LIKE[name]] * len(rows) if name in LIKE else [row[column] for row in rows]
    try:
        arrays[column] = pa.array(values, TYPES[name])
        pq.write_table(pa.table(arrays), buffer := io.BytesIO())
    except (pa.ArrowException, TypeError):
        return "", written("parquet", rows)
    return f"{column} is of type {name}", buffer.getvalue()


def damaged(
    place: Place, recipe: str, path, rows: list[dict], columns: tuple[str, ...], story: list[str]
) -> int | None:
    """Write a damaged training file; return the number of its rows if that is still known."""
    dice, kind, count = place.dice, path.suffix[1:], len(rows)
    how = dice.random()
    if how < 0.4:
        changes = [change_values, change_values, drift, lose_columns, one_class, few]
        change = dice.choice(changes)
        story.append(change(dice, rows, columns))
        try:
            path.write_bytes(written(kind, rows))
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError):
            path.write_bytes(written("jsonl", [{k: str(v) for k, v in row.items()} for row in rows]))
        return count if change in (drift, one_class) else None
    if kind == "parquet" and how < 0.7:
        said, data = typed(dice, rows, columns)
        story.append(said)
        path.write_bytes(data)
        return count if said.rpartition(" ")[2] in ("large_string", "string_view", "dictionary") else None
    if how < 0.8:
        name = dice.choice(list(BYTES))
        story.append(name)
        path.write_bytes(BYTES[name](dice, written(kind, rows)))
        return count if name in SAME_ROWS or (kind == "tsv" and "quote" in name) else None
    if how < 0.94:
        name = dice.choice(list(FILES))
        story.append(name)
        FILES[name](place, path)
        return None
    path.write_bytes(written(kind, rows))
    return count if kind in ("jsonl", "csv", "tsv", "parquet") else None


def wrong(place: Place, recipe: str, count: int | None) -> Any:
    """Compare the number of training examples, and the labels, with the rows that were written."""

    def compare(done) -> str | None:
        record = place.out / "result.json"
        if count is None or not record.is_file() or done[-1].code != 0:
            return None
        found = json.loads(record.read_text())
        if found.get("train_examples", count) != count:
            return f"{recipe} trains on other rows than were written"
        names = found.get("label_names", [])
        names = [name.removeprefix("B-").removeprefix("I-") for name in names if name != "O"]
        moved = any(name not in TOPICS and not name.startswith(("label ", "same")) for name in names)
        return f"{recipe} learns labels that nobody wrote" if moved else None

    return compare


def draw(place: Place) -> Case:
    dice, world = place.dice, place.world
    recipe = dice.choice([*READERS, "finetune_classification", "finetune_seq2seq"])
    columns = READERS[recipe]
    make = pairs if "en" in columns else minimal_pairs if "good" in columns else examples
    splits = make(seed=dice.random())
    kinds = [kind for kind in KINDS if kind != "txt" or len(columns) == 1]
    kind = dice.choice(kinds)
    stem = dice.choice(STEMS) if dice.random() < 0.2 else "train"
    path = place.given / f"{stem}.{kind}"
    if stem == "train[1]":
        (place.given / f"train1.{kind}").write_bytes(written(kind, [dict.fromkeys(columns, "wrong file")]))
    story = [f"{recipe}, {kind}, {stem[:20]}"]
    only = {split: [{name: row[name] for name in columns} for row in rows] for split, rows in splits.items()}
    count = damaged(place, recipe, path, only["train"], columns, story)
    test = place.given / f"test.{kind}"
    test.write_bytes(written(kind, only["test"]))
    if dice.random() < 0.15:
        damaged(place, recipe, place.given / f"test2.{kind}", only["test"], columns, story)
        test, count = place.given / f"test2.{kind}", None
    archive = path.with_name(f"{path.name}.gz")
    files = json.dumps(
        {"train": str(archive if archive.exists() else path), "validation": str(test), "test": str(test)}
    )
    if "good" in columns:  # what is damaged is what is measured
        files = json.dumps({"test": json.loads(files)["train"]})
    if "en" in columns:
        if kind == "jsonl" and dice.random() < 0.1:
            files = json.dumps({"train": [str(path), str(test)]})
        words = [f"data.tasks.swap.files={files}"]
    else:
        words = [f"{'sets.crows.data' if recipe == 'probe_bias' else 'data'}.files={files}"]
        if recipe.startswith("pretrain") and dice.random() < 0.3:
            words += ["data.streaming=true", "data.buffer_size=7"]
        if kind == "txt" and "good" not in columns:
            words.append(f"data.sample_by={dice.choice(['line', 'paragraph', 'document'])}")
    if recipe == "finetune_classification" and dice.random() < 0.3:
        kind_of_label = dice.choice(["multi_label_classification", "regression"])
        words.append(f"objective.problem_type={kind_of_label}")
        count = None
    words = [world.config(recipe), f"output={place.out}", *words]
    if dice.random() < 0.15 and recipe not in MEASURES:
        words.append("--dry-run")
    steps = [Step(recipe, words)]
    if dice.random() < 0.12 and path.is_file():  # a command waits for what is written to a pipe, as it should
        command, trained = dice.choice(
            [("classify", "finetune_classification"), ("extract", "finetune_token_classification")]
        )
        steps.append(Step("decero", [command, world.run(trained) / "model", path]))
    if (
        dice.random() < 0.12
        and place.world.config(recipe)
        and recipe in ("finetune_classification", "finetune_seq2seq", "pretrain_mlm")
    ):
        steps.append(Step("decero", ["doctor", place.out], codes=(0, 1)))
    return Case(steps, story, wrong(place, recipe, count))
