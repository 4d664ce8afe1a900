"""Each recipe as a user runs it, on one process and on two: its files, its output, refused settings."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
)

RECORD = {"metric", "seed", "wall_time_s", "peak_memory_bytes", "versions", "commit", "command"}
COST = {"tokens", "total_flos", "num_parameters", "steps"}


def read(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses(folder):
    return [row["loss"] for row in read(folder) if "loss" in row]


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def pretrained(launch, mlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mlm"
    launch("pretrain_mlm", mlm, f"output={folder}", "training.save_steps=25")
    return folder


def test_a_trained_tokenizer_loads_with_transformers(trained_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(trained_tokenizer)
    assert tokenizer.is_fast
    ids = tokenizer("The market feared")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the market feared"
    assert (tokenizer.pad_token_id, tokenizer.mask_token) == (0, "[MASK]")
    assert set(result(trained_tokenizer.parent)) >= RECORD


def test_pretraining_learns_and_writes_all_files(pretrained):
    made = {p.name for p in pretrained.iterdir()} - {".lock", "logs"}
    assert made == {
        ".places.json",
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "predictions.parquet",
        "result.json",
    }
    record = result(pretrained)
    assert set(record) >= RECORD | COST
    assert record["tokens"] == read(pretrained)[-2]["tokens"]
    assert losses(pretrained)[-1] < losses(pretrained)[0] - 0.3
    model = AutoModelForMaskedLM.from_pretrained(pretrained / "model")
    assert sum(p.numel() for p in model.parameters()) == record["num_parameters"]


def test_the_pretraining_loss_is_pinned(pretrained):
    """Changes of order, masks, initialisation, schedule, optimizer or tokenizer change it."""
    assert losses(pretrained)[:3] == pytest.approx(PINNED, abs=2e-3)


PINNED = [4.60024, 4.55577, 4.50016]


def test_every_scored_token_of_validation_is_predicted_once(pretrained):
    table = pd.read_parquet(pretrained / "predictions.parquet")
    assert not table.duplicated(["row", "position"]).any()
    record = result(pretrained)
    assert (table["label"] == table["prediction"]).mean() == pytest.approx(record["metric"]["eval_accuracy"])
    assert -table["log_probability"].mean() == pytest.approx(record["metric"]["eval_loss"], rel=1e-5)


def test_the_record_has_the_time_spent_on_checkpoints(pretrained):
    record = result(pretrained)
    assert 0 < record["save_time_s"] < record["wall_time_s"]


def test_a_finished_run_is_neither_repeated_nor_overwritten(launch, mlm, pretrained):
    words = mlm, f"output={pretrained}", "training.save_steps=25"
    assert "is finished" in launch("pretrain_mlm", *words, "--resume").stdout
    refused = launch("pretrain_mlm", *words, expect=2).stderr.splitlines()[-1]
    assert refused.endswith("holds another run; --resume it, delete it, or give another output=FOLDER")
    refused = launch("pretrain_mlm", *words, "seed=4", "--resume", expect=2).stderr.splitlines()[-1]
    assert "holds a run with other settings (here: seed: 4)" in refused


def test_a_run_without_a_newer_setting_can_be_resumed(launch, mlm, pretrained):
    record = pretrained / "config.yaml"
    text = record.read_text()
    older = "".join(line for line in text.splitlines(True) if "ddp_timeout" not in line)
    assert older != text
    record.write_text(older)
    try:
        printed = launch("pretrain_mlm", mlm, f"output={pretrained}", "training.save_steps=25", "--resume").stdout
    finally:
        record.write_text(text)
    assert "is finished" in printed


def test_a_dry_run_prints_and_writes_nothing(launch, mlm, tmp_path):
    printed = launch("pretrain_mlm", mlm, f"output={tmp_path}/none", "--dry-run").stdout
    assert "parameters        " in printed
    assert "tokens a step" in printed
    assert "learning_rate: 0.01" in printed
    assert not (tmp_path / "none").exists()


@pytest.mark.long
@pytest.mark.slow
def test_a_budget_run_equals_its_recorded_settings(launch, mlm, tmp_path):
    """With dropout: probing must not use random numbers of the run."""
    words = "--budget", "1m", "model.overrides.hidden_dropout_prob=0.1", "data.max_rows=10"
    printed = launch("pretrain_mlm", mlm, f"output={tmp_path}/chosen", *words).stdout
    assert "--budget 1m: " in printed
    assert "shape: 128 x " in printed
    assert 0 < result(tmp_path / "chosen")["wall_time_s"] < 60
    launch("pretrain_mlm", tmp_path / "chosen" / "config.yaml", f"output={tmp_path}/again")
    assert losses(tmp_path / "again") == losses(tmp_path / "chosen")
    again = launch("pretrain_mlm", mlm, f"output={tmp_path}/chosen", *words, "--resume").stdout
    assert "is finished" in again


@pytest.mark.parametrize(
    ("launcher", "steps"), [("server", 14), pytest.param("accelerate", 50, marks=pytest.mark.slow)]
)
def test_two_processes_give_the_loss_curve_of_one(launch, server, mlm, tmp_path, two_processes, launcher, steps):
    """In fp32 without dropout, with the same global batch: equal to 1e-5."""
    few = f"training.max_train_steps={steps}", f"training.eval_steps={steps // 2}", f"training.save_steps={steps // 2}"
    launch("pretrain_mlm", mlm, f"output={tmp_path}/one", *few)
    words = mlm, f"output={tmp_path}/two", *few
    if launcher == "accelerate":
        printed = launch("pretrain_mlm", *words, launcher=two_processes).stdout
    else:
        done = server.run("pretrain_mlm", words, ranks=2)
        assert done.code == 0, done.text
        printed = done.out
    assert "topology: 2 processes on cpu" in printed
    assert len(losses(tmp_path / "two")) == steps
    assert np.abs(np.subtract(losses(tmp_path / "two"), losses(tmp_path / "one"))).max() <= 1e-5
    ours, theirs = (result(tmp_path / name)["metric"]["eval_loss"] for name in ("two", "one"))
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_two_processes_classify_as_one_does(launch, classify, tmp_path, two_processes):
    launch("finetune_classification", classify, f"output={tmp_path}/one", launcher=())
    launch("finetune_classification", classify, f"output={tmp_path}/two", launcher=two_processes)
    assert len(losses(tmp_path / "one")) == 50
    assert np.abs(np.subtract(losses(tmp_path / "one"), losses(tmp_path / "two"))).max() <= 1e-5
    tables = [pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two")]
    assert len(tables[0]) == 30
    assert tables[0]["prediction"].tolist() == tables[1]["prediction"].tolist()
    logits = [np.stack(t["logits"]) for t in tables]
    assert np.abs(logits[0] - logits[1]).max() <= 1e-4
    for name in ("one", "two"):
        assert result(tmp_path / name)["metric"]["accuracy"] == (tables[0]["label"] == tables[0]["prediction"]).mean()


def test_a_launcher_that_silently_starts_one_process_is_refused(launch, mlm, tmp_path, monkeypatch):
    """`accelerate launch --cpu --num_processes 2` starts one process, with these variables."""
    words = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "x.py"]
    arguments = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    with monkeypatch.context() as patched:
        for name, value in prepare_simple_launcher_cmd_env(arguments)[1].items():
            patched.setenv(name, value)
        printed = launch("pretrain_mlm", mlm, f"output={tmp_path}/none", expect=2).stderr
    assert "asked for several processes but started one" in printed
    printed = launch("pretrain_mlm", mlm, f"output={tmp_path}/none", "training.num_processes=2", expect=2).stderr
    assert "training.num_processes is 2, but the launcher started 1" in printed


def test_fine_tuning_starts_from_the_pretrained_model(launch, classify, pretrained, tmp_path):
    printed = launch(
        "finetune_classification", classify, f"output={tmp_path}/run", f"model={{name_or_path: {pretrained}/model}}",
        "tokenizer={}", "training.max_train_steps=30",
        "training.metric_for_best_model=eval_accuracy", "training.eval_strategy=epoch",
    ).stdout  # fmt: skip
    assert "test accuracy" in printed
    record = result(tmp_path / "run")
    assert record["metric"]["accuracy"] > 0.9
    assert record["label_names"] == ["money", "sport"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.config.id2label == {0: "money", 1: "sport"}


def test_a_trained_model_is_scored_alone_as_its_run_scored_it(launch, classify, tmp_path):
    launch("finetune_classification", classify, f"output={tmp_path}/run", "training.max_train_steps=9")
    words = tmp_path / "run" / "config.yaml", f"model.name_or_path={tmp_path}/run/model", "--eval-only"
    printed = launch("finetune_classification", *words, f"output={tmp_path}/alone", "seed=5").stdout
    assert f"{tmp_path}/run/model: test accuracy" in printed
    made = {p.name for p in (tmp_path / "alone").iterdir()} - {".lock", "logs"}
    assert made == {".places.json", "config.yaml", "predictions.parquet", "result.json"}
    whole, alone = result(tmp_path / "run"), result(tmp_path / "alone")
    assert alone["metric"] == whole["metric"]
    assert (alone["steps"], alone["scored"]) == (0, f"{tmp_path}/run/model")
    tables = [pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("run", "alone")]
    assert np.allclose(np.stack(tables[0]["logits"]), np.stack(tables[1]["logits"]), atol=1e-6)
    few = "data.files.train=null", "data.files.validation=null", "data.where={label: sport}", f"output={tmp_path}/few"
    launch("finetune_classification", *words, *few)
    few = result(tmp_path / "few")
    assert few["label_names"] == whole["label_names"], "the labels are those of the model"
    right = tables[0][tables[0]["label"] == few["label_names"].index("sport")]
    assert few["metric"]["accuracy"] == (right["label"] == right["prediction"]).mean()
    again = launch("finetune_classification", *words, f"output={tmp_path}/alone", "seed=5", "--resume").stdout
    assert "is finished" in again


def test_a_pretrained_model_is_scored_alone(launch, mlm, pretrained, tmp_path):
    model = f"model.name_or_path={pretrained}/model"
    launch("pretrain_mlm", pretrained / "config.yaml", model, f"output={tmp_path}/alone", "--eval-only")
    assert result(tmp_path / "alone")["metric"] == pytest.approx(result(pretrained)["metric"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--eval-only"], "--eval-only scores a trained model; set model.name_or_path=FOLDER"),
        (["--eval-only", "--dry-run"], "--eval-only trains nothing, so --dry-run means nothing"),
        (["--eval-only", "model={name_or_path: PRETRAINED}"], "is missing"),
        (["--eval-only", "model.name_or_path=x", "hub.repo_id=me/x"], "--eval-only makes no model to push"),
    ],
)
def test_what_cannot_be_scored_alone_is_refused(launch, classify, pretrained, tmp_path, words, line):
    words = [word.replace("PRETRAINED", f"{pretrained}/model") for word in words]
    done = launch("finetune_classification", classify, f"output={tmp_path}/run", *words, expect=2)
    (error,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert line in error
    assert not (tmp_path / "run").exists()


def test_an_encoder_learns_to_choose(launch, corpus, trained_tokenizer, architecture, tmp_path):
    for split in ("train", "validation", "test"):
        rows = map(json.loads, (corpus / f"{split}.jsonl").read_text().splitlines())
        phrases = ["the team and the goal", "a bank in the market"]  # the first is right, wherever it stands
        lines = [
            json.dumps({"text": row["text"], "choices": phrases[:: 1 if n % 3 else -1], "answer": "BA"[n % 3 > 0]})
            for n, row in enumerate(rows)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    config = tmp_path / "choose.yaml"
    config.write_text(f"""\
output: {tmp_path}/run
model: {{config: {architecture}}}
tokenizer: {{name_or_path: {trained_tokenizer}}}
data:
  files: {{train: {tmp_path}/train.jsonl, validation: {tmp_path}/validation.jsonl, test: {tmp_path}/test.jsonl}}
  text_column: text
  label_column: answer
  max_length: 31
optim: {{learning_rate: 1e-2}}
training: {{max_train_steps: 30, global_batch_size: 7, per_device_batch_size: 3}}
tracking: {{trackers: []}}
""")
    launch("finetune_multiple_choice", config)
    record = result(tmp_path / "run")
    assert record["metric"]["accuracy"] > 0.8
    assert record["by_choices"] == {"2": {"accuracy": record["metric"]["accuracy"], "examples": 30}}
    words = f"model.name_or_path={tmp_path}/run/model", f"output={tmp_path}/alone", "--eval-only"
    launch("finetune_multiple_choice", config, *words)
    assert result(tmp_path / "alone")["metric"] == record["metric"]


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_without_a_split_to_score_on_nothing_is_trained(launch, classify, corpus, tmp_path, words):
    files = f"data.files={{train: {corpus}/train.jsonl}}"
    refused = launch("finetune_classification", classify, f"output={tmp_path}/run", files, *words, expect=2)
    assert "there is neither a test nor a validation split to score on" in refused.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("problem_type", "column", "metric"),
    [("multi_label_classification", "tags", "f1_micro"), ("regression", "score", "mse")],
)
def test_multi_label_and_regression_are_learned(launch, classify, tmp_path, problem_type, column, metric):
    words = f"objective.problem_type={problem_type}", f"data.label_column={column}", f"output={tmp_path}/run"
    launch("finetune_classification", classify, *words, "training.max_train_steps=12")
    record = result(tmp_path / "run")
    assert record["main_metric"] == metric
    assert all(math.isfinite(value) for value in record["metric"].values())
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.text_column=txet"], "there is no column 'txet'; did you mean text?"),
        (["data.label_column=lable"], "there is no column 'lable'; did you mean label?"),
        (["data.max_length=32"], "data.max_length 32 exceeds the 31 positions"),
        (["model.overrides.vocab_size=40"], "vocab_size"),
        (
            ["model.overrides.hidden_sise=40"],
            "unknown field hidden_sise of DeceroEncoderConfig; did you mean hidden_size?",
        ),
        (["model.overrides.num_attention_heads=3"], "is not a multiple of num_attention_heads 3"),
        (["tokenizer={}"], "tokenizer.name_or_path is missing"),
        (["data.max_train_rows=61"], "data.max_train_rows: 61 is outside"),
        (["optim.num_warmup_steps=60"], "optim.num_warmup_steps 60 exceeds the 50 steps"),
        (
            ["optim.arguments.betaz=1"],
            "optim.arguments.betaz: unknown argument of AdamW; did you mean optim.arguments.betas?",
        ),
        (["training.max_train_step=1"], "did you mean training.max_train_steps?"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(launch, classify, tmp_path, words, line):
    done = launch("finetune_classification", classify, f"output={tmp_path}/run", *words, expect=2)
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert line in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("{name_or_path: /dev/null}", "this is a device; give a folder"),
        ("{name_or_path: FOLDER}", "there is no config.json"),
        ("{config: FOLDER/preset.yaml}", "unknown model_type 'brt'"),
        ("{config: FOLDER/preset.yaml, overrides: {vocab_size: 89}}", "unknown model_type 'brt'"),
        ("{config: TINY, overrides: {vocab_size: 89}}", "vocab_size 90 exceeds the vocabulary of"),
    ],
)
def test_a_tokenizer_is_not_trained_for_a_model_it_cannot_fit(
    launch, write_config, architecture, tmp_path, monkeypatch, model, line
):
    monkeypatch.setattr("decero.data.tokenizer.train_tokenizer", lambda *_, **__: pytest.fail("was trained"))
    (tmp_path / "preset.yaml").write_text("model_type: brt\n")
    model = model.replace("FOLDER", str(tmp_path)).replace("TINY", str(architecture))
    settings = f"data: {{files: FILES}}\ntokenizer: {{vocab_size: 90}}\nmodel: {model}\n"
    done = launch("train_tokenizer", write_config("t", f"output: {tmp_path}/out\n{settings}"), expect=2)
    assert line in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_likelihood_is_not_measured_with_a_random_head(launch, write_config, trained_tokenizer, tmp_path):
    config = LlamaConfig(
        vocab_size=97, hidden_size=24, num_attention_heads=2, num_hidden_layers=1, intermediate_size=29, pad_token_id=0
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(trained_tokenizer, eos_token="[SEP]").save_pretrained(tmp_path / "base")
    settings = f"model: {{name_or_path: {tmp_path}/base}}\ndata: {{files: FILES, max_length: 16}}\n"
    done = launch("evaluate_causal_lm", write_config("e", f"output: {tmp_path}/out\n{settings}"), expect=2)
    assert "tensor lm_head.weight is missing; LlamaForCausalLM needs it" in done.stderr


@pytest.fixture
def comparison(write_config, pretrained, tmp_path):
    return write_config(
        "compare",
        f"""\
output: {tmp_path}/compare
reference: ours
contenders:
  ours: {{model: {{name_or_path: {pretrained}/model}}}}
  broken: {{model: {{name_or_path: {tmp_path}/nowhere}}}}
  words: {{tfidf: true}}
seeds: [0, 1]
label_budgets: [8, null]
data: {{files: FILES, max_length: 29}}
optim: {{learning_rate: 1e-2}}
training: {{max_train_steps: 10, global_batch_size: 8, per_device_batch_size: 8, eval_strategy: "no", logging_steps: 2}}
tracking: {{trackers: []}}
""",
    )


def check_kept_model(folder, record):
    """One model is left: that of the only contender with a model, of the seed with the best validation score."""
    cells = [folder / f"runs/ours/labels-all/seed-{seed}" for seed in range(2)]
    scores = [result(cell)["validation"]["accuracy"] for cell in cells]
    best = cells[scores.index(max(scores))]
    wins = record["metric"]["ours, all labels"] >= record["metric"]["words, all labels"]
    assert [path.parent for path in folder.rglob("model") if path.is_dir()] == ([best] if wins else [])
    if wins:
        assert record["advice"][-1].endswith(f"which validation prefers, was kept: decero push {best}/model NAME/MODEL")
        assert result(best)["compared"]["seeds"] == [0, 1]
    else:
        assert record["advice"][-1] == "The best contender is a simple baseline, which has no model to push."
    assert not any("validation" in result(folder / f"runs/ours/labels-8/seed-{seed}") for seed in range(2))


@pytest.mark.long
def test_a_comparison_uses_equal_examples_and_counts_failures(launch, comparison, tmp_path):
    assert "12 runs" in launch("compare", comparison, "--dry-run").stdout
    printed = launch("compare", comparison).stdout
    folder = tmp_path / "compare"
    made = {p.name for p in folder.iterdir()}
    assert made >= {"report.html", "verdict.md", "metric_by_budget.svg", "cost_quality.png", "result.json", "runs"}
    record = result(folder)
    assert (record["runs"], record["failed"]) == (12, 4)
    check_kept_model(folder, record)
    assert "broken" in printed
    assert all(len(pd.read_parquet(p)) == 30 for p in folder.rglob("predictions.parquet"))
    first = pd.read_parquet(folder / "runs/ours/labels-8/seed-0/predictions.parquet")
    assert (
        first["label"].tolist()
        == pd.read_parquet(folder / "runs/words/labels-all/seed-1/predictions.parquet")["label"].tolist()
    )
    (folder / "result.json").unlink()
    before = (folder / "runs/ours/labels-8/seed-0/result.json").read_text()
    kept = [path for path in folder.rglob("model") if path.is_dir()]
    for path in kept:
        shutil.rmtree(path)
    printed = launch("compare", comparison, "--resume").stdout
    assert ("again for its model" in printed) == bool(kept)
    check_kept_model(folder, result(folder))
    assert (folder / "runs/ours/labels-8/seed-0/result.json").read_text() == before


@pytest.mark.slow
def test_a_comparison_in_two_processes_trains_as_one_does(launch, comparison, tmp_path, two_processes):
    few = "label_budgets=[8]", "seeds=[0]", "keep_models=true"
    launch("compare", comparison, *few)
    launch("compare", comparison, f"output={tmp_path}/two", *few, launcher=two_processes)
    cell = "runs/ours/labels-8/seed-0"
    assert np.abs(np.subtract(losses(tmp_path / "compare" / cell), losses(tmp_path / "two" / cell))).max() <= 1e-5
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "two" / cell / "model").num_labels == 2


def test_a_bad_contender_is_refused_before_the_first_run(
    launch, write_config, trained_tokenizer, architecture, tmp_path
):
    config = write_config(
        "compare",
        f"""\
output: {tmp_path}/compare
reference: our
contenders:
  ours:
    model: {{config: {architecture}}}
    tokenizer: {{name_or_path: {trained_tokenizer}}}
    optim: {{learning_ratee: 1}}
data: {{files: FILES, max_length: 29}}
training: {{max_train_steps: 10}}
tracking: {{trackers: []}}
""",
    )
    assert "reference: unknown contender our; did you mean ours?" in launch("compare", config, expect=2).stderr
    printed = launch("compare", config, "reference=ours", expect=2).stderr
    assert "contenders.ours: unknown setting optim.learning_ratee; did you mean optim.learning_rate?" in printed
    assert not (tmp_path / "compare").exists()


ALIKE = [pytest.param(family, marks=pytest.mark.slow) for family in ("roberta", "electra", "mpnet")]  # much like BERT


@pytest.mark.parametrize("family", ["bert", "xlnet", "distilbert", "modernbert", *ALIKE])
def test_stock_encoders_take_the_same_recipe(launch, classify, trained_tokenizer, tmp_path, family):
    sizes = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
    fields = {
        "xlnet": {"d_model": 20, "n_layer": 2, "n_head": 2, "d_inner": 37},
        "distilbert": {"dim": 20, "n_layers": 2, "n_heads": 2, "hidden_dim": 37},
    }.get(family, sizes)
    tokenizer = AutoTokenizer.from_pretrained(trained_tokenizer)
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")
    }
    config = AutoConfig.for_model(family, vocab_size=97, **fields, **special)
    AutoModel.from_config(config).save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    words = f"model={{name_or_path: {tmp_path}/stock}}", "tokenizer={}", f"output={tmp_path}/run"
    launch("finetune_classification", classify, *words, "training.max_train_steps=3")
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))
    assert len(pd.read_parquet(tmp_path / "run" / "predictions.parquet")) == 30
