"""`data.streaming: true` as a user runs it: every recipe, resuming, two processes, refused settings."""

import json

import numpy as np
import pytest

from decero.doctor.inspected_run import open_run

STREAM = "data.streaming=true", "data.buffer_size=20", "training.max_train_steps=7", "training.save_steps=2"


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def seq2seq(write_config, sentinels, shape):
    return write_config(
        "denoise",
        f"""\
output: OUTPUT
model: {{config: {shape}}}
tokenizer: {{name_or_path: {sentinels}}}
data: {{files: FILES, max_length: 31}}
training: {{max_train_steps: 40, global_batch_size: 11, per_device_batch_size: 4, logging_steps: 1}}
tracking: {{trackers: []}}
""",
    )


@pytest.fixture(scope="module")
def causal_lm(write_config, sentinels, tmp_path_factory):
    preset = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    preset.write_text(
        "model_type: decero_decoder\nvocab_size: 113\nhidden_size: 22\nnum_hidden_layers: 2\nnum_attention_heads: 1\n"
        "intermediate_size: 37\nmax_position_embeddings: 61\n"
    )
    return write_config(
        "causal",
        f"""\
output: OUTPUT
model: {{config: {preset}}}
tokenizer: {{name_or_path: {sentinels}}}
data: {{files: FILES, max_length: 31}}
training: {{max_train_steps: 40, global_batch_tokens: 170, per_device_tokens: 90, logging_steps: 1}}
tracking: {{trackers: []}}
""",
    )


@pytest.fixture(scope="module")
def streamed(launch, mlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mlm"
    launch("pretrain_mlm", mlm, f"output={folder}", *STREAM)
    return folder


class Killed(BaseException):
    pass


def test_a_killed_streamed_run_resumes_exactly(launch, mlm, streamed, tmp_path, monkeypatch):
    """60 texts in steps of seven: all 7 steps are in the first epoch. The kill comes one step after a checkpoint."""
    from decero.training import loop

    words, real = (mlm, f"output={tmp_path}/cut", *STREAM), loop.backward

    def die_at(accelerator, model, objective, loader, step):
        if step == 5:
            raise Killed
        return real(accelerator, model, objective, loader, step)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "backward", die_at)
        with pytest.raises(Killed):
            launch("pretrain_mlm", *words)
    state = json.loads((tmp_path / "cut" / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["stream"]["rows"] == 28
    launch("pretrain_mlm", *words, "--resume")
    assert losses(tmp_path / "cut") == losses(streamed)
    for name in ("model/model.safetensors", "predictions.parquet"):
        assert (tmp_path / "cut" / name).read_bytes() == (streamed / name).read_bytes()


@pytest.mark.slow
def test_two_processes_give_the_streamed_losses_of_one(launch, mlm, streamed, tmp_path, two_processes):
    launch("pretrain_mlm", mlm, f"output={tmp_path}/two", *STREAM, launcher=two_processes)
    assert np.abs(np.subtract(losses(tmp_path / "two"), losses(streamed))).max() <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["seq2seq", "causal_lm"])
def test_the_other_recipes_read_streams_too(launch, request, recipe, tmp_path):
    config = request.getfixturevalue(recipe)
    launch(f"pretrain_{recipe}", config, f"output={tmp_path}/run", *STREAM)
    assert len(losses(tmp_path / "run")) == 7
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metric"]["eval_loss" if recipe == "seq2seq" else "bits_per_byte"] > 0
    assert "eval_strategy: steps" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_dry_run_of_a_stream_prints_and_writes_nothing(launch, mlm, tmp_path):
    printed = launch("pretrain_mlm", mlm, f"output={tmp_path}/none", *STREAM, "--dry-run").stdout
    assert "training rows     a stream; its first " in printed
    assert "steps             7\n" in printed
    assert "reading and tokenising of the stream" in " ".join(printed.split())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.validation_fraction=0.1"], "cannot split off rows from a stream"),
        (["training.eval_strategy=epoch"], "a stream has no known length; set training.eval_strategy=steps"),
        (["training.max_train_steps=null", "training.num_train_epochs=1"], "set training.max_train_steps instead"),
        (["training.global_batch_size=999"], "the stream ends after"),
        (["data.text_column=txet"], "there is no column 'txet'; did you mean text?"),
    ],
)
def test_settings_that_contradict_a_stream_are_one_line(launch, mlm, tmp_path, words, line):
    refused = launch("pretrain_mlm", mlm, f"output={tmp_path}/run", *STREAM, *words, expect=2).stderr.splitlines()[-1]
    assert refused.startswith("error: ")
    assert line in refused


def test_a_budget_with_a_stream_is_refused(launch, mlm, tmp_path):
    words = f"output={tmp_path}/run", "data.streaming=true", "--budget", "1m"
    refused = launch("pretrain_mlm", mlm, *words, expect=2).stderr
    assert "error: --budget needs the number of tokens, and streams have no length; remove data.streaming" in refused


def test_the_doctor_examines_the_first_texts_of_a_stream(launch, streamed):
    work = open_run(str(streamed))
    assert len(work.folded["train"].keys) == 20
    assert set(work.folded) == {"train", "validation"}
    assert len(work.rows) >= 20
    assert work.steps == 7
