"""Comparisons of other tasks than classification, as a user runs them: translators, decoders, masked models."""

import json
import math
import random
import re

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from decero.config.yaml_files import read_yaml

SIZES = {"hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 37}
GPT2 = {"n_embd": 20, "n_layer": 2, "n_head": 2, "n_positions": 61, "vocab_size": 307}
T5 = {"d_model": 20, "d_kv": 10, "d_ff": 37, "num_layers": 2, "num_heads": 2, "vocab_size": 113}
FEW = "max_train_steps: 6, global_batch_size: 8, per_device_batch_size: 8, logging_steps: 3"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Matrices this small are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def translators(write_config, sentinels, shape, tmp_path_factory):
    """Ours, a stock T5 and a copied source; the learning rate is tuned."""
    folder, draw = tmp_path_factory.mktemp("compared"), random.Random(3)
    words = {"team": "bank", "match": "rate", "goal": "profit", "late": "weaker", "crowd": "market"}
    for split, size in {"train": 40, "validation": 7, "test": 11}.items():
        rows = [draw.choices(list(words), k=draw.randint(4, 6)) for _ in range(size)]
        lines = [{"en": " ".join(row), "es": " ".join([words[word] for word in row[:-1]] + row[-1:])} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.0}
    AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **T5, **special)).save_pretrained(folder / "stock")
    AutoTokenizer.from_pretrained(sentinels).save_pretrained(folder / "stock")
    files = ", ".join(f"{split}: {folder}/{split}.jsonl" for split in ("train", "validation", "test"))
    text = f"""\
output: {folder}/run
task: finetune_seq2seq
reference: ours
contenders:
  ours: {{model: {{config: {shape}}}, tokenizer: {{name_or_path: {sentinels}}}}}
  stock: {{model: {{name_or_path: {folder}/stock}}}}
  copied: {{baseline: copy}}
seeds: [0, 1]
label_budgets: [30]
tune: {{optim.learning_rate: [1e-5, 1e-2]}}
metric: chrf
data:
  tasks: {{swap: {{files: {{{files}}}, source_column: en, target_column: es}}}}
  max_source_length: 41
  max_target_length: 41
generation: {{metric: translation, max_new_tokens: 9, validation_rows: 5}}
training: {{{FEW}, eval_strategy: "no"}}
tracking: {{trackers: []}}
"""
    return folder, write_config("translators", text)


@pytest.mark.slow
def test_translators_are_tuned_alike_and_judged_by_chrf(launch, translators):
    folder, config = translators
    shown = launch("compare", config, "--dry-run").stdout
    assert "4 trials and 6 runs" in shown
    assert re.search(r"all runs: about [\d.]+ (ms|s|min)", shown), shown
    said = launch("compare", config).stdout
    runs, record = folder / "run" / "runs", result(folder / "run")
    assert record["failed"] == 0, said
    assert set(record["metric"]) == {f"{name}, 30 pairs" for name in ("ours", "stock", "copied")}
    assert "With 30 pairs, ours (" in said
    for tuning in record["tuning"]:
        trials = runs / tuning["contender"] / "labels-30"
        scores = [result(trials / f"tune-{number}")["metric"]["chrf"] for number in range(2)]
        assert [trial["score"] for trial in tuning["trials"]] == scores
        assert tuning["chosen"]["optim.learning_rate"] == (1e-5, 1e-2)[scores.index(max(scores))]
        assert not (trials / "tune-0" / "outputs.parquet").exists(), "a trial must not look at the test split"
        for seed in range(2):
            settings = read_yaml(str(trials / f"seed-{seed}" / "config.yaml"))
            assert settings["optim"]["learning_rate"] == tuning["chosen"]["optim.learning_rate"]
            assert settings["data"]["max_train_rows"] == 30
    assert [t["contender"] for t in record["tuning"]] == ["ours", "stock"]
    table = pd.read_parquet(runs / "copied" / "labels-30" / "seed-0" / "outputs.parquet")
    assert (table["hypothesis"] == table["source"]).all()
    assert len(table) == 11
    page = (folder / "run" / "report.html").read_text()
    assert "Quality against tuning" in page
    assert "optim.learning_rate" in page
    assert not (folder / "run" / "metric_by_budget.svg").exists(), "there is one budget"

    before = {path: path.read_text() for path in runs.rglob("result.json")}
    (folder / "run" / "result.json").unlink()
    launch("compare", config, "--resume")
    assert {path: path.read_text() for path in runs.rglob("result.json")} == before


@pytest.fixture(scope="module")
def decoders(launch, write_config, corpus, tmp_path_factory):
    """Ours, a stock GPT-2 of another tokenizer, one whose tokens lose the text, and n-grams."""
    folder = tmp_path_factory.mktemp("decoders")
    for split in ("train", "test"):
        rows = map(json.loads, (corpus / f"{split}.jsonl").read_text().splitlines())
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": r["text"].title()}) + "\n" for r in rows))
    files = f"{{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}"
    for size, lowercase in ((293, "false"), (270, "false"), (280, "true")):
        algorithm = f"tokenizer: {{algorithm: byte_level_bpe, vocab_size: {size}, lowercase: {lowercase}}}"
        launch(
            "train_tokenizer", write_config("bpe", f"output: {folder}/{size}\ndata: {{files: {files}}}\n{algorithm}\n")
        )
    fields = {"model_type": "decero_decoder", "vocab_size": 307, "max_position_embeddings": 61} | SIZES
    (folder / "small.yaml").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **GPT2)).save_pretrained(folder / "stock")
    AutoTokenizer.from_pretrained(folder / "270" / "model").save_pretrained(folder / "stock")
    text = f"""\
output: OUTPUT
task: pretrain_causal_lm
reference: ours
contenders:
  ours: {{model: {{config: {folder}/small.yaml}}, tokenizer: {{name_or_path: {folder}/293/model}}}}
  stock: {{model: {{name_or_path: {folder}/stock}}, training: {{max_train_steps: 3}}}}
  lossy: {{model: {{config: {folder}/small.yaml}}, tokenizer: {{name_or_path: {folder}/280/model}}}}
  counts: {{baseline: ngram}}
seeds: [0, 1]
data: {{files: {files}, max_length: 13}}
optim: {{learning_rate: 1e-2}}
training: {{{FEW}, eval_strategy: "no"}}
tracking: {{trackers: []}}
"""
    return folder, write_config("decoders", text)


@pytest.mark.long
def test_decoders_of_any_tokenizer_compare_by_bits_a_byte(launch, decoders):
    folder, config = decoders
    done = launch("compare", config, f"output={folder}/run")
    record, runs = result(folder / "run"), folder / "run" / "runs"
    assert record["failed"] == 0, done.stdout
    assert "stock has settings of its own: training.max_train_steps, which was set by hand" in done.stdout
    assert record["notes"][0] in (folder / "run" / "verdict.md").read_text()
    for name in ("ours", "stock", "counts"):
        for seed in range(2):
            run = runs / name / "labels-all" / f"seed-{seed}"
            table = pd.read_parquet(run / "predictions.parquet")
            assert len(table) == 30, "a row a document of test"
            bits = table["nats"].sum() / math.log(2) / table["bytes"].sum()
            assert bits == pytest.approx(result(run)["metric"]["bits_per_byte"], rel=1e-9)
    assert "ours and lossy are not comparable: the tokens of lossy do not give the text back" in done.stdout
    assert record["metric"]["lossy"] is None
    assert sum("by " in line and " [" in line for line in record["sentences"]) == 2


def test_losses_of_two_tokenizers_are_not_compared(launch, decoders):
    folder, config = decoders
    words = f"output={folder}/loss", "metric=loss", "seeds=[0]"
    text = config.read_text().splitlines(keepends=True)
    config = config.with_name("loss.yaml")
    config.write_text("".join(line for line in text if "counts:" not in line and "lossy:" not in line))
    launch("compare", config, *words)
    (sentence,) = result(folder / "loss")["sentences"]
    assert sentence == (
        "ours and stock are not comparable: stock has another tokenizer, and loss is a mean over tokens; use metric="
        "bits_per_byte."
    )


def test_masked_models_of_one_tokenizer_compare_by_loss(
    launch, write_config, trained_tokenizer, architecture, tmp_path
):
    config = write_config(
        "masked",
        f"""\
output: {tmp_path}/run
task: pretrain_mlm
reference: ours
contenders:
  ours: {{model: {{config: {architecture}}}, tokenizer: {{name_or_path: {trained_tokenizer}}}}}
  slow:
    model: {{config: {architecture}}}
    tokenizer: {{name_or_path: {trained_tokenizer}}}
    optim: {{learning_rate: 1e-6}}
seeds: [0, 1]
data: {{files: FILES, max_length: 29}}
optim: {{learning_rate: 1e-2}}
training: {{{FEW}, max_train_steps: 15, eval_strategy: "no"}}
tracking: {{trackers: []}}
""".replace("max_train_steps: 6, ", ""),
    )
    launch("compare", config)
    record = result(tmp_path / "run")
    (sentence,) = record["sentences"]
    assert sentence.startswith("ours (")
    assert "beats slow (" in sentence
    for name in ("ours", "slow"):
        run = result(tmp_path / "run" / "runs" / name / "labels-all" / "seed-1")
        assert run["scored_rows"] >= 30, "the rows of 30 test documents; validation has 15"
    assert record["metric"]["ours"] < record["metric"]["slow"]
