"""Checkpoints: whole or not there, tied weights tied, the best one never deleted."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from decero.errors import UserError
from decero.training.checkpoint import latest, load_checkpoint, load_weights, prune, save_checkpoint


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
def test_a_checkpoint_brings_back_weights_optimizer_and_random_state(stepped, tiny_model, tmp_path, tie):
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
    assert latest(tmp_path).name == "step-00000001"
    save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 2})
    assert latest(tmp_path).name == "step-00000002"
    assert {p.suffix for p in latest(tmp_path).iterdir()} == {".safetensors", ".json"}


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        (tmp_path / f"step-{step:08d}").mkdir()
    prune(tmp_path, 1, tmp_path / "step-00000002")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_checkpoint_that_lacks_a_file_is_named(stepped, tmp_path, name):
    accelerator, (model, optimizer) = Accelerator(cpu=True), stepped()
    path = save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 1})
    (path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing; delete the folder"):
        load_checkpoint(path, accelerator, model, optimizer)


def test_a_tensor_that_is_missing_or_new_is_named(stepped, tmp_path):
    accelerator, (model, optimizer) = Accelerator(cpu=True), stepped()
    path = save_checkpoint(tmp_path, accelerator, model, optimizer, {"step": 1})
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weights"] = tensors.pop("model.norm.weight")
    save_file(tensors, path / "model.safetensors", metadata={"tied": "[]"})
    with pytest.raises(UserError, match=r"does not fit the model of this run at .*norm\.weight|lm_head"):
        load_weights(path, model)
