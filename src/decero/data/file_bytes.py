"""Open local files, compressed or not, and read their text in blocks of whole lines.

A line ends with `\\n` or `\\r\\n`. No other character ends a line, such as a lone `\\r` or U+2028.
"""

import bz2
import gzip
import io
import lzma
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from decero.data.encodings import SAMPLE, not_utf8, nul_byte
from decero.errors import UserError, root_line

BLOCK = 4 << 20  # bytes of text in memory at a time
LONGEST_LINE = 128 << 20  # bytes
MOST_EXPANSION = 100  # text is compressed 3 to 30 times
SAFE_SIZE = 64 << 20  # bytes; a smaller file may expand more
COMPRESSED: dict[str, Any] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
COMPRESSED["zst"] = lambda path, mode: io.BufferedReader(pa.CompressedInputStream(str(path), "zstd"))  # type: ignore
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
KINDS = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}
KINDS |= {stat.S_ISDIR: "a folder"}


def special_kind(path: Path) -> str:
    """Return "a pipe", "a device", ... for what exists but is no regular file; else ""."""
    mode = path.stat().st_mode
    return next((kind for test, kind in KINDS.items() if test(mode)), "")


def text_blocks(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number of the first line, text) in blocks of whole lines, without a byte order mark.

    Raises UserError: a file that is damaged, not UTF-8, a decompression bomb, or has a line over LONGEST_LINE.
    """
    number, seen, head = 1, 0, b""
    with _reading(path), _opened(path) as file:
        packed, size = extension(path)[1], path.stat().st_size
        while block := file.read(BLOCK):
            if not block.endswith(b"\n") and b"\0" not in block:
                block += (rest := file.readline(LONGEST_LINE))
                if len(rest) == LONGEST_LINE:
                    line = number + block.count(b"\n")
                    raise UserError(f"{path}, line {line}: is over {LONGEST_LINE >> 20} MiB long; break it into lines")
            seen += len(block)
            if packed and seen > max(SAFE_SIZE, MOST_EXPANSION * size):
                raise UserError(
                    f"{path}: expands to over {MOST_EXPANSION} times its size, like a decompression bomb; if you trust "
                    "it, decompress it and name the result"
                )
            head = head or block[:SAMPLE]
            text = _decode(path, block, head, number)
            yield number, text.removeprefix("\ufeff") if seen == len(block) else text
            number += text.count("\n")


def content_hash(path: Path) -> str:
    """Return a hash of the size and the bytes of a file. Raises UserError for an unreadable file."""
    digest = xxhash.xxh3_128()
    with _reading(path), path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
        return f"{file.tell()}-{digest.hexdigest()}"


def extension(path: Path) -> tuple[str, str]:
    """Return the last suffix that names no compression, and the compression: x.csv.gz -> ("csv", "gz")."""
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    packed = suffixes[-1] if suffixes and suffixes[-1] in COMPRESSED else ""
    return next((each for each in reversed(suffixes) if each not in COMPRESSED), ""), packed


def _decode(path: Path, block: bytes, head: bytes, number: int) -> str:
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError as error:
        before = block[: error.start]
        line, byte = number + before.count(b"\n"), error.start - (before.rfind(b"\n") + 1) + 1
        raise not_utf8(path, line, byte, _around(head, block, error.start)) from error
    if (place := text.find("\0")) >= 0:
        raise nul_byte(path, number + text.count("\n", 0, place), _around(head, block, block.index(b"\0")))
    return text


def _around(head: bytes, block: bytes, place: int) -> bytes:
    """Return the head of a file, and the bytes around a place of a later block; the distance is a multiple of four."""
    begin = max(0, place - SAMPLE // 2) // 4 * 4
    return head if block.startswith(head) and place < len(head) else head[: len(head) // 4 * 4] + block[begin:][:SAMPLE]


def _opened(path: Path) -> Any:
    if kind := special_kind(path):  # a pipe without a writer would wait forever
        raise UserError(f"{path}: this is {kind}, not a file; write its text to a file, and name that")
    packed = extension(path)[1]
    return COMPRESSED[packed](path, "rb") if packed else path.open("rb")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged or unreadable file into a UserError."""
    try:
        yield
    except DAMAGED as error:
        raise UserError(f"{path}: cannot read it: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return what a library says, in a line; of a file error only what happened."""
    return error.strerror if isinstance(error, OSError) and error.strerror else root_line(error)
