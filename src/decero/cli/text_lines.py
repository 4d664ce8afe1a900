"""Read lines of text from an argument, a file, a named pipe or standard input."""

import os
import re
import select
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from decero.data.file_bytes import COMPRESSED, DAMAGED, extension, reason
from decero.errors import UserError, regular_file
from decero.files import PIPE, kind_of

PATIENCE = 30  # seconds
# what looks like the name of a file, not like a text
FILE_NAME = re.compile(
    r"\S+\.(txt|csv|tsv|jsonl?|ndjson|parquet|png|jpe?g|bmp|gif|webp|tiff?)(\.gz|\.bz2|\.xz|\.zst)?", re.IGNORECASE
)


def read_lines(text: str) -> tuple[Iterable[str], int | None]:
    """Read the lines of a text, a file, a named pipe or standard input (`-`).

    Returns the lines without line ends, and their number if known. Raises UserError for a file that cannot be read.
    While the lines are read, it raises UserError for a line that is not UTF-8.
    """
    if text in ("-", "/dev/stdin"):
        return _decoded(sys.stdin.buffer, "standard input"), None
    kind = kind_of(text)
    if kind in ("", "a folder"):
        check_no_file(text, kind)
        lines = text.split("\n")
        return lines, len(lines)
    if kind not in ("a file", PIPE):
        raise UserError(f"{text}: this is {kind}; give a file with a text a line")
    try:
        if kind == PIPE:  # can be read only once
            return _decoded(open_pipe(text), text), None
        opened = COMPRESSED.get(extension(Path(text))[1], open)
        with opened(text, "rb") as file:
            total = sum(1 for _ in file)
        return _decoded(opened(text, "rb"), text), total
    except DAMAGED as error:
        raise UserError(f"{text}: cannot read this file: {reason(error)}") from error


def check_no_file(text: str, kind: str) -> None:
    """Raise UserError where a text is the name of a file that is not there, or of a folder with its path."""
    if kind == "a folder":
        raise UserError(f"{text}: this is a folder; give a file with a text a line; - reads texts from standard input")
    if not kind and FILE_NAME.fullmatch(text):
        regular_file(text)


def open_pipe(pipe: str) -> BinaryIO:
    """Open a named pipe and wait until a program writes to it. Raises UserError when none does for PATIENCE seconds.

    The pipe stays open: what was written is lost when its last reader closes it.
    """
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # without O_NONBLOCK, opening waits for a writer
    try:
        writer = select.poll()
        writer.register(handle, select.POLLIN | select.POLLHUP)
        if not writer.poll(1000 * PATIENCE):
            raise UserError(f"{pipe}: no program has written to this named pipe for {PATIENCE} s; start it first")
        os.set_blocking(handle, True)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _decoded(file: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"{name}: line {number} is not UTF-8; convert it with iconv") from None
