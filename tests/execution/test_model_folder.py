"""Model folders of others: every damaged file is one line, nothing pickled is opened, code runs only if pinned."""

import json
import os
import pickle
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig

from decero.config.sections import ModelSection
from decero.data.tokenizer import load_tokenizer
from decero.errors import UserError
from decero.execution.build import build_model, check_vocab_size
from decero.execution.model_folder import open_checkpoint
from decero.inference.loading import load

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def sound(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    sizes = {"vocab_size": 101, "hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    AutoModelForMaskedLM.from_config(BertConfig(**sizes, intermediate_size=29)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "model")


class Opened:
    def __reduce__(self):
        return os.mkdir, ("opened",)  # in the current folder


def index(folder, weight_map):
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def sharded(folder, change):
    """Split the weights in two files with an index; change(first, second, weight_map)."""
    tensors = load_file(folder / "model.safetensors")
    names, parts = sorted(tensors), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {name: parts[i % 2] for i, name in enumerate(names)}
    for part in parts:
        save_file({n: tensors[n] for n in names if weight_map[n] == part}, folder / part, metadata={"format": "pt"})
    change(*(folder / part for part in parts), weight_map)
    index(folder, weight_map)


def damaged(name, folder):
    """Damage a sound folder."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole = weights.read_bytes()
    if name == "cut":
        weights.write_bytes(whole[:9000])
    elif name == "empty":
        weights.write_bytes(b"")
    elif name == "header too long":
        weights.write_bytes((2**62).to_bytes(8, "little") + whole[8:])
    elif name == "header no JSON":
        weights.write_bytes(whole[:8] + b"x" * (len(whole) - 8))
    elif name == "only pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Opened()))
    elif name == "index of pickle":
        (folder / "a.bin").write_bytes(pickle.dumps(Opened()))
        index(folder, {"bert.embeddings.word_embeddings.weight": "a.bin"})
    elif name == "index absolute":
        index(folder, {"a": "/etc/passwd"})
    elif name == "index outside":
        shutil.move(weights, folder.parent / "model.safetensors")
        index(folder, {"a": "../model.safetensors"})
    elif name == "index list":
        index(folder, ["a"])
    elif name == "index nested":
        index(folder, {"a": ["model.safetensors"]})
    elif name == "index empty":
        index(folder, {})
    elif name == "index no JSON":
        weights.rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_bytes(b"\xff{")
    elif name == "shard missing":
        sharded(folder, lambda first, second, weight_map: second.unlink())
    elif name == "shard wrong":
        sharded(folder, lambda first, second, weight_map: shutil.copyfile(first, second))
    elif name == "link outside":
        shutil.move(weights, folder.parent / "elsewhere.safetensors")
        weights.symlink_to(folder.parent / "elsewhere.safetensors")
    elif name == "config no JSON":
        config.write_text("{")
    elif name == "config no UTF-8":
        config.write_bytes(b'{"model_type": "b\xffrt"}')
    elif name == "config list":
        config.write_text("[]")
    elif name == "config deep":
        config.write_text("[" * 100_000)
    elif name == "config without type":
        config.write_text("{}")
    elif name == "config architectures":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": True}))
    elif name == "config missing":
        config.unlink()
    elif name == "config sparse":
        os.truncate(config, 2**29)
    elif name.endswith("pipe"):
        (folder / name.split()[0]).unlink(missing_ok=True)
        os.mkfifo(folder / name.split()[0])
    elif name.endswith("loop"):
        (folder / name.split()[0]).unlink()
        (folder / name.split()[0]).symlink_to(folder / name.split()[0])
    elif name.endswith("device"):
        (folder / name.split()[0]).unlink()
        (folder / name.split()[0]).symlink_to("/dev/zero")


DAMAGES = {
    "cut": "not a complete safetensors file",
    "empty": "not a complete safetensors file",
    "header too long": "not a complete safetensors file",
    "header no JSON": "not a complete safetensors file",
    "only pickle": r"pytorch_model\.bin is not read, because loading it may run code",
    "index of pickle": r"a\.bin are not read",
    "index absolute": "/etc/passwd are outside the folder",
    "index outside": "are outside the folder",
    "index list": "invalid index of weights",
    "index nested": "invalid index of weights",
    "index empty": "invalid index of weights",
    "index no JSON": "invalid JSON",
    "shard missing": r"model-00002-of-00002\.safetensors: no such file",
    "shard wrong": r"tensor \S+ is not in model-00002-of-00002\.safetensors",
    "link outside": "are outside the folder",
    "config no JSON": r"config\.json: invalid JSON",
    "config no UTF-8": r"config\.json: invalid JSON",
    "config list": "no model_type",
    "config deep": "nested too deeply",
    "config without type": "no model_type",
    "config architectures": "architectures is True, not a list",
    "config missing": r"there is no config\.json",
    "config sparse": "536,870,912 bytes",
    "config.json pipe": "this is a pipe",
    "model.safetensors pipe": "this is a pipe",
    "tokenizer.json pipe": "this is a pipe",
    "chat_template.jinja pipe": "this is a pipe",
    "tokenizer_config.json loop": "cannot read this file",
    "config.json device": "this is a device",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_one_line_everywhere(name, folder, tokenizer, monkeypatch):
    damaged(name, folder)
    monkeypatch.chdir(folder.parent)
    section = ModelSection(name_or_path=str(folder))
    for read in (
        lambda: build_model(section, AutoModelForMaskedLM, tokenizer, 16, seed=0),
        lambda: load(str(folder), "fill"),
    ):
        with pytest.raises(UserError, match=DAMAGES[name]) as refused:
            read()
        assert "\n" not in str(refused.value)
    assert not (folder.parent / "opened").exists()


def test_a_model_max_length_that_is_no_number_is_one_line(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": {"a": [1]}}))
    with pytest.raises(UserError, match=r"model_max_length is .* not a number"):
        load_tokenizer(str(folder))
    with pytest.raises(UserError, match=r"model_max_length is .* not a number"):
        load(str(folder), "fill")


def test_a_sound_folder_in_shards_is_read(folder, tokenizer):
    sharded(folder, lambda first, second, weight_map: None)
    build_model(ModelSection(name_or_path=str(folder)), AutoModelForMaskedLM, tokenizer, 16, seed=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300, "no such folder"),
        ("/" + "x" * 300, "no such folder"),
        ("/dev/null", "this is a device; give a folder"),
        ("/dev/null/x", "no such folder"),
        ("{file}", "this is a file; give its folder"),
        ("{pipe}", "this is a named pipe; give a folder"),
        ("{loop}", "this is a loop of symbolic links; give a folder"),
        ("{empty}", r"there is no config\.json"),
        ("nul\0", "no such folder"),
    ],
)
def test_what_is_no_model_folder_is_one_line(name, said, tmp_path, tokenizer):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").mkdir()
    name = name.format(**{each: tmp_path / each for each in ("file", "pipe", "loop", "empty")})
    section = ModelSection(name_or_path=name)
    for read in (
        lambda: build_model(section, AutoModelForMaskedLM, tokenizer, 16, seed=0),
        lambda: check_vocab_size(section, 100),
        lambda: load(name, "fill"),
    ):
        with pytest.raises(UserError, match=said):
            read()
    with pytest.raises(UserError, match=r"tokenizer|this is|no such folder"):
        load_tokenizer(name)


# --- remote code


CODE = """
from pathlib import Path
Path({ran!r}).touch()
from transformers import BertConfig, BertForSequenceClassification
class Config(BertConfig):
    model_type = "evil"
class Model(BertForSequenceClassification):
    config_class = Config
"""


@pytest.fixture
def with_code(folder, tmp_path):
    """Give the model code that leaves a file when it runs; auto_map(name of a class) -> reference."""

    def write(refer, where="config.json", architectures=("BertForMaskedLM",)):
        (folder / "code.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
        path = folder / where
        config = json.loads(path.read_text())
        if where == "config.json":
            config |= {"model_type": "evil", "architectures": list(architectures)}
        path.write_text(json.dumps(config | {"auto_map": refer}))
        return folder

    return write


HERE = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
FOREIGN = [
    HERE | {"AutoConfig": "mallory/code--code.Config"},
    HERE | {"AutoModel": "mallory/code--code.Model"},
    HERE | {"AutoTokenizer": ["mallory/code--code.Slow", None]},
    HERE | {"AutoTokenizer": [None, "mallory/code--code.Fast"]},
    HERE | {"AutoModel": {"nested": ["mallory/code--code.Model"]}},
]


@pytest.mark.parametrize("auto_map", FOREIGN)
def test_code_of_another_repository_is_refused(auto_map, with_code, tmp_path, tokenizer):
    for where in ("config.json", "tokenizer_config.json"):
        folder = str(with_code(auto_map, where))
        with pytest.raises(UserError, match=r"code of another repository, mallory/code; .* mallory/code@COMMIT"):
            load(folder, "classify", revision=COMMIT, trust_remote_code=True)
        section = ModelSection(name_or_path=folder, revision=COMMIT, trust_remote_code=True)
        with pytest.raises(UserError, match="code of another repository, mallory/code"):
            build_model(section, AutoModelForSequenceClassification, tokenizer, 16, seed=0)
        with pytest.raises(UserError, match="code of another repository, mallory/code"):
            check_vocab_size(section, 100)
    assert not (tmp_path / "ran").exists()


def test_code_of_another_repository_is_pinned_by_name(with_code):
    folder = str(with_code(HERE | {"AutoConfig": "mallory/code--code.Config"}))
    pinned = {"revision": COMMIT, "trust_remote_code": True}
    for wrong in ("mallory/code", "mallory/code@main", f"@{OTHER}", f"other/code@{OTHER}", f"mallory/code@{OTHER[:7]}"):
        with pytest.raises(UserError, match=r"code_revision .* names no commit|code of another repository"):
            open_checkpoint(folder, **pinned, code_revision=wrong)
    found = open_checkpoint(folder, **pinned, code_revision=f"mallory/code@{OTHER}")
    assert found.code == {"trust_remote_code": True, "code_revision": OTHER}


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:7], COMMIT[:39], "refs/pr/1", f"{COMMIT}0", ""])
def test_only_a_whole_commit_is_a_pin(revision, with_code, tmp_path):
    folder = str(with_code(HERE))
    with pytest.raises(UserError, match="give all 40 digits"):
        load(folder, "classify", revision=revision, trust_remote_code=True)
    with pytest.raises(ValueError, match=r"set model\.revision to a commit"):
        ModelSection(name_or_path=folder, revision=revision, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_code_outside_the_folder_is_refused(with_code, tmp_path):
    folder = str(with_code(HERE | {"AutoConfig": f"{tmp_path}/evil.Config"}))
    with pytest.raises(UserError, match="outside the folder"):
        open_checkpoint(folder, revision=COMMIT, trust_remote_code=True)


def test_code_runs_only_if_allowed(with_code, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = str(with_code(HERE))
    with pytest.raises(UserError, match="needs its own Python code; read it, then give --trust-remote-code"):
        load(folder, "classify")
    with pytest.raises(UserError, match=r"then set model\.trust_remote_code=true"):
        build_model(ModelSection(name_or_path=folder), AutoModelForSequenceClassification, tokenizer, 16, seed=0)
    assert not (tmp_path / "ran").exists()
    section = ModelSection(name_or_path=folder, revision=COMMIT, trust_remote_code=True)
    model = build_model(section, AutoModelForSequenceClassification, tokenizer, 16, seed=0)
    assert type(model).__name__ == "Model"
    assert (tmp_path / "ran").exists()
