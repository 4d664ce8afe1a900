"""Model folders are written completely or not at all, and a full disk is one line."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from decero.errors import WriteError
from decero.execution.saving import bad_weight, save_pretrained, untie, whole_folder

FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),  # what tokenizers raise
    OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    OSError(errno.EPERM, os.strerror(errno.EPERM)),
]


@pytest.mark.parametrize("error", FULL, ids=str)
@pytest.mark.parametrize("older", [False, True])
def test_a_failed_write_leaves_nothing_and_names_the_folder(tmp_path, error, older):
    folder = tmp_path / "model"
    if older:
        folder.mkdir()
        (folder / "old").touch()

    def write():
        with whole_folder(folder) as partial:
            (partial / "half").write_text("h")
            raise error

    with pytest.raises(WriteError) as failed:
        write()
    assert str(failed.value).startswith(f"{folder}: cannot be written: ")
    assert "then start the same command again (a run with --resume)" in str(failed.value)
    assert [p.name for p in tmp_path.rglob("*")] == (["model", "old"] if older else [])


def test_a_new_folder_replaces_an_older_one_completely(tmp_path):
    for name in ("first", "second"):
        with whole_folder(tmp_path / "model") as partial:
            (partial / name).touch()
            assert not (tmp_path / "model" / name).exists()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["model", "second"]


def test_errors_of_the_program_stay_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="a fault of ours"), whole_folder(tmp_path / "model"):
        raise ValueError("a fault of ours")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", ["name" * 99, "file/model", "loop/model"])
def test_places_where_nothing_can_be_are_one_line(tmp_path, bad):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(WriteError, match="cannot be written"), whole_folder(tmp_path / bad):
        pass


def test_a_limit_of_file_sizes_is_one_line(tiny_model, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
    try:
        line = r"File too large; raise the limit of file sizes \(ulimit -f\)"
        with pytest.raises(WriteError, match=line), whole_folder(tmp_path / "model") as partial:
            tiny_model().save_pretrained(partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_is_not_finite_is_found(tiny_model, value, dtype):
    model = tiny_model().to(dtype)
    assert bad_weight(model) is None
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    assert bad_weight(model) == "model.layers.1.mlp.up_proj.weight"


def test_an_older_folder_comes_back_if_the_new_one_cannot(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    rename, calls = Path.rename, []

    def fail_second(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(WriteError), whole_folder(tmp_path / "model") as partial:
        (partial / "new").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["old"]


T5 = {"vocab_size": 37, "d_model": 33, "d_kv": 7, "d_ff": 41, "num_layers": 1, "num_heads": 3}


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_folder_of_t5_says_what_its_head_is(untied, scaled, tmp_path):
    """transformers 5 writes `tie_word_embeddings: true` for each; 4 would then throw a head away, or scale by it."""
    model = T5ForConditionalGeneration(T5Config(**T5, scale_decoder_outputs=scaled))
    if untied:
        untie(model)
        with torch.no_grad():
            model.lm_head.weight.normal_()
    head, keys = model.lm_head.weight, dict(model.all_tied_weights_keys)
    save_pretrained(model, tmp_path)
    assert model.lm_head.weight is head
    assert model.all_tied_weights_keys == keys
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["tie_word_embeddings"] is (scaled and not untied)
    assert said["scale_decoder_outputs"] is scaled
    again = T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.scale_decoder_outputs is scaled
    assert (again.lm_head.weight is again.shared.weight) is not untied
    assert torch.equal(again.lm_head.weight, head)


def test_another_tied_model_is_saved_as_transformers_saves_it(tmp_path):
    sizes = {"vocab_size": 37, "hidden_size": 33, "num_hidden_layers": 1, "num_attention_heads": 3}
    model = BertForMaskedLM(BertConfig(**sizes, intermediate_size=41))
    save_pretrained(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "stock")
    assert (tmp_path / "ours" / "config.json").read_text() == (tmp_path / "stock" / "config.json").read_text()
