"""The encoding that the bytes say, and a command that really converts the file."""

import gzip
import shutil
import subprocess

import pytest

from decero.data.corpus import load_corpus
from decero.data.encodings import guess
from decero.errors import UserError

WESTERN = "The “soup” cost 5 € – said the driver’s aunt…\nnext\n"
TEXTS = {
    "cp1252": WESTERN,
    "latin1": "El niño comió piñas\n",
    "utf-16": WESTERN,
    "utf-16-le": WESTERN,
    "utf-16-be": "plain ascii\nof two lines\n",
    "utf-32": WESTERN,
    "utf-32-le": WESTERN,
    "utf-32-be": WESTERN,
    "shift_jis": "これは日本語の文章です。東京は大きな都市です。\n" * 3,
    "gb18030": "这是一个中文句子，北京是一个大城市。\n" * 3,
    "cp1251": "Это русское предложение. Москва большой город.\n" * 3,
    "cp1255": "הספר הזה טוב מאוד, אהבתי אותו. תל אביב היא עיר גדולה.\n",
    "cp874": "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน กรุงเทพมหานครเป็นเมืองหลวง\n",
    "koi8_r": "Это русское предложение. Москва большой город.\n" * 3,
}


@pytest.mark.skipif(shutil.which("iconv") is None, reason="iconv is not installed")
@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_offered_command_converts_the_file(tmp_path, encoding, packed):
    path = tmp_path / ("an x.txt.gz" if packed else "an x.txt")
    data = TEXTS[encoding].encode(encoding)
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UserError, match=r"line 1: .*not UTF-8; it looks like") as refused:
        load_corpus(files={"train": str(path)})
    command = str(refused.value).partition("convert the file: ")[2].partition("  (look at the accents")[0]
    subprocess.run(command, shell=True, check=True)
    assert (tmp_path / "utf8-an x.txt").read_bytes().decode("utf-8-sig") == TEXTS[encoding]


def test_utf_16_without_latin_letters_or_mark_is_known():
    for encoding in ("UTF-16LE", "UTF-16BE"):
        assert guess("这是一个中文句子\n北京\n".encode(encoding)) == encoding


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("año ñandú\n".encode() + b"x\xf1\n", "line 2: byte 2 is not UTF-8, though most of the file is"),
        (b"abc\nd\0ef ghi\n", "line 2: holds a NUL byte"),
        (b"PK\x03\x04\x00\xff", "this is a zip archive"),
        (b"%PDF-1.4\n\xff", "this is a PDF"),
        (gzip.compress(b"text", mtime=0), "compressed with gzip; let its name end in .gz"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, content, line):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=line):
        load_corpus(files={"train": str(tmp_path / "x.txt")})
