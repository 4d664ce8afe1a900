"""Checkpoints: complete or absent, tied weights stay tied, the best one is never deleted."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from decero.config.sections import TrainingSection
from decero.errors import UserError
from decero.training import checkpoint
from decero.training.best_checkpoint import Selection
from decero.training.checkpoint import (
    damage,
    load_checkpoint,
    load_weights,
    newest_valid,
    prune,
    save_checkpoint,
    steps_in,
    to_resume,
)


@pytest.fixture
def stepped(tiny_model):
    def build(tie=True):
        model = tiny_model(tie_word_embeddings=tie)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        loss = model(input_ids=torch.arange(5, 12)[None], labels=torch.arange(5, 12)[None]).loss
        loss.backward()
        optimizer.step()
        return model, optimizer

    return build


@pytest.mark.parametrize("tie", [True, False])
def test_a_checkpoint_restores_weights_optimizer_and_rng(stepped, tiny_model, tmp_path, tie):
    accelerator = Accelerator(cpu=True)
    model, optimizer = stepped(tie)
    path = save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 7, "tokens": 3})
    expected = torch.rand(3)
    fresh = tiny_model(tie_word_embeddings=tie)
    other = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    torch.manual_seed(99)
    assert load_checkpoint(path, accelerator, fresh, other) == {"step": 7, "tokens": 3}
    assert torch.equal(torch.rand(3), expected)
    for (name, a), b in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b), name
    for mine, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        a, b = optimizer.state[mine], other.state[theirs]
        assert a.keys() == b.keys()
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


def test_a_checkpoint_is_never_seen_half_written(stepped, tmp_path, monkeypatch):
    accelerator, (model, optimizer) = Accelerator(cpu=True), stepped()
    save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 1})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 2, "bad": object()})
    assert newest_valid(tmp_path).name == "step-00000001"
    save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 2})
    assert newest_valid(tmp_path).name == "step-00000002"
    assert {p.suffix for p in newest_valid(tmp_path).iterdir()} == {".safetensors", ".json"}


def test_a_kill_while_a_step_is_saved_again_loses_nothing(stepped, tmp_path, monkeypatch):
    accelerator, (model, optimizer) = Accelerator(cpu=True), stepped()
    path = save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 1})

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as at:
        at.setattr(checkpoint, "remove", kill)  # the old one is deleted after the new one has its place
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 1, "again": True})
    assert newest_valid(tmp_path) == path
    shutil.rmtree(tmp_path / ".step-00000001.old", ignore_errors=True)
    path.rename(tmp_path / ".step-00000001.old")  # a kill between two renames
    assert newest_valid(tmp_path) is None
    assert to_resume(tmp_path, accelerator) == path
    save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 1, "again": True})
    assert "again" in (path / "state.json").read_text()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("steps", "newest", "settings", "best", "left"),
    [
        ((1, 2, 3, 4), 4, {}, 2, (2, 4)),
        ((100, 200, 300), 300, {"save_total_limit": 2}, None, (200, 300)),
        ((200, 237, 300), 237, {}, 200, (200, 237)),  # 300 is damaged; the newest save stays
        ((100, 200, 237), 237, {"average_last": 3, "save_steps": 100}, None, (100, 200, 237)),
        ((100, 200, 237, 300), 300, {"average_last": 3, "save_steps": 100}, None, (100, 200, 300)),
    ],
)
def test_pruning_keeps_the_checkpoints_that_are_needed(tmp_path, steps, newest, settings, best, left):
    for step in steps:
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "step-00000200-good").mkdir()  # a copy that the user made
    selection = Selection(TrainingSection(max_train_steps=400, **settings), tmp_path)
    selection.best = {"step": best} if best else {}
    selection.prune(newest)
    assert steps_in(tmp_path) == list(left)
    assert (tmp_path / "step-00000200-good").is_dir()


def test_the_mean_uses_exactly_the_planned_checkpoints(stepped, tmp_path):
    accelerator, (model, optimizer) = Accelerator(cpu=True), stepped()
    weight = model.get_input_embeddings().weight
    for step in (2, 4, 5, 6):  # a signal saved step 5
        with torch.no_grad():
            weight.fill_(step)
        save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": step})
    selection = Selection(TrainingSection(max_train_steps=6, average_last=3, save_steps=2), tmp_path)
    selection.load(model)
    assert weight.unique().tolist() == [4.0]  # of 2, 4 and 6
    shutil.rmtree(tmp_path / "step-00000002")
    with pytest.raises(
        UserError, match=r"3 checkpoints are to be averaged, but only 2 are left; delete .* with --resume"
    ):
        selection.load(model)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


FILES = ["model.safetensors", "optimizer.safetensors", "random-0.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_a_damaged_checkpoint_is_skipped_with_a_reason(stepped, tmp_path, name, harm, capsys):
    accelerator, (model, optimizer) = Accelerator(cpu=True), stepped()
    for step in (1, 2):
        path = save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": step})
        assert damage(path) is None
    harm(path / name)
    assert to_resume(tmp_path, accelerator).name == "step-00000001"
    printed = capsys.readouterr().out
    named = "" if (name, harm) == ("manifest.json", flip) else name  # a changed manifest blames another file
    assert f"{path}: skipped: {named}" in printed
    harm(tmp_path / "step-00000001" / name)
    with pytest.raises(UserError, match="no checkpoint is intact; delete this folder to start the run again"):
        to_resume(tmp_path, accelerator)


def test_without_checkpoints_there_is_nothing_to_resume(tmp_path):
    assert to_resume(tmp_path / "checkpoints", Accelerator(cpu=True)) is None


@pytest.mark.parametrize("at", ["random-0.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_full_disk_leaves_the_previous_checkpoint_intact(stepped, tmp_path, monkeypatch, at):
    accelerator, (model, optimizer) = Accelerator(cpu=True), stepped()
    save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 1})
    save, text = checkpoint.save_file, Path.write_text

    def full(tensors, path, **more):
        if path.name == at:
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path, **more)

    def full_text(path, *words, **more):
        if path.name == at:
            raise OSError(28, "No space left on device")
        return text(path, *words, **more)

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(Path, "write_text", full_text)
    line = "step-00000002: cannot write .*No space left on device.*; the previous step-00000001 is intact"
    with pytest.raises(UserError, match=line):
        save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 2})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert newest_valid(tmp_path).name == "step-00000001"


def test_a_deleted_output_folder_is_reported_not_recreated(stepped, tmp_path):
    accelerator, (model, optimizer) = Accelerator(cpu=True), stepped()
    with pytest.raises(
        UserError, match="the output folder of the run no longer exists; there is no previous checkpoint"
    ):
        save_checkpoint(tmp_path / "run" / "checkpoints", accelerator, model, optimizer, {"step": 2})
    assert not (tmp_path / "run").exists()


def test_pruning_deletes_leftovers_of_a_killed_run(stepped, tmp_path):
    accelerator, (model, optimizer) = Accelerator(cpu=True), stepped()
    for name in (".step-00000001.tmp", ".step-00000000.old"):
        (tmp_path / name).mkdir()
    path = save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 2})
    prune(tmp_path, {2})
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_unexpected_tensors_are_named(stepped, tmp_path):
    accelerator, (model, optimizer) = Accelerator(cpu=True), stepped()
    path = save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 1})
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weights"] = tensors.pop("model.norm.weight")
    save_file(tensors, path / "model.safetensors", metadata={"tied": "[]"})
    with pytest.raises(UserError, match=r"does not match the model of this run: tensor .*norm\.weight|lm_head"):
        load_weights(path, model)
