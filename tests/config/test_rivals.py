"""A value on the command line replaces what contradicts it in the file."""

import pytest

from decero.config.comparison import Compare
from decero.config.finetuning import FinetuneClassification
from decero.config.rivals import RIVALS, displace
from decero.errors import UserError

FILE = """
output: out
model: {name_or_path: some/model, revision: abc}
data: {name: bbc_news, config_name: x}
training: {max_train_steps: 9, global_batch_size: 4}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    return str(path)


def test_a_word_replaces_its_rival_in_the_file(file, capsys):
    words = ["data.files.train=a.csv", "data.files.test=b.csv", "training.num_train_epochs=2", "model.config=x.yaml"]
    config = FinetuneClassification.from_cli([file, *words, "training.global_batch_tokens=64"])
    assert (config.data.name, config.data.config_name) == (None, None)
    assert config.data.files == {"train": "a.csv", "test": "b.csv"}
    assert (config.training.max_train_steps, config.training.num_train_epochs) == (None, 2)
    assert (config.training.global_batch_size, config.training.global_batch_tokens) == (None, 64)
    assert (config.model.name_or_path, config.model.revision, config.model.config) == (None, None, "x.yaml")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "data.files on the command line replaces data.name",
        "model.config on the command line replaces model.name_or_path",
        "training.global_batch_tokens on the command line replaces training.global_batch_size",
        "training.num_train_epochs on the command line replaces training.max_train_steps",
    ]
    assert all(f"# {line}" in config.to_yaml() for line in said)


@pytest.mark.parametrize(
    "words", [["data.files.train=a", "data.name=b"], ["training.num_train_epochs=1", "training.max_train_steps=1"]]
)
def test_two_rivals_on_the_command_line_are_an_error(file, words):
    with pytest.raises(UserError, match="give exactly one of"):
        FinetuneClassification.from_cli([file, *words])


def test_a_checkpoint_replaces_a_preset_and_its_changes(file, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(
        FILE.replace("name_or_path: some/model, revision: abc", "config: x, overrides: {a: 1}")
    )
    model = FinetuneClassification.from_cli([file, "model.name_or_path=mine"]).model
    assert (model.name_or_path, model.config, model.overrides) == ("mine", None, {})
    said = "model.name_or_path on the command line replaces model.config and model.overrides\n"
    assert capsys.readouterr().err == said
    model = FinetuneClassification.from_cli([file, "model.name_or_path=mine", "model.overrides.b=2"]).model
    assert model.overrides == {"b": 2}, "overrides of the command line are meant for the checkpoint"
    assert capsys.readouterr().err == said


def test_own_texts_are_not_scored_on_those_of_the_file(file, tmp_path, capsys):
    files = "files: {train: t, validation: v, test: w}"
    (tmp_path / "run.yaml").write_text(FILE.replace("name: bbc_news, config_name: x", files))
    assert FinetuneClassification.from_cli([file, "data.files.train=a"]).data.files == {"train": "a"}
    said = "data.files.train on the command line replaces data.files.validation and data.files.test\n"
    assert capsys.readouterr().err == said
    kept = FinetuneClassification.from_cli([file, "data.files.train=a", "data.files.test=b"]).data.files
    assert kept == {"train": "a", "test": "b"}
    assert FinetuneClassification.from_cli([file, "data.files.test=b"]).data.files == {
        "train": "t",
        "validation": "v",
        "test": "b",
    }
    assert displace({"data": {"files": {"train": "a", "test": "b"}}}, ["data.files.train"], own_texts=False) == []
    settings = {"data": {"tasks": {"swap": {"files": {"train": "a", "test": "b"}}}}}
    displace(settings, ["data.tasks.swap.files.train"])
    assert settings["data"]["tasks"]["swap"]["files"] == {"train": "a"}


def test_a_value_inside_a_mapping_replaces_rivals_too():
    settings = {"data": {"name": "a", "files": {"train": "b"}}}
    assert displace(settings, ["data"]) == []  # the whole section came from the command line
    settings = {"contenders": {"ours": {"model": {"config": "a.yaml", "pretrained": ["x", "y"]}}}}
    displace(settings, ["contenders.ours.model.pretrained"])
    assert settings["contenders"]["ours"]["model"] == {"pretrained": ["x", "y"]}


def test_null_removes_an_entry_and_only_an_entry(tmp_path):
    path = tmp_path / "compare.yaml"
    path.write_text(
        "output: out\nreference: ours\ndata: {name: x}\ntraining: {max_train_steps: 1}\n"
        "contenders: {ours: {tfidf: true}, other: {model: {config: a.yaml}}}\n"
    )
    assert list(Compare.load(str(path), ["contenders.other=null"]).contenders) == ["ours"]
    settings = {"model": {"overrides": {"dropout": None}}}
    displace(settings, ["model.overrides.dropout"])
    assert settings == {"model": {"overrides": {"dropout": None}}}


def test_every_rival_is_a_setting():
    names = {name for cls in (FinetuneClassification, Compare) for name in str(cls.model_json_schema()).split("'")}
    assert {name for group in RIVALS for name in group} - {"parallel"} <= names
