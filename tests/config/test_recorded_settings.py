"""Resuming: places and helpers may differ, everything that decides the result may not."""

import pytest

from decero.config.comparison import Compare
from decero.config.pretraining import PretrainMLM
from decero.config.recorded_settings import changed_setting, record_settings
from decero.errors import UserError

SETTINGS = {
    "output": "runs/a",
    "model": {"config": "configs/model/a.yaml"},
    "data": {"files": {"train": "corpus/*.txt"}, "num_proc": 2},
    "training": {"max_train_steps": 3},
}


def parsed(**changes):
    settings = {name: dict(part) if isinstance(part, dict) else part for name, part in SETTINGS.items()}
    for key, value in changes.items():
        *sections, name = key.split("__")
        inner = settings
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return PretrainMLM.parse(settings, "test")


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "/elsewhere/a"},
        {"output": "./runs/a"},
        {"hub__repo_id": "me/other"},
        {"hub__private": False},
        {"tracking__trackers": []},
        {"training__dataloader_num_workers": 2},
        {"training__num_processes": 2},
        {"training__ddp_timeout": 60},
        {"data__num_proc": None},
        {"data__files": {"train": "./corpus/../corpus/*.txt"}},
        {"data__files": {"train": ["corpus/*.txt"]}},
    ],
)
def test_places_and_helpers_may_differ(tmp_path, changes):
    record = tmp_path / "config.yaml"
    record_settings(record, parsed(), keep=False)
    record.write_text("# a note\n" + record.read_text())
    record_settings(record, parsed(**changes), keep=True)
    assert PretrainMLM.load(str(record)) == parsed(**changes)
    assert record.read_text().startswith("# a note\n")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed: 1"),
        ({"optim__learning_rate": 0.5}, "optim.learning_rate: 0.5"),
        ({"data__files": {"train": "other/*.txt"}}, "data.files.train: other/*.txt"),
        ({"training__save_steps": None}, "training.save_steps: None"),
    ],
)
def test_what_decides_the_result_must_not_differ(tmp_path, changes, said):
    record = tmp_path / "config.yaml"
    record_settings(record, parsed(), keep=False)
    before = record.read_bytes()
    with pytest.raises(UserError) as refused:
        record_settings(record, parsed(**changes), keep=True)
    assert f"holds a run with other settings (here: {said})" in str(refused.value)
    assert record.read_bytes() == before


def compared(contenders, **changes):
    names = {name: {"baseline": "tfidf"} for name in contenders} | {"a": {"model": {"name_or_path": "x/y"}}}
    data, training = {"name": "bbc_news"}, {"max_train_steps": 3}
    settings = {"output": "runs/a", "contenders": names, "reference": "a", "data": data, "training": training}
    return Compare.parse(settings | changes, "test")


def test_a_resumed_comparison_may_have_new_contenders(tmp_path):
    record, result = tmp_path / "config.yaml", tmp_path / "result.json"
    record_settings(record, compared("ab"), keep=False)
    result.write_text("{}")
    record_settings(record, compared("ab"), keep=True)
    assert result.exists()
    record_settings(record, compared("abc"), keep=True)
    assert Compare.load(str(record)) == compared("abc")
    assert not result.exists()
    for other in (compared("ab"), compared("abcd", seeds=[0, 1]), compared("abc", seed=1)):
        with pytest.raises(UserError, match="holds a run with other settings"):
            record_settings(record, other, keep=True)
    assert Compare.load(str(record)) == compared("abc")


def test_two_spellings_of_a_file_are_one_setting(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").touch()
    (tmp_path / "b.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert changed_setting({"model": {"config": "a.yaml"}}, {"model": {"config": str(tmp_path / "a.yaml")}}) is None
    assert changed_setting({"model": {"config": "a.yaml"}}, {"model": {"config": "b.yaml"}}) == "model.config: b.yaml"
    assert changed_setting({"prefix": "a.yaml"}, {"prefix": "./a.yaml"}) == "prefix: ./a.yaml"


@pytest.mark.parametrize("damage", [b"output: \xff\n", b"output: {\n", b"", b"- 1\n"])
def test_damaged_settings_are_one_line_with_a_mend(tmp_path, damage):
    record = tmp_path / "config.yaml"
    record.write_bytes(damage)
    with pytest.raises(UserError, match=r"config\.yaml.*write them into this file again, then --resume"):
        record_settings(record, parsed(), keep=True)
    assert record.read_bytes() == damage


def test_a_corpus_that_moved_with_its_run_is_the_same(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "a.txt").write_text("a word")
    monkeypatch.chdir(here)
    for old in ("a.txt", str(here / "a.txt")):
        record_settings(here / "config.yaml", parsed(data__files={"train": old}), keep=False)
        monkeypatch.chdir(tmp_path)
        record_settings(here / "config.yaml", parsed(data__files={"train": "here/a.txt"}), keep=True)  # from above
        monkeypatch.chdir(here)
    record_settings(here / "config.yaml", parsed(data__files={"train": str(here / "a.txt")}), keep=False)
    monkeypatch.chdir(tmp_path)
    here.rename(there)
    moved = parsed(data__files={"train": str(there / "a.txt")})
    record_settings(there / "config.yaml", moved, keep=True)
    (there / "b").mkdir()
    (there / "b" / "a.txt").write_text("other words")
    with pytest.raises(UserError, match=r"data\.files\.train"):
        record_settings(there / "config.yaml", parsed(data__files={"train": str(there / "b" / "a.txt")}), keep=True)
