"""The cache of read files: its key holds the contents, and its errors are about its own folder."""

import bz2
import gzip
import lzma
import os

import datasets
import pyarrow as pa
import pytest
from datasets.arrow_writer import ArrowWriter

from decero.data import file_bytes
from decero.data.corpus import load_corpus, open_corpus
from decero.errors import UserError


def rewrite(path, content):
    """Write another content of the same size, with the same time of change."""
    before = path.stat()
    path.write_text(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_rewritten_at_the_same_time_is_read_again(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("aaaa")
    files = {"train": str(path), "validation": str(path)}
    first = load_corpus(files=files)["train"]
    assert load_corpus(files=files)["train"]._fingerprint == first._fingerprint
    assert open_corpus(streaming=True, files=files)["validation"]["text"][:] == ["aaaa"]
    rewrite(path, "bbbb")
    again = load_corpus(files=files)["train"]
    assert again["text"][:] == ["bbbb"]
    assert again._fingerprint != first._fingerprint
    assert open_corpus(streaming=True, files=files)["validation"]["text"][:] == ["bbbb"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("I/O operation on closed file")])
def test_a_full_cache_is_not_blamed_on_the_corpus(tmp_path, monkeypatch, error):
    (tmp_path / "x.jsonl").write_text(f'{{"text": "{error}"}}\n' * 3)

    def write_table(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(ArrowWriter, "write_table", write_table)
    with pytest.raises(UserError) as refused:
        load_corpus(files={"train": str(tmp_path / "x.jsonl")})
    assert str(refused.value).startswith(f"{datasets.config.HF_DATASETS_CACHE}: cannot write the cache of data sets: ")
    assert "set HF_DATASETS_CACHE to another folder" in str(refused.value)
    assert "x.jsonl" not in str(refused.value)


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": lambda data: pa.compress(data, "zstd")}


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_damaged_compressed_file_is_one_line(tmp_path, suffix):
    path = tmp_path / f"x.txt.{suffix}"
    path.write_bytes(PACK[suffix](os.urandom(3000).hex().encode())[:400])
    with pytest.raises(UserError, match=rf"x\.txt\.{suffix}: cannot read it: "):
        load_corpus(files={"train": str(path)})


@pytest.mark.parametrize(("limit", "line"), [("SAFE_SIZE", "decompression bomb"), ("LONGEST_LINE", "line 1: is over")])
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, limit, line):
    monkeypatch.setattr(file_bytes, limit, 1 << 20)
    with gzip.open(tmp_path / "x.txt.gz", "wb") as file:
        for _ in range(6):
            file.write(b"a" * (1 << 20) if limit == "LONGEST_LINE" else b"aaaaaaa\n" * (1 << 17))
    with pytest.raises(UserError, match=line):
        load_corpus(files={"train": str(tmp_path / "x.txt.gz")})


def test_zstd_files_need_no_other_package(tmp_path):
    with pa.CompressedOutputStream(str(tmp_path / "x.txt.zst"), "zstd") as file:
        file.write(b"a\n\nb")
    assert load_corpus(files={"train": str(tmp_path / "x.txt.zst")})["train"]["text"][:] == ["a\n\nb"[:1], "b"]


def test_a_folder_in_the_hubs_layout_has_the_same_reader(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\nNone,1.10\nnull,01\n")
    for streaming in (False, True):
        rows = load_corpus(name=str(tmp_path), streaming=streaming, columns={"label": "x"})["train"]
        assert rows.to_list() == [{"text": "None", "label": "1.10"}, {"text": "null", "label": "01"}]
