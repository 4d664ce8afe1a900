"""What ends a run at its edges: a full disk, NaN in the last update, a replaced folder, damaged logs, dead workers."""

import errno
import json
import os
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from decero.config.sections import TrainingSection
from decero.errors import UserError, WriteError, run_script
from decero.training import checkpoint, runs
from decero.training.best_checkpoint import drop_last
from decero.training.checkpoint import damage, steps_in
from decero.training.metrics_log import MetricsLog, read_metrics
from decero.training.runs import Run

TIMES = ("tokens_per_s", "data_wait")
OFTEN = {"eval_strategy": "steps", "eval_steps": 3}


def weights(result):
    return [p.detach().clone() for p in result.model.parameters()]


def log(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(folder / "metrics.jsonl")]


def assert_same(result, folder, whole, whole_folder):
    assert all(map(torch.equal, weights(result), weights(whole)))
    assert log(folder) == log(whole_folder)


def failing(error, at):
    """An evaluation that fails at its call number `at`, and gives the same metrics each time otherwise."""
    calls = []

    def evaluate(model):
        calls.append(1)
        if len(calls) == at:
            raise error
        return {"loss": float(next(model.parameters()).detach().sum())}

    return evaluate


@pytest.mark.long
@pytest.mark.parametrize("save_steps", [None, 500])
@pytest.mark.parametrize("best", [{}, {"metric_for_best_model": "eval_loss"}])
def test_the_trained_weights_are_kept_before_evaluating(fit, tiny_model, tmp_path, best, save_steps):
    """Until the record is written: evaluating and scoring may fail. The first checkpoint may be the last step's."""
    settings = {"save_steps": save_steps, **OFTEN, **best}
    whole = fit(tmp_path / "a", model=tiny_model(0.1), evaluate=failing(None, 0), **settings)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "b", model=tiny_model(0.1), evaluate=failing(ZeroDivisionError(), 2), **settings)
    assert steps_in(tmp_path / "b" / "checkpoints")[-1] == 6
    again = fit(tmp_path / "b", model=tiny_model(0.1), evaluate=failing(None, 0), resume=True, **settings)
    assert_same(again, tmp_path / "b", whole, tmp_path / "a")
    assert again.best == whole.best
    run = Run(Accelerator(cpu=True), TrainingSection(max_train_steps=6, **settings), None, tmp_path / "b")
    drop_last(run, again.best)
    kept = [int(again.best["step"])] if best else []
    assert steps_in(tmp_path / "b" / "checkpoints") == (kept if save_steps is None else sorted({*kept, 6}))


def test_a_run_goes_on_with_the_rows_it_began_with(fit, rows, tmp_path):
    """Another corpus would give other steps and another schedule, another tokenizer other tokens: both silently."""
    fit(max_train_steps=6)
    one, two = rows[0]["input_ids"][1:3]
    swapped = {one: two, two: one}
    other = rows.map(lambda row: {"input_ids": [swapped.get(i, i) for i in row["input_ids"]]})
    with pytest.raises(UserError, match="the training data or the tokenizer has changed since the run began; restore"):
        fit(resume=True, dataset=other)
    with pytest.raises(UserError, match=rf"has changed \({len(rows)} rows, now {len(rows) - 3}\) since the run began"):
        fit(resume=True, dataset=rows.select(range(len(rows) - 3)))
    assert fit(resume=True, dataset=rows.map(lambda row: row)).step == 6


def test_a_damaged_best_checkpoint_costs_no_step(fit, tmp_path, capsys):
    """It is noticed when the run is resumed. The best of the evaluations from there on is taken."""
    scores = iter([0.9, 0.5])
    best = {"metric_for_best_model": "eval_accuracy", "save_steps": 2, **OFTEN, "eval_steps": 2}
    with pytest.raises(StopIteration):
        fit(evaluate=lambda model: {"accuracy": next(scores)}, **best)
    assert steps_in(tmp_path / "checkpoints")[0] == 2
    path = tmp_path / "checkpoints" / "step-00000002" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = fit(evaluate=lambda model: {"accuracy": 0.7}, resume=True, **best)
    assert result.best == {"eval_accuracy": 0.7, "step": 6}
    assert "step-00000002: the best weights are lost: " in capsys.readouterr().out


def test_a_run_that_stopped_early_trains_no_further(fit, tmp_path):
    """Also when its best checkpoint is damaged."""
    losses = iter(range(9))
    best = {"metric_for_best_model": "eval_loss", "save_steps": None, **OFTEN, "eval_steps": 1}
    fit(evaluate=lambda model: {"loss": next(losses)}, early_stopping_patience=2, **best)
    (tmp_path / "checkpoints" / "step-00000001" / "model.safetensors").unlink()
    assert fit(evaluate=lambda model: {"loss": 9.0}, early_stopping_patience=2, resume=True, **best).step == 3


def test_a_best_last_evaluation_is_not_repeated(fit, capsys):
    """Its checkpoint names it, not the best one before, which is deleted."""
    losses = iter((3.0, 2.0, 1.0))
    best = {"metric_for_best_model": "eval_loss", "save_steps": 2, **OFTEN, "eval_steps": 2}
    done = fit(evaluate=lambda model: {"loss": next(losses)}, **best)
    again = fit(evaluate=lambda model: {"loss": next(losses)}, resume=True, **best)
    assert again.best == done.best == {"eval_loss": 1.0, "step": 6}
    assert "lost" not in capsys.readouterr().out


def test_a_finished_training_does_no_step_again(fit, tmp_path, capsys):
    fit(save_steps=None)
    assert not list((tmp_path / "checkpoints" / "step-00000006").glob("optimizer*"))
    fit(save_steps=None, resume=True)
    assert "at step 6 of 6" in capsys.readouterr().out


def test_room_for_the_weights_is_taken_before_training(fit, tmp_path, monkeypatch):
    taken = []

    def fallocate(handle, start, size):
        taken.append(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    model_bytes = 4 * sum(p.numel() for p in fit(tmp_path / "other").model.parameters())
    assert not taken  # with save_steps a full disk costs the steps since the last checkpoint only
    with pytest.raises(
        WriteError, match=r"no room for the .* of the trained weights, so nothing is trained: .*No space left on device"
    ):
        fit(save_steps=None)
    assert taken[0] >= model_bytes
    assert not read_metrics(tmp_path / "metrics.jsonl")
    monkeypatch.undo()
    fit(save_steps=None, resume=True)
    assert not (tmp_path / ".room").exists()


def test_a_disk_that_fills_up_loses_no_line_and_no_step(fit, tmp_path, monkeypatch, capsys):
    whole = fit(tmp_path / "a", save_steps=None)
    append, rewrite, full = MetricsLog._append, MetricsLog._rewrite, [False]

    def tried(real):
        def write(self):
            full[0] = full[0] or len(self.rows) == 3
            if full[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(self)

        return write

    monkeypatch.setattr(MetricsLog, "_append", tried(append))
    monkeypatch.setattr(MetricsLog, "_rewrite", tried(rewrite))
    with pytest.raises(WriteError, match="No space left on device"):
        fit(tmp_path / "b", save_steps=None)
    assert capsys.readouterr().err.count("training goes on and keeps its lines in memory") == 1
    monkeypatch.undo()
    assert len(log(tmp_path / "b")) == 2
    assert_same(fit(tmp_path / "b", save_steps=None, resume=True), tmp_path / "b", whole, tmp_path / "a")


# --- NaN


@pytest.mark.parametrize("settings", [{"save_steps": 1}, {"save_steps": None}, {"save_steps": 1, **OFTEN}])
def test_weights_with_nan_are_never_saved(fit, tiny_model, tmp_path, settings):
    """AdamW without eps: 0 / 0 for the embeddings of tokens that no text has."""
    with pytest.raises(UserError) as stopped:
        fit(
            model=tiny_model(tie_word_embeddings=False), optim={"arguments": {"eps": 0.0}},
            evaluate=lambda model: {"loss": 1.0}, **settings,
        )  # fmt: skip
    assert "holds NaN or infinity, so it is not saved" in str(stopped.value)
    assert "nothing was updated" not in str(stopped.value)
    assert not steps_in(tmp_path / "checkpoints")


def test_nan_in_the_last_update_is_found(fit, tiny_model, tmp_path):
    model, optim = tiny_model(tie_word_embeddings=False), {"arguments": {"eps": 0.0}}
    with pytest.raises(UserError, match=r"step 1: .* holds NaN or infinity, so it is not saved"):
        fit(model=model, max_train_steps=1, save_steps=None, optim=optim)


def test_the_last_good_checkpoint_survives_nan(fit, tiny_model, tmp_path):
    model = tiny_model()

    def spoil(_):
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.bias[0] = float("nan")
        return {"loss": 1.0}

    with pytest.raises(UserError, match=r"step 4: .*holds NaN.*earlier checkpoints are kept"):
        fit(model=model, save_steps=2, eval_strategy="steps", eval_steps=4, evaluate=spoil)
    assert steps_in(tmp_path / "checkpoints") == [2]
    assert fit(save_steps=2, resume=True).step == 6


# --- the folder


@contextmanager
def claimed(folder):
    runs._claim(folder, resume=False)
    try:
        yield
    finally:
        runs._LOCKS.pop().release()


@pytest.mark.parametrize("save_steps", [4, None])
@pytest.mark.parametrize("replaced", [True, False])
def test_a_run_notices_that_its_folder_is_another(fit, tmp_path, save_steps, replaced):
    folder = tmp_path / "run"

    def delete(_):
        shutil.rmtree(folder)
        if replaced:
            folder.mkdir()
            (folder / ".lock").touch()
        return {"loss": 1.0}

    with claimed(folder), pytest.raises(WriteError, match="run was deleted or replaced while this run used it"):
        fit(folder, save_steps=save_steps, logging_steps=6, evaluate=delete, eval_strategy="steps", eval_steps=3)
    assert [p.name for p in folder.glob("*")] == ([".lock"] if replaced else [])


def test_model_and_record_stay_out_of_anothers_folder(tiny_model, tmp_path):
    folder = tmp_path / "run"
    run = Run(Accelerator(cpu=True), TrainingSection(max_train_steps=6), None, folder)
    with claimed(folder):
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / ".lock").touch()
        for write in (lambda: run.save_model(tiny_model()), lambda: runs.on_main(run.accelerator, folder.rmdir)):
            with pytest.raises(WriteError, match="was deleted or replaced"):
                write()
    assert [p.name for p in folder.iterdir()] == [".lock"]


# --- damaged files


def flip(lines):
    return [lines[0], b"\xff" + lines[1][1:], *lines[2:]]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "line 2 is damaged, 1 losses up to step 2 are missing"),
        (lambda lines: [lines[0], b"3\n", *lines[1:]], "line 2 is damaged"),
        (lambda lines: [*lines[:3], lines[3][:9] + b"\n"], "line 4 is damaged, 1 losses up to step 4 are missing"),
        (lambda lines: lines[2:], "2 losses up to step 2 are missing"),
        (lambda lines: [], "4 losses up to step 4 are missing"),
        (lambda lines: [*lines[:4], lines[4][:9]], None),  # what a kill leaves
        (lambda lines: [*lines[:3], lines[3].strip()], None),
    ],
)
def test_lost_lines_of_the_log_are_reported(fit, tmp_path, capsys, harm, said):
    fit(max_train_steps=4, save_steps=4)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(harm([*path.read_bytes().splitlines(True), b'{"step": 5, "loss": 1}\n'])))
    capsys.readouterr()
    fit(max_train_steps=4, save_steps=4, resume=True)
    printed = capsys.readouterr().out
    assert (f"{path}: {said}; the run goes on" in printed) if said else (str(path) not in printed)
    assert all(json.loads(line)["step"] <= 4 for line in path.read_text().splitlines())


@pytest.mark.parametrize("text", [b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"state.json": 3}', b'{"state.json": {}}'])
def test_a_damaged_manifest_is_no_traceback(fit, tmp_path, text):
    fit(save_steps=6)
    path = tmp_path / "checkpoints" / "step-00000006"
    (path / checkpoint.MANIFEST).write_bytes(text)
    assert checkpoint.MANIFEST in damage(path)


# --- workers


def test_a_killed_worker_is_one_line(fit, objective, tmp_path, capsys):
    main, collate = os.getpid(), objective.collate

    def killed(rows):
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)  # what the system does when memory runs out
        return collate(rows)

    with pytest.raises(SystemExit) as ended:
        run_script(lambda: fit(objective=replace(objective, collate=killed), dataloader_num_workers=1))
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "a worker process was killed" in line
    assert "lower training.dataloader_num_workers" in line
    assert "--resume" in line
