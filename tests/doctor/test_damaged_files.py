"""Damaged folders: whatever is wrong with a file of a run, a finding names the file and the fix, and nothing waits."""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from decero.cli.main import main
from decero.config.yaml_files import read_yaml
from decero.doctor.examination import diagnose, open_run
from decero.doctor.run_files import damaged_files, read_log

CONFIG, WEIGHTS, INDEX = "model/config.json", "model/model.safetensors", "model/model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG = "model/tokenizer.json", "model/tokenizer_config.json"
GENERATION, LOG, RECORD, SETTINGS = "model/generation_config.json", "metrics.jsonl", "result.json", "config.yaml"
CHECKPOINT = "checkpoints/step-00000010"
GARBAGE = random.Random(0).randbytes(500)
DEEP = "[" * 100_000 + "]" * 100_000


def content(value):
    """Write other bytes into the file."""
    return lambda path: path.write_bytes(value if isinstance(value, bytes) else value.encode())


def cut(size):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def fields(**changes):
    """Change fields of a JSON file; None removes one."""

    def change(path):
        found = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in found.items() if value is not Ellipsis}))

    return change


def instead(make):
    """Put something that is no regular file in the place of the file."""

    def change(path):
        path.unlink(missing_ok=True)
        make(path)

    return change


def a_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket has at most 108 characters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def a_link_to(target):
    return lambda path: path.symlink_to(target)


def tensors(change):
    def rewrite(path):
        found = load_file(path)
        save_file(change(found), path, metadata={"format": "pt"})

    return rewrite


def not_finite(value):
    def change(found):
        name = next(name for name in sorted(found) if name.endswith("mlp.up_proj.weight"))
        found[name][0, 0] = value
        return found

    return change


def index(text):
    """Move the weights into a part, and write an index."""

    def change(path):
        (path.parent / "model.safetensors").rename(path.parent / "model-00001-of-00001.safetensors")
        path.write_text(text)

    return change


def names(file):
    return json.dumps({"metadata": {}, "weight_map": {"lm_head.bias": file}})


PIPES = {"a pipe": os.mkfifo, "a loop of links": lambda path: path.symlink_to(path.name), "a folder": os.mkdir}
PIPES |= {"a socket": a_socket, "an endless device": a_link_to("/dev/zero"), "a terminal": a_link_to("/dev/tty")}
KINDS = {  # name -> file, damage, words of the finding
    "weights cut short": (WEIGHTS, cut(5000), "no complete safetensors file"),
    "empty weights": (WEIGHTS, content(b""), "no complete safetensors file"),
    "garbage as weights": (WEIGHTS, content(GARBAGE), "no complete safetensors file"),
    "a pickle as weights": (WEIGHTS, content(b"\x80\x04."), "no complete safetensors file"),
    "a header beyond the file": (WEIGHTS, content(struct.pack("<Q", 2**62) + b"{}"), "header too large"),
    "a header of brackets": (WEIGHTS, content(struct.pack("<Q", 9**7) + b"[" * 9**7), "invalid JSON in header"),
    "no weights": (WEIGHTS, lambda path: path.unlink(), "no such file"),
    "no tensors": (WEIGHTS, tensors(lambda found: {}), "it holds no tensors"),
    "nan": (WEIGHTS, tensors(not_finite(float("nan"))), "mlp.up_proj.weight has values that are not finite"),
    "inf": (WEIGHTS, tensors(not_finite(float("inf"))), "mlp.up_proj.weight has values that are not finite"),
    "a missing tensor": (
        WEIGHTS,
        tensors(lambda found: {n: t for n, t in found.items() if "norm.bias" not in n}),
        "norm.bias is missing",
    ),
    "a missing head": (
        WEIGHTS, tensors(lambda found: {n: t for n, t in found.items() if "lm_head" not in n}), "lm_head",
    ),
    "names with a prefix": (
        WEIGHTS, tensors(lambda found: {f"_orig_mod.{n}": t for n, t in found.items()}), "did you mean _orig_mod.",
    ),
    "an index to nowhere": (INDEX, index(names("model-00002-of-00002.safetensors")), "no such file"),
    "an index that leaves": (INDEX, index(names("../../other.safetensors")), "is no safetensors file of this folder"),
    "an absolute index": (INDEX, index(names("/etc/passwd")), "is no safetensors file of this folder"),
    "an index to a pickle": (INDEX, index(names("pytorch_model.bin")), "is no safetensors file of this folder"),
    "an index of numbers": (INDEX, index('{"weight_map": {"a": 3}}'), "does not say which file has which tensor"),
    "an index that is a list": (INDEX, index("[]"), "this is no JSON object"),
    "an index cut short": (INDEX, index('{"weight_map":'), "this is no JSON"),
    "a config cut short": (CONFIG, cut(20), "this is no JSON"),
    "a config in Latin-1": (CONFIG, content(b'{"a": "\xf1"}'), "this is not UTF-8"),
    "a config that is a list": (CONFIG, content("[]"), "this is no JSON object"),
    "a config that is null": (CONFIG, content("null"), "this is no JSON object"),
    "a nested config": (CONFIG, content(DEEP), "nested too deeply"),
    "no config": (CONFIG, lambda path: path.unlink(), "no such file"),
    "no model_type": (CONFIG, fields(model_type=...), "model_type is None"),
    "a list as model_type": (CONFIG, fields(model_type=["bert"]), "names no kind of model"),
    "an unknown model_type": (CONFIG, fields(model_type="nonsense"), "describes no model"),
    "another model_type": (CONFIG, fields(model_type="bert"), "names no model with a head of type bert"),
    "no architectures": (CONFIG, fields(architectures=...), "names no model with a head"),
    "a number as architectures": (CONFIG, fields(architectures=3), "names no model with a head"),
    "text as a size": (CONFIG, fields(hidden_size="large"), "describes no model"),
    "null as a size": (CONFIG, fields(hidden_size=None), "describes no model"),
    "a negative size": (CONFIG, fields(num_hidden_layers=-1), "num_hidden_layers is -1; give a number from 0"),
    "a billion layers": (CONFIG, fields(num_hidden_layers=10**9), "give a number from 0 to 10000"),
    "an enormous number": (CONFIG, fields(hidden_size=10**400), "describes no model"),
    "a wide model": (CONFIG, fields(hidden_size=10**6), "hidden_size is 1000000, but no tensor of the weights"),
    "wide layers": (CONFIG, fields(intermediate_size=10**9), "intermediate_size is 1000000000, but the largest"),
    "other layers": (CONFIG, fields(intermediate_size=38), "but config.json makes it ["),
    "another vocabulary": (CONFIG, fields(vocab_size=90), "vocab_size is 90, but no tensor of the weights"),
    "a dropout above 1": (CONFIG, fields(hidden_dropout_prob=3.0), "give a number from 0 to 1"),
    "nan in the config": (CONFIG, content('{"model_type": "bert", "layer_norm_eps": NaN}'), "layer_norm_eps is nan"),
    "a padding id beyond": (CONFIG, fields(pad_token_id=5000), "the model cannot be loaded"),
    "labels that are a list": (CONFIG, fields(id2label=[1, 2]), "describes no model"),
    "a tokenizer cut short": (TOKENIZER, cut(300), "this is no JSON"),
    "garbage as tokenizer": (TOKENIZER, content(GARBAGE), "this is not UTF-8"),
    "an empty tokenizer": (TOKENIZER, content("{}"), "cannot read a tokenizer in this folder"),
    "a nested tokenizer": (TOKENIZER, content(DEEP), "nested too deeply"),
    "no tokenizer": (TOKENIZER, lambda path: path.unlink(), "cannot read a tokenizer in this folder"),
    "an unknown part": (TOKENIZER, fields(normalizer={"type": "x"}), "cannot read a tokenizer in this folder"),
    "a list of settings": (TOKENIZER_CONFIG, content("[]"), "this is no JSON object"),
    "a length of text": (TOKENIZER_CONFIG, fields(model_max_length="long"), "model_max_length is 'long'"),
    "a length below 0": (TOKENIZER_CONFIG, fields(model_max_length=-5), "model_max_length is -5"),
    "an odd padding side": (TOKENIZER_CONFIG, fields(padding_side="up"), "cannot read a tokenizer in this folder"),
    "garbage to generate": (GENERATION, content(GARBAGE), "this is not UTF-8"),
    "a list to generate": (GENERATION, content("[]"), "this is no JSON object"),
    "text as a limit": (GENERATION, content('{"max_length": "x"}'), "max_length is 'x', which is no number"),
    "an enormous limit": (GENERATION, content(json.dumps({"max_length": 10**30})), "max_length is 1000000000000"),
    "an end token beyond": (GENERATION, content('{"eos_token_id": [9999]}'), "eos_token_id is 9999, but"),
    "a log of zeros": (LOG, content(bytes(1000)), "1 of 1 lines are no log lines, the first is line 1"),
    "a log of lists": (LOG, content("[1]\n" * 20), "20 of 20 lines are no log lines"),
    "a log of other types": (LOG, content('{"step": "a"}\n{"loss": 1}\n'), "2 of 2 lines are no log lines"),
    "steps of 400 digits": (LOG, content(f'{{"step": {10**400}}}\n' * 3), "3 of 3 lines are no log lines"),
    "steps of 5,000 digits": (LOG, content(f'{{"step": {"9" * 5000}}}\n' * 3), "3 of 3 lines are no log lines"),
    "a nested log": (LOG, content(f"{DEEP}\n"), "1 of 1 lines are no log lines"),
    "bytes in the log": (LOG, lambda path: path.write_bytes(b"\xff\n" + path.read_bytes()), "the first is line 1"),
    "a record cut short": (RECORD, cut(5), "this is no record"),
    "a record that is a list": (RECORD, content("[1]"), "this is no record"),
    "a record in Latin-1": (RECORD, content(b'{"a": "\xf1"}'), "this is no record"),
    "a nested record": (RECORD, content(DEEP), "this is no record"),
    "scores that are a list": (RECORD, fields(metric=[1]), "metric has values of another type"),
    "scores that are text": (RECORD, fields(metric={"accuracy": "high"}), "metric has values of another type"),
    "a split that is a list": (RECORD, fields(split=["test"]), "split has values of another type"),
    "a checkpoint without files": (CHECKPOINT, lambda path: [p.unlink() for p in path.iterdir()], "no such file"),
    "a checkpoint cut short": (CHECKPOINT, lambda path: cut(100)(path / "model.safetensors"), "is incomplete"),
    "another manifest": (CHECKPOINT, lambda path: content("[1]")(path / "manifest.json"), "is incomplete"),
    "a nested manifest": (CHECKPOINT, lambda path: content(DEEP)(path / "manifest.json"), "cannot be read"),
    "a pipe as manifest": (CHECKPOINT, lambda path: instead(os.mkfifo)(path / "manifest.json"), "this is a pipe"),
    "a file as checkpoint": ("checkpoints/step-00000020", content("x"), "this is no folder"),
    "a loop as checkpoint": ("checkpoints/step-00000020", instead(a_link_to("step-00000020")), "this is no folder"),
    "a file in the model": ("model/more.json", os.mkfifo, "this is a pipe"),
} | {
    f"{kind} as {file}": (file, instead(make), "")
    for kind, make in PIPES.items()
    for file in (CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, GENERATION, LOG, RECORD)
}  # fmt: skip
PARTS = {
    "a model that is a file": ("model", content("x"), "this is no folder"),
    "an empty model": ("model", lambda path: path.mkdir(), "no such file"),
    "a model that is a loop": ("model", a_link_to("model"), "this is no folder"),
    "a model that is a pipe": ("model", os.mkfifo, "this is no folder"),
    "checkpoints in a file": ("checkpoints", content("x"), "this is no folder"),
    "checkpoints in a loop": ("checkpoints", a_link_to("checkpoints"), "this is no folder"),
}


@pytest.fixture(autouse=True)
def _no_endless_wait():
    """A test that waits for a pipe fails instead."""

    def stop(*_):
        raise TimeoutError("the doctor waits")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="module")
def saved(house, tmp_path_factory):
    """Save a model as a run does; return its folder."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    from decero.data.tokenizer import load_tokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(**read_yaml(house / "encoder.yaml")))
    model.save_pretrained(folder)
    load_tokenizer(str(house / "wordpiece")).save_pretrained(folder)
    return folder


@pytest.fixture
def finished(write, saved, healthy_log):
    """A finished run with a model and a checkpoint."""
    folder = write("pretrain_mlm", log=healthy_log, result={"metric": {"eval_loss": 1.0}, "split": "validation"})
    shutil.copytree(saved, folder / "model")
    checkpoint = folder / CHECKPOINT
    checkpoint.mkdir(parents=True)
    weights = (saved / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(weights)
    (checkpoint / "state.json").write_text("{}")
    manifest = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in {"model.safetensors": weights, "state.json": b"{}"}.items()
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_intact_run_has_no_damage(finished):
    assert list(damaged_files(finished)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_damage_names_the_file_and_the_fix(kind, finished):
    file, damage, words = KINDS[kind]
    damage(finished / file)
    found = list(damaged_files(finished))
    assert found, kind
    for finding in found:
        assert finding.severity in ("warn", "bad")
        assert finding.mend
        assert "Traceback" not in finding.line()
    assert any(words in finding.what for finding in found), [finding.line() for finding in found]
    places = str(finished / file), str(finished / "model")  # of a tokenizer that several files describe
    assert all(finding.where.startswith(places) for finding in found)


@pytest.mark.parametrize("kind", PARTS)
def test_a_folder_that_is_none_is_a_finding(kind, finished):
    name, make, words = PARTS[kind]
    shutil.rmtree(finished / name)
    make(finished / name)
    found = list(damaged_files(finished))
    assert any(words in each.what for each in found), found
    assert all(each.where.startswith(str(finished / name)) for each in found)


SETTINGS_KINDS = {
    "cut short": lambda path: cut(30)(path),
    "binary": content(GARBAGE),
    "UTF-16": content("output: x\n".encode("utf-16")),
    "a list": content("[1]"),
    "empty": content(""),
    "repeats itself": content("a: &a [*a]"),
    "nested": content(f"a: {DEEP}"),
    "a pipe": instead(os.mkfifo),
    "a loop": instead(a_link_to("config.yaml")),
    "a folder": instead(os.mkdir),
    "a device": instead(a_link_to("/dev/zero")),
}


@pytest.mark.parametrize("kind", SETTINGS_KINDS)
def test_damaged_settings_are_a_finding_among_others(kind, finished):
    SETTINGS_KINDS[kind](finished / SETTINGS)
    (finished / RECORD).write_text("{")
    record, settings = diagnose(str(finished))
    assert (record.severity, record.where) == ("bad", str(finished / RECORD))
    assert (settings.check, settings.severity) == ("settings", "bad")
    assert str(finished / SETTINGS) in settings.what
    assert settings.mend


def test_checks_use_what_is_intact(finished, monkeypatch, capfd):
    """A damaged model, record and line of the log leave the checks of corpus, tokens and curve."""
    monkeypatch.setattr("decero.doctor.weights.STEPS", 2)
    cut(100)(finished / WEIGHTS)
    (finished / RECORD).write_text("[1]")
    lines = (finished / LOG).read_bytes().splitlines(keepends=True)
    (finished / LOG).write_bytes(b"".join([*lines[:50], b'{"step": 51, "loss": "\xff"}\n', *lines[50:]]))
    with pytest.raises(SystemExit) as end:
        main(["doctor", str(finished)])
    out = capfd.readouterr().out
    assert end.value.code == 1
    assert "Traceback" not in out
    assert f"bad   files       {finished / WEIGHTS}: no complete safetensors file" in out
    assert f"bad   files       {finished / RECORD}: this is no record" in out
    assert (
        f"warn  files       {finished / LOG}: 1 of {len(lines) + 1} lines are no log lines, the first is line 51" in out
    )
    for check in ("duplicates", "leakage", "rows", "tokenizer", "layers", "curve"):
        assert any(line.split()[1] == check for line in out.splitlines()), check


@pytest.mark.parametrize("place", ["model", "tokenizer"])
def test_a_damaged_start_is_a_finding(place, finished, saved, monkeypatch):
    """A run that starts from a checkpoint or tokenizer with a pipe in its folder."""
    start = finished.parent / "start"
    shutil.copytree(saved, start)
    settings = read_yaml(finished / SETTINGS)
    settings[place] = {"name_or_path": str(start)}
    (finished / SETTINGS).write_text(json.dumps(settings))
    file = start / ("config.json" if place == "model" else "tokenizer.json")
    instead(os.mkfifo)(file)
    if place == "model":  # its kind decides on the recipe
        found = list(diagnose(str(finished)))
        assert [each.check for each in found] == ["settings"]
    found = [each for each in diagnose(str(finished), "pretrain_mlm") if each.severity == "bad"]
    assert [each.check for each in found] == ["recipe"]
    assert f"{file}: this is a pipe" in found[0].what


def test_a_lost_corpus_leaves_the_log_and_the_files(finished):
    (finished.parent / "train.jsonl").unlink()
    (finished / RECORD).write_text("{")
    found = list(diagnose(str(finished), "pretrain_mlm"))
    assert [each.check for each in found if each.severity == "bad"] == ["files", "recipe"]
    assert "train.jsonl: no such file" in found[1].what
    assert "curve" in [each.check for each in found]


def test_a_check_that_fails_is_a_finding(finished, monkeypatch):
    def breaks(work):
        yield from ()
        raise ZeroDivisionError("of a library")

    monkeypatch.setattr("decero.doctor.examination.CHECKS", (("log", breaks),))
    [found] = diagnose(str(finished), "pretrain_mlm")
    assert (found.check, found.severity) == ("breaks", "bad")
    assert "ZeroDivisionError: of a library" in found.what


def test_a_line_that_a_kill_cut_short_is_no_damage(finished):
    rows = len(read_log(finished)[0])
    (finished / LOG).write_bytes((finished / LOG).read_bytes()[:-9])
    found, damage = read_log(finished)
    assert (len(found), damage) == (rows - 1, [])


@pytest.mark.parametrize(
    "name", ["n" * 300, "a/" * 3000, "run/config.yaml/x", "/dev/null/x", "/dev/zero", "/dev/tty", "a\0b", ""]
)
def test_a_name_that_no_folder_has_gives_one_line(name, capfd):
    with pytest.raises(SystemExit) as end:
        main(["doctor", name])
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_the_model_of_a_run_is_used_only_if_it_loads(finished):
    assert open_run(str(finished), "pretrain_mlm").trained == finished / "model"
    cut(100)(finished / WEIGHTS)
    assert open_run(str(finished), "pretrain_mlm").trained is None
