"""--budget: the choice fits the time, survives resuming, and respects the command line."""

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForMaskedLM

from decero.config.run_config import RunConfig
from decero.config.sections import DataSection, ModelSection, OptimSection, TrainingSection
from decero.config.yaml_files import read_yaml
from decero.errors import UserError
from decero.execution.build import build_model
from decero.planning import budget as budgeting
from decero.planning.budget import within_budget
from decero.training.evaluation import mean_loss
from decero.training.runs import Run

pytestmark = pytest.mark.long

SETTINGS = """\
model: {{config: {preset}, overrides: {{hidden_dropout_prob: 0.1}}}}
data: {{name: none}}
output: {output}
optim: {{learning_rate: 1.0e-3}}
training: {{max_train_steps: 20, global_batch_size: 4, per_device_batch_size: 4}}
tracking: {{trackers: []}}
"""


class Settings(RunConfig):
    options = (*RunConfig.options, "--budget", "--device")

    model: ModelSection
    data: DataSection
    optim: OptimSection = OptimSection()
    training: TrainingSection


@pytest.fixture
def spend(tmp_path, preset, rows, objective, tokenizer, monkeypatch):
    """Return a function that applies a budget and returns the resulting settings."""
    monkeypatch.setattr(budgeting, "PROBE_SECONDS", 0.15)
    path, output = tmp_path / "run.yaml", tmp_path / "run"
    path.write_text(SETTINGS.format(preset=preset, output=output))

    held_out = rows.select(range(9))

    def run(*words, most_epochs=40.0, row_length=48):
        output.mkdir(exist_ok=True)
        config, accelerator = Settings.from_cli([str(path), *words]), Accelerator(cpu=True)

        def build(section):
            return build_model(section, AutoModelForMaskedLM, tokenizer, 48, config.seed)

        def evaluate(model, dataset):
            return mean_loss(accelerator, model, dataset, objective, 8)

        run = Run(accelerator, config.training, config.optim, output, config.seed, config.resume, config=config)
        return within_budget(run, build, objective, rows, held_out, evaluate, most_epochs, row_length).config

    return run


def test_the_choice_is_complete_printed_and_recorded(spend, tmp_path, capsys):
    before = torch.get_rng_state()
    config = spend("--budget", "1m")
    assert torch.equal(torch.get_rng_state(), before)
    shape = config.model.overrides
    assert shape["hidden_dropout_prob"] == 0.1
    assert shape["hidden_size"] == 64 * shape["num_attention_heads"] >= 128
    assert config.training.max_train_steps > 1
    assert config.training.num_train_epochs is None
    assert config.optim.num_warmup_steps == round(0.05 * config.training.max_train_steps)
    assert 0 < config.optim.learning_rate <= 1e-3
    assert config.training.eval_strategy == "steps"
    assert config.training.eval_steps == config.training.save_steps <= config.training.max_train_steps
    printed = capsys.readouterr().out
    written = (tmp_path / "run" / "config.yaml").read_text()
    for line in ("--budget 1m: ", "  shape: ", "  speed: ", "  tokens: ", "  steps: ", "  batch: "):
        assert f"\n{line}" in f"\n{printed}"
        assert f"\n# {line}" in f"\n{written}"
    assert "Hoffmann et al. 2022" in written
    again = Settings.load(str(tmp_path / "run" / "config.yaml"))
    assert again == config
    assert read_yaml(tmp_path / "run" / "config.yaml") == config.model_dump()


def test_a_probe_packs_rows_as_long_as_the_runs(spend, monkeypatch):
    """Those of permutation language modelling hold a query for each target behind the text."""
    optimize, lengths = budgeting.optimize, set()

    def watched(accelerator, model, objective, dataset, max_length, *rest, **named):
        lengths.add(max_length)
        return optimize(accelerator, model, objective, dataset, max_length, *rest, **named)

    monkeypatch.setattr(budgeting, "optimize", watched)
    spend("--budget", "1m", row_length=57)
    assert lengths == {57}


def test_the_choice_fits_the_time(spend, capsys):
    """First the corpus (a thousand tokens, two epochs) is the limit, then the time."""
    spend("--budget", "1m", most_epochs=2.0)
    assert "2 epochs, the most for this objective is 2" in capsys.readouterr().out
    config = spend("--budget", "1m", "seed=1", most_epochs=1e6)
    printed = capsys.readouterr().out
    assert "as many as fit in the time" in printed or "as many as the next larger shape needs" in printed
    step_s = float(printed.split("  steps: ")[1].split(" of ")[1].split(" s")[0])
    assert config.training.max_train_steps * step_s <= 0.9 * 60 * 1.01


def test_the_command_line_overrides_the_choice(spend, capsys):
    words = "optim.learning_rate=5e-4", "optim.schedule=constant", "training.global_batch_size=6"
    config = spend("--budget", "1m", *words, "model.overrides.hidden_size=22")
    assert (config.optim.learning_rate, config.optim.schedule) == (5e-4, "constant")
    assert config.training.global_batch_size == 6
    assert config.model.overrides == {"hidden_dropout_prob": 0.1, "hidden_size": 22}
    printed = capsys.readouterr().out
    assert "shape: unchanged, " in printed
    assert "the command line sets its size" in printed
    kept = "optim.learning_rate, optim.schedule, training.global_batch_size"
    assert f"unchanged, from the command line: {kept}\n" in printed


def test_a_checkpoint_keeps_its_shape_and_gets_steps(spend, tiny_model, tokenizer, tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "checkpoint")
    config = spend("--budget", "1m", f"model={{name_or_path: {tmp_path}/checkpoint}}")
    assert config.model.overrides == {}
    assert config.training.max_train_steps > 1
    assert "shape: unchanged, " in capsys.readouterr().out


def test_a_resumed_run_keeps_its_choice(spend, tmp_path, monkeypatch):
    config = spend("--budget", "1m")
    (tmp_path / "run" / "metrics.jsonl").write_text("")  # the run has started
    monkeypatch.setattr(budgeting, "probe", None)  # must not measure again
    assert spend("--budget", "1m", "--resume") == config
    assert spend("--budget", "1m", "--resume").call.notes == config.call.notes
    with pytest.raises(UserError, match="was not started with --budget 2m; resume it with its own settings"):
        spend("--budget", "2m", "--resume")
    with pytest.raises(UserError, match=r"holds a run with other settings \(here: seed: 1\)"):
        spend("--budget", "1m", "--resume", "seed=1")


def test_a_budget_without_time_to_train_is_refused(spend):
    with pytest.raises(
        UserError, match=r"--budget: 0\.01s leaves no time to train: reading and probing took"
    ) as refused:
        spend("--budget", "0.01s")
    assert "\n" not in str(refused.value)


def test_a_dry_run_of_a_budget_writes_nothing(spend, tmp_path):
    spend("--budget", "1m", "--dry-run")
    assert list((tmp_path / "run").iterdir()) == []
