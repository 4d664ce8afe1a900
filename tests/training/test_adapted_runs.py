"""Runs that train an adapter: small checkpoints, the same bits after a kill, and no resuming on another base."""

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForMaskedLM

from decero.config.sections import ModelSection
from decero.config.training_run import PeftSection
from decero.errors import UserError
from decero.execution.adapters import adapter_of, add_adapter
from decero.execution.model_folder import open_checkpoint
from decero.execution.pretrained import load_pretrained
from decero.training.checkpoint import load_weights

PEFT = PeftSection(r=2, dropout=0.1)


@pytest.fixture
def base(tiny_model, tmp_path):
    tiny_model(0.1).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(base):
    model = load_pretrained(AutoModelForMaskedLM, open_checkpoint(str(base)), new_head=False)
    return add_adapter(model, PEFT, ModelSection(name_or_path=str(base)), AutoModelForMaskedLM, seed=3)


def failing(at):
    """An evaluation that fails at its call number `at`, and is the better the later otherwise."""
    calls = []

    def evaluate(model):
        calls.append(1)
        if len(calls) == at:
            raise ZeroDivisionError
        return {"loss": float(sum(p.detach().abs().sum() for n, p in model.named_parameters() if "lora_B" in n))}

    return evaluate


@pytest.mark.long
@pytest.mark.parametrize("settings", [{}, {"metric_for_best_model": "eval_loss"}, {"average_last": 2}])
def test_a_killed_run_with_an_adapter_ends_the_same(fit, base, tmp_path, settings):
    often = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 2} | settings
    whole = fit(tmp_path / "a", model=adapted(base), evaluate=failing(0), **often)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "b", model=adapted(base), evaluate=failing(1), **often)
    again = fit(tmp_path / "b", model=adapted(base), evaluate=failing(0), resume=True, **often)
    assert all(map(torch.equal, whole.model.state_dict().values(), again.model.state_dict().values()))
    assert whole.record()["trained_parameters"] == again.record()["trained_parameters"] > 0
    frozen = adapted(base).state_dict()
    names = adapter_of(whole.model).names
    changed = {n for n, t in whole.model.state_dict().items() if not torch.equal(t, frozen[n])}
    assert changed == names
    with safe_open(tmp_path / "b" / "checkpoints" / "step-00000006" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == names
    with safe_open(tmp_path / "b" / "checkpoints" / "step-00000006" / "optimizer.safetensors", "pt") as file:
        assert len(list(file.keys())) == 3 * len(names)  # step and two moments


def test_the_mean_of_checkpoints_is_that_of_the_matrices(fit, base, tmp_path):
    fit(tmp_path, model=adapted(base), save_steps=3, save_total_limit=2)
    paths = [tmp_path / "checkpoints" / f"step-{step:08d}" for step in (3, 6)]
    states = []
    for each in ([paths[0]], [paths[1]], paths):
        model = adapted(base)
        load_weights(each, model)
        states.append(model.state_dict())
    for name in adapter_of(model).names:
        assert torch.allclose(states[2][name], (states[0][name] + states[1][name]) / 2)


def test_a_run_resumes_on_the_same_base_only(fit, base, tmp_path, tiny_model):
    fit(tmp_path / "run", model=adapted(base), save_steps=3)
    other = tiny_model(0.1)
    with torch.no_grad():
        other.get_input_embeddings().weight[5, 7] += 1e-3
    other.save_pretrained(base)
    with pytest.raises(UserError, match=r"holds an adapter for other weights than .*base has now"):
        fit(tmp_path / "run", model=adapted(base), save_steps=3, resume=True)


def test_gradient_checkpointing_changes_nothing(fit, base, tmp_path):
    plain, checkpointed = (
        fit(tmp_path / str(on), model=adapted(base), gradient_checkpointing=on, save_steps=None) for on in (False, True)
    )
    for a, b in zip(plain.model.parameters(), checkpointed.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
