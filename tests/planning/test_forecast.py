"""A forecast: exact counts, parts that add up, no side effects, limited time."""

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForMaskedLM

from decero.config.command_line import Call
from decero.config.devices import DEVICES
from decero.config.run_config import RunConfig
from decero.config.sections import OptimSection, TrainingSection
from decero.data.sizes import BatchSize
from decero.errors import UserError
from decero.models import DeceroEncoderConfig
from decero.planning import probe as probing
from decero.planning.cost import flops, static_memory
from decero.planning.forecast import _doubt, evaluations, forecast, micro_batch, saved_activations
from decero.planning.probe import Probe, probe, sample_load
from decero.training.evaluation import mean_loss
from decero.training.runs import Run

STEPS = {"max_train_steps": 40, "global_batch_size": 12, "per_device_batch_size": 5}


class Settings(RunConfig):
    optim: OptimSection = OptimSection()
    training: TrainingSection


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(probing, "SECONDS", 0.3)


@pytest.fixture
def foresee(rows, objective, tiny_model, tmp_path, monkeypatch):
    """Forecast a tiny run, in a folder that must stay empty."""
    monkeypatch.chdir(tmp_path)

    def run(model=None, device=None, evaluated=False, optim=None, sharded=False, **training):
        config = Settings(
            output="run", optim=OptimSection(**(optim or {})), training=TrainingSection(**STEPS | training)
        )
        config._call = Call(dry_run=True, device=DEVICES.get(device))
        accelerator = Accelerator(cpu=True)

        def evaluate(model, dataset):
            return mean_loss(accelerator, model, dataset, objective, 8)

        run = Run(accelerator, config.training, config.optim, tmp_path, sharded=sharded, config=config)
        evaluation = (rows.select(range(20)), evaluate, evaluate) if evaluated else ()
        return forecast(run, model or tiny_model(), objective, rows, *evaluation)

    return run


def test_counts_are_exact(foresee, tiny_model, rows, objective, capsys):
    found, model = foresee(), tiny_model()
    assert found.parameters == model.num_parameters()
    assert found.steps == 40
    epoch = [len(ids) for ids in rows["input_ids"]]
    assert found.load.examples == pytest.approx(len(epoch) / -(-len(epoch) // 12))
    assert found.load.tokens == pytest.approx(sum(epoch) / -(-len(epoch) // 12))
    assert found.flops == flops(model, found.load)
    printed = capsys.readouterr().out
    assert f"parameters        {found.parameters:,}, {101 * 22:,} of them embeddings\n" in printed
    assert f"training rows     {len(epoch):,} of {np.mean(epoch):.1f} tokens on average\n" in printed
    assert f"tokens a step     {found.load.tokens:,.0f} in {found.load.examples:,.0f} rows, " in printed
    assert "found by          counting: " in printed
    assert "arithmetic: FLOPs = 6 x (weights x positions + vocabulary x width x scored" in printed
    assert "measuring: a step" in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_a_forecast_changes_no_file_and_no_random_state(foresee, tmp_path, tmp_path_factory, monkeypatch):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(probing.tempfile, "tempdir", str(temporary))  # other tests probe at the same time
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    foresee(tiny(0.1), evaluated=True)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert list(tmp_path.iterdir()) == []
    assert list(temporary.iterdir()) == []


def tiny(dropout):
    sizes = {"vocab_size": 101, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = DeceroEncoderConfig(**sizes, intermediate_size=37, hidden_dropout_prob=dropout)
    with torch.random.fork_rng():
        return AutoModelForMaskedLM.from_config(config)


def test_the_time_is_the_sum_of_steps_and_evaluations(foresee):
    found = foresee(evaluated=True, eval_strategy="steps", eval_steps=15)
    assert found.step_s > 0
    assert found.train_s > 40 * found.step_s
    assert found.end_s > 0
    found = foresee(evaluated=True, eval_strategy="no")
    assert found.train_s == 40 * found.step_s


def test_the_memory_is_that_of_this_process(foresee):
    found, resident = foresee(), psutil.Process().memory_info().rss
    assert 0.5 * resident < found.memory < 4 * resident + 2**30


@pytest.mark.parametrize(
    ("strategy", "count"), [({"eval_strategy": "no"}, 0), ({"eval_strategy": "steps", "eval_steps": 5}, 3), ({}, 3)]
)
def test_evaluations_are_counted_like_in_the_loop(fit, strategy, count):
    """13 steps; an epoch of 61 rows has 6 steps of 12."""
    settings, seen = STEPS | strategy | {"max_train_steps": 13, "save_steps": None}, []
    assert evaluations(TrainingSection(**settings), 13, 6) == count
    fit(evaluate=lambda model: seen.append(1) or {"loss": 0.0}, **settings)
    assert len(seen) == count


def test_the_micro_batch_size_follows_the_settings():
    load = BatchSize(examples=64, tokens=6400, scored=960, places=6500, pairs=650000)
    assert micro_batch(load, TrainingSection(max_train_steps=1, per_device_batch_size=16), 1).examples == 16
    assert micro_batch(load, TrainingSection(max_train_steps=1, per_device_batch_size=16), 8).examples == 8
    assert micro_batch(load, TrainingSection(max_train_steps=1, per_device_batch_size="auto"), 2).examples == 32
    assert micro_batch(load, TrainingSection(max_train_steps=1, per_device_tokens=650), 1).examples == pytest.approx(
        6.4
    )


def test_activations_are_extrapolated_from_few_rows(tiny_model, rows, objective, monkeypatch):
    accelerator = Accelerator(cpu=True)
    settings = TrainingSection(**STEPS | {"global_batch_size": 48, "per_device_batch_size": 48})
    run = Run(accelerator, settings, OptimSection(), Path("run"), seed=4)
    micro = sample_load(run, rows, objective).times(48 / 61 * 2)
    exact = saved_activations(accelerator, tiny_model(), objective, rows, micro)
    monkeypatch.setattr("decero.planning.forecast.SAMPLE", 200)
    assert saved_activations(accelerator, tiny_model(), objective, rows, micro) == pytest.approx(exact, rel=0.25)


def test_a_slow_step_is_probed_with_fewer_rows(tiny_model, rows, objective, monkeypatch):
    """With a fake clock each row takes 10 ms and nothing else takes time, so a step of 40 takes 0.4 s."""
    clock = [0.0]
    accelerator, model = Accelerator(cpu=True), tiny_model()

    def tick(module, inputs, named):
        clock[0] += 0.01 * len(named["input_ids"])

    model.register_forward_pre_hook(tick, with_kwargs=True)
    monkeypatch.setattr("decero.planning.probe.time.perf_counter", lambda: clock[0])
    settings = TrainingSection(max_train_steps=9, global_batch_size=40, per_device_batch_size=40)
    run = Run(accelerator, settings, OptimSection(), Path("run"), seed=4)
    load = sample_load(run, rows, objective)
    found = probe(run, model, objective, rows, load, seconds=0.5)
    assert clock[0] < 1.5
    assert found.share < 0.5
    assert found.step_s == pytest.approx(0.01 * load.examples, rel=0.1)


def test_a_known_device_is_forecast_from_its_data_sheet(foresee, capsys, monkeypatch):
    monkeypatch.setattr("decero.planning.forecast.probe", None)  # must not run anything
    found, device = foresee(device="l4", mixed_precision="bf16", num_processes=4), DEVICES["l4"]
    static = static_memory(tiny(0.0), OptimSection())
    share = 0.5 * tiny(0.0).config.hidden_size / (tiny(0.0).config.hidden_size + 700)
    assert found.step_s == pytest.approx(found.flops / (4 * share * 121e12) + 2 * static.total / device.bandwidth)
    printed = capsys.readouterr().out
    assert "a device, fits 24 GB: weights " in printed
    assert "on 4 devices      sharded (FSDP2) weights, gradients and optimizer would take " in printed
    assert "data sheet of L4 24 GB: time = FLOPs / (4 x 2% of its peak in bf16)" in printed.replace(
        "\n" + " " * 18, " "
    )


def test_sharding_leaves_a_share_and_one_copy_of_the_weights(foresee, capsys):
    alone = foresee(device="l4", num_processes=4)
    weights = sum(p.nbytes for p in tiny(0.0).parameters())
    printed = capsys.readouterr().out.replace("\n" + " " * 18, " ")
    assert (
        f"would take {(16 / 4 + 4) / 4 * weights / 1e3:.3g} kB a device instead of {4 * weights / 1e3:.3g} kB"
        in printed
    )
    found = foresee(device="l4", num_processes=4, sharded=True)
    printed = capsys.readouterr().out.replace("\n" + " " * 18, " ")
    assert f" take {(16 / 4 + 4) / 4 * weights / 1e3:.3g} kB a device" in printed
    assert alone.memory - found.memory == pytest.approx(2 * weights)  # 16 bytes a parameter less (16 / 4 + 4)


def test_a_run_that_does_not_fit_is_reported_not_probed(foresee, capsys, monkeypatch):
    monkeypatch.setattr("decero.planning.forecast.probe", None)
    monkeypatch.setattr("decero.planning.forecast._free_memory", lambda accelerator: 1e3)
    found = foresee()
    assert found.train_s is None
    assert "MORE THAN THE FREE 1 kB: lower" in capsys.readouterr().out.replace("\n" + " " * 18, " ")


def test_a_forecast_checks_the_schedule(foresee):
    with pytest.raises(UserError, match="num_warmup_steps 60 exceeds the 40 steps"):
        foresee(optim={"num_warmup_steps": 60})


@pytest.mark.parametrize(
    ("low", "high", "load", "says"),
    [
        (1.0, 1.2, 0.5, []),
        (0.2, 8.0, 0.5, ["Not sure", "20.0 s to 13.3 min"]),
        (1.0, 1.2, 99.0, ["The machine is busy (99 programs"]),
    ],
)
def test_a_doubtful_time_says_why(low, high, load, says, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    doubt = _doubt(Probe(1.0, 9, 1.0, 0, low, high), 100)
    assert bool(doubt) == bool(says)
    assert all(part in doubt for part in says)
