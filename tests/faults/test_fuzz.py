"""Bad settings and untrusted model folders: one line each, never a traceback, nothing run, nothing written.

`make test` tries some hundreds, `make faults` (the profile `faults`) thousands.
"""

import json
import os
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from decero.config.finetuning import FinetuneClassification
from decero.config.run_config import RunConfig
from decero.data.corpus import read_parallel
from decero.data.tokenization import tokenize_documents, tokenize_pairs
from decero.errors import UserError
from decero.hub.convert import import_model

FACTOR = 12 if os.environ.get("HYPOTHESIS_PROFILE") == "faults" else 1


def fuzz(examples):
    return settings(
        max_examples=examples * FACTOR, deadline=None, derandomize=FACTOR == 1,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip


def one_line(error: UserError) -> str:
    """Return the line that the user sees; check that it is neither empty nor too long."""
    message = " ".join(str(error).split())
    assert 10 < len(message) < 1200, message
    return message


GOOD = {
    "output": "runs/x", "seed": 0, "model": {"config": "preset.yaml", "overrides": {"hidden_size": 8}},
    "data": {"files": {"train": "a.jsonl"}, "max_length": 32, "text_column": "text", "label_column": "label"},
    "objective": {"problem_type": "regression"}, "optim": {"learning_rate": 1e-3, "schedule": "linear"},
    "training": {"max_train_steps": 3, "global_batch_size": 4, "mixed_precision": "no", "packing": "auto"},
    "tracking": {"trackers": []}, "hub": {"repo_id": None},
}  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just(10**400), st.just("\x00"),
    st.just("../../etc"), st.sampled_from(["1e-3", "inf", "nan", "yes", "~", "0x10", "-1", "[", "{a"]),
)  # fmt: skip
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)


@st.composite
def settings_gone_wrong(draw):
    """Draw valid settings with one to three mistakes: a wrong value, key or section."""
    config = json.loads(json.dumps(GOOD))
    for _ in range(draw(st.integers(1, 3))):
        section = config
        while draw(st.booleans()) and (inner := [v for v in section.values() if isinstance(v, dict) and v]):
            section = draw(st.sampled_from(inner))
        key = draw(st.sampled_from(sorted(section, key=str)) if section else st.text(max_size=5))
        mistake = draw(st.sampled_from(["value", "name", "loss", "more"]))
        if mistake == "value":
            section[key] = draw(JUNK)
        elif mistake == "name":
            section[draw(st.text(min_size=1, max_size=12))] = section.pop(key, None)
        elif mistake == "loss":
            section.pop(key, None)
        else:
            section[draw(st.text(max_size=12))] = draw(JUNK)
    return config


@pytest.mark.long
@fuzz(150)
@given(config=settings_gone_wrong())
def test_broken_settings_are_read_or_refused_in_one_line(config, tmp_path):
    path = tmp_path / "config.yaml"
    try:
        with path.open("w", encoding="utf-8") as file:
            YAML().dump(config, file)
    except Exception:  # what the writer cannot write, nobody reads
        return
    try:
        read = FinetuneClassification.from_cli([str(path)])
    except UserError as error:
        one_line(error)
    else:
        assert isinstance(read, RunConfig)
        again = tmp_path / "again.yaml"
        again.write_text(read.to_yaml(), encoding="utf-8")
        assert FinetuneClassification.from_cli([str(again)]) == read


@fuzz(60)
@given(content=st.binary(max_size=200))
def test_random_bytes_as_settings_are_refused_in_one_line(content, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:  # no such bytes hold a model, data and training
        FinetuneClassification.from_cli([str(path)])
    one_line(refused.value)


KEYS = st.sampled_from(["seed", "data.max_length", "optim.x", "model", "a.b.c", "="])
WORDS = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)


@fuzz(80)
@given(words=st.lists(WORDS | st.builds("{}={}".format, KEYS, st.text(max_size=12)), min_size=1, max_size=4))
def test_random_command_lines_are_read_or_refused_in_one_line(words, tmp_path):
    path = tmp_path / "config.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(GOOD, file)
    try:
        FinetuneClassification.from_cli([str(path), *words])
    except UserError as error:
        one_line(error)
    except SystemExit:
        assert {"-h", "--help"} & set(words)


@fuzz(25)
@given(
    left=st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=8),
    right=st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=8),
)
def test_random_parallel_files_are_paired_or_refused(left, right, sentinel_tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "a.txt", Path(folder) / "b.txt"]
        for path, lines in zip(paths, (left, right), strict=True):
            path.write_bytes("\n".join(lines).encode())
        try:
            pairs = read_parallel({"train": list(map(str, paths))})["train"]
            rows = tokenize_pairs(pairs, sentinel_tokenizer, max_source_length=9, max_target_length=9, num_proc=1)
            assert all(0 < len(row["labels"]) <= 9 for row in rows)
        except UserError as error:
            one_line(error)


# --- untrusted model folders


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def model_folder(tiny_bert, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tokenizer, tmp_path_factory):
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 37}
    BertForMaskedLM(BertConfig(vocab_size=97, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def header(size):
    return lambda path: path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])


def field(**fields):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


HARMS = {
    "a header larger than the file": ("model.safetensors", header(2**62)),
    "a header of no size": ("model.safetensors", header(0)),
    "weights cut short": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-7])),
    "weights that are text": ("model.safetensors", lambda path: path.write_text("hello")),
    "no weights": ("model.safetensors", Path.unlink),
    "a config that is no json": ("config.json", lambda path: path.write_text("{")),
    "a config that is a list": ("config.json", lambda path: path.write_text("[]")),
    "an unknown model": ("config.json", field(model_type="nonsense")),
    "sizes that do not fit the weights": ("config.json", field(hidden_size=40)),
    "a negative size": ("config.json", field(num_hidden_layers=-1)),
    "a size that is text": ("config.json", field(hidden_size="large")),
    "code of others": ("config.json", field(auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"})),
    "code from elsewhere": ("config.json", field(auto_map={"AutoModel": "../../evil--evil.Model"}, model_type="evil")),
    "a broken tokenizer": ("tokenizer.json", lambda path: path.write_text("{}")),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_fake_model_folder_never_runs_code(harm, model_folder, tmp_path):
    name, change = HARMS[harm]
    change(model_folder / name)
    trap = tmp_path / "sprung"
    (model_folder / "evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    try:
        import_model(str(model_folder), tmp_path / "out")
    except UserError as error:
        one_line(error)
        assert not (tmp_path / "out").exists()
    assert not trap.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_never_opened_under_any_name(name, model_folder, tmp_path):
    import pickle

    trap = tmp_path / "sprung"
    (model_folder / "model.safetensors").unlink()
    (model_folder / name).write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(UserError) as refused:
        import_model(str(model_folder), tmp_path / "out")
    one_line(refused.value)
    assert not trap.exists()
    assert not (tmp_path / "out").exists()


def test_weight_files_outside_the_folder_are_refused(model_folder, tmp_path):
    (tmp_path / "secret.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes())
    (model_folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": "../secret.safetensors"}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError) as refused:
        import_model(str(model_folder), tmp_path / "out")
    one_line(refused.value)
    assert not (tmp_path / "out").exists()


def test_an_empty_corpus_does_not_crash(tokenizer):
    with pytest.raises(UserError, match="no text is left"):
        tokenize_documents(Dataset.from_dict({"text": ["", " \n"]}), tokenizer, max_length=8)
