"""Name the encoding of a file that is not UTF-8, by its bytes, and the command that converts it."""

import codecs
import re
import shlex
from pathlib import Path

import charset_normalizer

from decero.errors import UserError

SAMPLE = 1 << 20  # bytes
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16"}
MARKS |= {codecs.BOM_UTF16_BE: "UTF-16"}  # UTF-32 first: its mark begins with that of UTF-16
OTHER_FILES = {
    b"PK\x03\x04": "a zip archive (such as xlsx or docx); export its text as csv or txt",
    b"%PDF": "a PDF; extract its text",
    b"\x1f\x8b": "compressed with gzip; let its name end in .gz",
    b"BZh": "compressed with bzip2; let its name end in .bz2",
    b"\xfd7zXZ": "compressed with xz; let its name end in .xz",
    b"(\xb5/\xfd": "compressed with zstd; let its name end in .zst",
    b"PAR1": "a Parquet file; let its name end in .parquet",
    b"SQLite format 3": "an SQLite data base; export its text as csv",
}
DECOMPRESS = {"gz": "gzip -dc", "bz2": "bzip2 -dc", "xz": "xz -dc", "zst": "zstd -dc"}
IN_RUNS = ["cp932", "gb18030", "big5", "euc_jp", "euc_kr", "cp1251", "koi8_r", "cp1250", "iso8859_2", "cp1253"]
IN_RUNS += ["cp1255", "cp1256", "cp874"]
LATIN = {"latin1", "cp1252", "cp1250", "ISO-8859-2"}  # one-byte encodings that look alike
CHECK = "cp1250 (Central Europe), cp1254 (Turkish), cp1257 (Baltic), macintosh or cp850"
ICONV = {"euc_jp": "EUC-JP", "euc_kr": "CP949", "koi8_r": "KOI8-R", "iso8859_2": "ISO-8859-2", "cp932": "CP932"}
ICONV |= {"gb18030": "GB18030", "big5": "BIG5"}
KNOWN_AS = {"CP932": "Shift-JIS (CP932)"}
MID_FINAL = re.compile(rb"[\xea\xed\xef\xf3\xf5][\xe0-\xfa]")  # a final letter of Hebrew inside a word
VALID_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")


def not_utf8(path: Path, line: int, byte: int, sample: bytes) -> UserError:
    """Return the error for a byte (both numbers count from 1) that is not part of UTF-8 text.

    sample: the first bytes of the file and those around the byte.
    """
    at = f"{path}, line {line}: byte {byte} is not UTF-8"
    return _error(path, at, sample)


def nul_byte(path: Path, line: int, sample: bytes) -> UserError:
    """Return the error for a file with NUL bytes: UTF-16 or UTF-32 text, a damaged file, or no text."""
    name = guess(sample)
    if name or any(sample.startswith(mark) for mark in OTHER_FILES):
        return _error(path, f"{path}, line {line}: holds NUL bytes, so it is not UTF-8", sample)
    source = _iconv(path, None)
    new = shlex.quote(str(path.with_name(f"clean-{path.stem if _packed(path) else path.name}")))
    return UserError(
        f"{path}, line {line}: holds a NUL byte, which no text has; is the file damaged? To drop such bytes: "
        f"{source} | tr -d '\\000' > {new}"
    )


def guess(sample: bytes) -> str | None:
    """Return iconv's name of the encoding; None for UTF-8 with damage, "" when nothing fits.

    The rules, in this order: a byte order mark; NUL bytes at even or odd places (UTF-16) or at three of four (UTF-32);
    nearly all valid UTF-8; bytes above 127 in runs (other scripts: Hebrew when nearly all are its letters, else
    charset-normalizer decides); else a Western text, Windows' when it has bytes 0x80 to 0x9f.
    """
    if mark := next((mark for mark in MARKS if sample.startswith(mark)), None):
        return MARKS[mark]
    if name := _wide(sample):
        return name
    high = len(re.findall(rb"[\x80-\xff]", sample))
    valid = sum(map(len, VALID_UTF8.findall(sample)))
    if valid >= 0.9 * high or (high - valid == 1 and valid > 1):
        return None
    if sum(map(len, re.findall(rb"[\x80-\xff]{2,}", sample))) > high / 2:
        if len(re.findall(rb"[\xe0-\xfa]", sample)) >= 0.98 * high and not MID_FINAL.search(sample):
            return "cp1255"
        found = charset_normalizer.from_bytes(sample, cp_isolation=IN_RUNS).best()
        return ICONV.get(found.encoding, found.encoding) if found else ""
    if not re.search(rb"[\x80-\x9f]", sample):
        return "latin1"
    return "" if re.search(rb"[\x81\x8d\x8f\x90\x9d]", sample) else "cp1252"


def _error(path: Path, at: str, sample: bytes) -> UserError:
    for mark, kind in OTHER_FILES.items():
        if sample.startswith(mark):
            return UserError(f"{path}: this is {kind}")
    new = shlex.quote(str(path.with_name(f"utf8-{path.name if not _packed(path) else path.stem}")))
    name = guess(sample)
    if name is None:
        return UserError(f"{at}, though most of the file is; correct the line, or drop such bytes: "
                         f"{_iconv(path, 'UTF-8', '-c ')} > {new}")  # fmt: skip
    if name == "":
        return UserError(f"{at} text; are these bytes text? (if they are: iconv -l lists encodings)")
    known = KNOWN_AS.get(name, name)
    check = f"  (look at the accents; if they are wrong, try {CHECK})" if name in LATIN else ""
    return UserError(f"{at}; it looks like {known}; convert the file: {_iconv(path, name)} > {new}{check}")


def _wide(sample: bytes) -> str | None:
    """Return the encoding whose characters have two or four bytes, by the places of the NUL bytes."""
    counts = [sample[place::4].count(0) for place in range(4)]
    if sum(counts) == 0:
        return None
    quarter = len(sample) / 4
    for name, zeros in {"UTF-32LE": (2, 3), "UTF-32BE": (0, 1)}.items():
        if all(counts[place] > 0.9 * quarter for place in zeros):
            return name
    even, odd = counts[0] + counts[2], counts[1] + counts[3]
    for name, here, there in (("UTF-16LE", odd, even), ("UTF-16BE", even, odd)):
        try:
            text = codecs.getincrementaldecoder(name)().decode(sample)
        except UnicodeDecodeError:
            continue
        lines = sample.count(b"\n")  # few other characters have such a byte
        if (lines and text.count("\n") > lines / 2) or (here > len(sample) / 5 and here > 20 * there):
            return name
    return None


def _packed(path: Path) -> bool:
    return path.suffix.lstrip(".").lower() in DECOMPRESS


def _iconv(path: Path, name: str | None, options: str = "") -> str:
    file = shlex.quote(str(path))
    convert = f"iconv {options}-f {name} -t UTF-8"
    if _packed(path):
        unpack = f"{DECOMPRESS[path.suffix.lstrip('.').lower()]} {file}"
        return f"{unpack} | {convert}" if name else unpack
    return f"{convert} {file}" if name else f"cat {file}"
