"""Out of memory: every process repeats the step with smaller micro-batches; the result does not change."""

import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from decero.config.sections import TrainingSection
from decero.errors import UserError
from decero.training.checkpoint import _fingerprint
from decero.training.memory import keep_freed_memory

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
ERRORS = {
    "an accelerator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "torch on a CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "torch on another": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes"),
    "python": MemoryError(),
}
WHOLE = {"per_device_batch_size": 12}
SGD = {"name": "sgd", "learning_rate": 0.5}  # Adam divides by small gradients, which enlarges rounding errors


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(model, expected, atol=1e-6):
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(model)[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def memory_lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("out of memory")]


@pytest.fixture
def short_of_memory(tiny_model):
    """Build a model that fails on more than `rows` rows (or tokens), but not in its first `after` passes.

    The first two passes have one example. They find the unused parameters and check the projection.
    """

    def build(rows, *, dropout=0.0, error=ERRORS["an accelerator"], after=2, tokens=False):
        model, calls = tiny_model(dropout), []

        def refuse(layer, args):
            calls.append(args[0][..., 0].numel() if tokens else len(args[0]))
            if calls[-1] > rows and len(calls) > after:
                raise error

        model.model.layers[-1].register_forward_pre_hook(refuse)  # after earlier layers have drawn their dropout
        return model

    return build


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_running_out_of_memory_does_not_change_the_result(fit, short_of_memory, tmp_path, capsys, error):
    expected = fit(tmp_path / "enough", optim=SGD, **WHOLE).model
    assert_same(fit(tmp_path / "short", model=short_of_memory(5, error=error), optim=SGD, **WHOLE).model, expected)
    assert memory_lines(capsys) == [
        "out of memory at step 1: micro-batches of 6 instead of 12 rows from here on",
        "out of memory at step 1: micro-batches of 3 instead of 6 rows from here on",
    ]


def test_workers_follow_the_new_size(fit, short_of_memory, tmp_path, capsys):
    expected = fit(tmp_path / "enough", optim=SGD, **WHOLE).model
    short = short_of_memory(6, after=4)
    assert_same(fit(tmp_path / "short", model=short, optim=SGD, dataloader_num_workers=2, **WHOLE).model, expected)
    assert memory_lines(capsys) == ["out of memory at step 3: micro-batches of 6 instead of 12 rows from here on"]


def test_out_of_memory_in_backward_leaves_no_partial_gradient(fit, tiny_model, tmp_path, capsys):
    """The fifth backward pass fails between two layers, when only some gradients include this micro-batch."""
    expected = fit(tmp_path / "enough", optim=SGD).model
    model, passes = tiny_model(), []

    def refuse(gradient):
        passes.append(1)
        if len(passes) == 5:
            raise ERRORS["an accelerator"]

    model.model.layers[1].mlp.up_proj.weight.register_hook(refuse)
    assert_same(fit(tmp_path / "short", model=model, optim=SGD).model, expected)
    assert memory_lines(capsys) == ["out of memory at step 2: micro-batches of 3 instead of 5 rows from here on"]


def test_a_repeated_step_draws_the_dropout_of_the_smaller_size(fit, tiny_model, short_of_memory, tmp_path):
    """Two steps of full batches, then halves: exactly as a run that starts with this setting."""
    preset = tmp_path / "preset"
    fit(preset, model=tiny_model(0.1), max_train_steps=2, save_steps=2, optim={"schedule": "constant"}, **WHOLE)
    state = preset / "checkpoints" / "step-00000002" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"micro_batch": 6}))
    manifest = state.with_name("manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"state.json": _fingerprint(state)}))
    expected = fit(preset, model=tiny_model(0.1), resume=True, optim={"schedule": "constant"}, **WHOLE).model
    short = short_of_memory(6, dropout=0.1, after=4)
    assert_same(fit(tmp_path / "short", model=short, optim={"schedule": "constant"}, **WHOLE).model, expected, atol=0)


def test_a_resumed_run_keeps_the_smaller_size(fit, tiny_model, short_of_memory, tmp_path, capsys):
    steps = {"save_steps": 4, "optim": {"schedule": "constant"}} | WHOLE
    whole = fit(tmp_path / "whole", model=short_of_memory(6, dropout=0.1), **steps).model
    fit(tmp_path / "cut", model=short_of_memory(6, dropout=0.1), max_train_steps=4, **steps)
    assert len(memory_lines(capsys)) == 2
    assert_same(fit(tmp_path / "cut", model=tiny_model(0.1), resume=True, **steps).model, whole, atol=0)
    assert memory_lines(capsys) == []


def test_a_token_limit_is_halved_in_tokens(fit, short_of_memory, tmp_path, capsys):
    tokens = {"per_device_batch_size": None, "per_device_tokens": 150, "optim": SGD}
    expected = fit(tmp_path / "enough", **tokens).model
    assert_same(fit(tmp_path / "short", model=short_of_memory(80, tokens=True), **tokens).model, expected)
    (line,) = memory_lines(capsys)
    assert line.startswith("out of memory at step 1: micro-batches of ")
    assert line.endswith(" tokens from here on")


def test_auto_uses_the_full_share_or_what_fits(fit, short_of_memory, tmp_path, capsys):
    expected, auto = fit(tmp_path / "enough", optim=SGD, **WHOLE).model, {"per_device_batch_size": "auto", "optim": SGD}
    assert_same(fit(tmp_path / "auto", **auto).model, expected, atol=0)
    assert memory_lines(capsys) == []
    assert_same(fit(tmp_path / "short", model=short_of_memory(7), **auto).model, expected)
    assert memory_lines(capsys) == ["out of memory at step 1: micro-batches of 6 instead of 12 rows from here on"]


def test_one_example_that_does_not_fit_ends_the_run_with_advice(fit, short_of_memory):
    line = "out of memory at step 1: one example alone does not fit; set training.gradient_checkpointing=true or lower"
    with pytest.raises(UserError, match=line):
        fit(model=short_of_memory(0))
    with pytest.raises(UserError, match=r"does not fit; lower data\.max_length or take a smaller model"):
        fit(model=short_of_memory(0), gradient_checkpointing=True)
    with pytest.raises(UserError, match="out of memory before the first step: one example alone"):
        fit(model=short_of_memory(0, after=0))


def test_other_errors_are_not_mistaken_for_out_of_memory(fit, short_of_memory):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(model=short_of_memory(4, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"global_batch_size": 8, "global_batch_tokens": 99}, "global_batch_size and training.global_batch_tokens"),
        ({"global_batch_size": None}, "global_batch_size and training.global_batch_tokens"),
        ({"per_device_batch_size": "auto", "per_device_tokens": 99}, "batch_size and training.per_device_tokens"),
    ],
)
def test_a_budget_is_given_in_exactly_one_way(settings, names):
    with pytest.raises(ValueError, match=f"give exactly one of training.*{names}; set the other to null"):
        TrainingSection(max_train_steps=1, **settings)


def test_token_budget_settings_survive_a_round_trip():
    training = TrainingSection(max_train_steps=1, global_batch_tokens=99, per_device_tokens=9)
    assert (training.global_batch_size, training.per_device_batch_size) == (None, None)
    assert TrainingSection(**training.model_dump()) == training


@pytest.mark.slow
def test_all_processes_shrink_when_one_runs_out_of_memory(fit, rows, tokenizer_folder, tmp_path):
    rows.save_to_disk(tmp_path / "rows")
    launcher = "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml"
    words = "--main_process_port", "0", "tests/training/on_two_processes.py", tokenizer_folder, tmp_path / "rows"
    done = subprocess.run(
        [sys.executable, *launcher, *words, tmp_path],
        cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if line.startswith("out of memory")] == [
        "out of memory at step 1: micro-batches of 3 instead of 5 rows from here on",
        "out of memory at step 1: micro-batches of 2 instead of 3 rows from here on",
        "out of memory at step 1: micro-batches of 3 instead of 5 rows from here on",
        "out of memory at step 1: micro-batches of 2 instead of 3 rows from here on",
        "out of memory at step 1: micro-batches of 1 instead of 2 rows from here on",
    ], done.stderr[-3000:]
    mend = "set training.gradient_checkpointing=true or lower data.max_length"
    # Not compared as a whole line: another process may write in between.
    assert f"error: out of memory at step 1: one example alone does not fit; {mend}" in done.stderr, done.stderr[-6000:]
    assert done.returncode == 1  # of the launcher; its processes end with 2
    assert "exitcode  : 2" in done.stderr
    enough, short = (load_file(tmp_path / f"{name}.safetensors") for name in ("enough", "short"))
    alone = fit(max_train_steps=4, optim=SGD).model.state_dict()
    for name, value in enough.items():
        torch.testing.assert_close(short[name], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(alone[name], value, rtol=0, atol=1e-5)


def count_page_faults():
    """Print the page faults of 20 tensors of 40 MB in a row, without the setting and with it."""

    def filled():
        torch.ones(10**7)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(10**7)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    plain = filled()
    keep_freed_memory()
    print(plain, filled())


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a setting of glibc's allocator"
)
def test_freed_memory_is_kept_for_the_next_step(server, tmp_path):
    done = server.run("tests.training.test_memory:count_page_faults", [], place=tmp_path)
    assert done.code == 0, done.err
    plain, kept = map(int, done.out.split())
    assert kept < 0.1 * plain
