"""Public data sets are written as the configs read them. A local folder stands in for the hub."""

import re
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset

from decero.cli.main import main
from decero.data import public_sets
from decero.data.fetch_public_set import fetch
from decero.data.public_sets import BY_HAND, PUBLIC_SETS, PublicSet
from decero.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """A public set with nested columns and without validation and test."""
    rows = [{"id": str(n), "translation": {"en": f"word {n}", "es": f"palabra {n}"}} for n in range(211)]
    (tmp_path / "hub").mkdir()
    Dataset.from_list(rows).to_parquet(str(tmp_path / "hub" / "train.parquet"))
    there = PublicSet(str(tmp_path / "hub"), None, public_sets.PAIR, 200, "pairs")
    monkeypatch.setitem(PUBLIC_SETS, "bible_en_es", there)
    return tmp_path


def test_a_set_has_the_columns_and_splits_of_the_configs(pairs):
    line = fetch("bible_en_es", pairs / "data")
    files = {
        split: str(pairs / "data" / "bible_en_es" / f"{split}.parquet") for split in ("train", "validation", "test")
    }
    found = load_dataset("parquet", data_files=files)
    assert sum(map(len, found.values())) == 200
    assert found["train"].column_names == ["en", "es"]
    assert all(row["en"].split()[1] == row["es"].split()[1] for split in found.values() for row in split)
    assert f"{len(found['train'])} train" in line
    with pytest.raises(UserError, match="already exists"):
        fetch("bible_en_es", pairs / "data")


def test_a_failed_fetch_leaves_nothing(pairs, monkeypatch):
    broken = PublicSet(str(pairs / "hub"), None, {"en": "translation.en", "fr": "translation.fr"}, 9, "pairs")
    monkeypatch.setitem(PUBLIC_SETS, "bible_en_es", broken)
    with pytest.raises(UserError):
        fetch("bible_en_es", pairs / "data")
    assert not (pairs / "data").exists() or not list((pairs / "data").iterdir())


def test_every_folder_that_a_config_reads_can_be_fetched():
    named = {name for path in CONFIGS.rglob("*.yaml") for name in re.findall(r"\bdata/(\w+)/", path.read_text("utf-8"))}
    assert named == set(PUBLIC_SETS) | set(BY_HAND)
    assert not set(PUBLIC_SETS) & set(BY_HAND)


def test_the_list_says_what_is_missing(pairs, monkeypatch, capsys):
    monkeypatch.chdir(pairs)
    main(["data"])
    shown = capsys.readouterr().out
    assert all(f"data/{name}  (missing)" in shown for name in (*PUBLIC_SETS, *BY_HAND))
    with pytest.raises(SystemExit):
        main(["data", "txt_en"])
    assert "did you mean text_en?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["data", "wikigold"])
    assert "put train.parquet, validation.parquet and test.parquet into data/wikigold" in capsys.readouterr().err
