"""Replaced token detection as a user trains, continues, fine-tunes and refuses it."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from decero.errors import UserError
from decero.inference import fill
from decero.inference.loading import load

ELECTRA = (
    "model_type: electra\nvocab_size: 97\nhidden_size: 24\nembedding_size: 14\nnum_hidden_layers: 2\n"
    "num_attention_heads: 2\nintermediate_size: 37\nmax_position_embeddings: 31\nhidden_dropout_prob: 0.0\n"
    "attention_probs_dropout_prob: 0.0\ninitializer_range: 0.1\n"
)
SHORT = "training.max_train_steps=2", "optim.num_warmup_steps=0", "training.eval_strategy=no"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Use one thread: such small matrices are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in lines if "loss" in row]


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def rtd(write_config, trained_tokenizer, architecture):
    return write_config(
        "rtd",
        f"""\
output: OUTPUT
seed: 3
model: {{config: {architecture}}}
tokenizer: {{name_or_path: {trained_tokenizer}}}
data: {{files: FILES, max_length: 29}}
objective: {{generator_size: 0.5}}
optim: {{learning_rate: 1e-2, num_warmup_steps: 3}}
training:
  {{max_train_steps: 30, global_batch_size: 7, per_device_batch_size: 3, logging_steps: 1, eval_strategy: steps,
  eval_steps: 15, metric_for_best_model: eval_detection_loss, save_steps: 15}}
tracking: {{trackers: []}}
""",
    )


@pytest.fixture(scope="module")
def detected(launch, rtd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "rtd"
    said = launch("pretrain_rtd", rtd, f"output={folder}").stdout
    assert "attention stays within each text" in said
    assert f"next: decero fill {folder}/generator FILE" in said
    return folder


def test_it_learns_and_writes_both_models(detected):
    assert losses(detected)[-1] < losses(detected)[0] - 3
    discriminator = AutoModelForPreTraining.from_pretrained(detected / "model")
    generator = AutoModelForMaskedLM.from_pretrained(detected / "generator")
    assert type(discriminator).__name__ == "DeceroEncoderForPreTraining"
    assert (generator.config.hidden_size, generator.config.embedding_size) == (12, 22)
    assert torch.equal(generator.get_input_embeddings().weight, discriminator.get_input_embeddings().weight)
    metric, table = result(detected)["metric"], pd.read_parquet(detected / "predictions.parquet")
    assert metric["detection_loss"] == pytest.approx(-table["log_probability"].mean())
    assert metric["detection_accuracy"] == pytest.approx((table["label"] == table["prediction"]).mean())
    assert metric["eval_loss"] == pytest.approx(metric["generator_loss"] + 50 * metric["detection_loss"])
    assert set(metric) >= {"detection_f1", "generator_accuracy"}
    assert 0 < table["label"].mean() < 0.2
    assert set(table["row"]) == set(range(result(detected)["scored_rows"]))


def test_the_best_evaluation_is_the_lowest_detection_loss(detected):
    lines = [json.loads(line) for line in (detected / "metrics.jsonl").read_text().splitlines()]
    evaluated = {row["step"]: row["eval_detection_loss"] for row in lines if "eval_detection_loss" in row}
    best = result(detected)["best"]
    assert best["step"] == min(evaluated, key=evaluated.get)
    assert result(detected)["metric"]["detection_loss"] == pytest.approx(best["eval_detection_loss"], rel=1e-4)


def test_the_generator_fills_and_the_discriminator_refuses(detected):
    (found,) = fill(detected / "generator", ["the bank raised its [MASK] as shares fell"], top_k=3)
    assert len(found.holes[0]) == 3
    for command in ("fill", "score"):
        with pytest.raises(UserError, match="gives no probabilities of tokens; use its generator"):
            load(detected / "model", command)
    assert type(load(detected / "model", None).model).__name__ == "DeceroEncoderForPreTraining"


def test_a_discriminator_is_fine_tuned_like_any_encoder(launch, detected, classify, tmp_path):
    words = f"output={tmp_path}/topics", f"model={{name_or_path: {detected}/model}}", "tokenizer={}"
    said = launch("finetune_classification", classify, *words, "training.max_train_steps=2").stderr
    assert "new, with random weights: classifier, model.pooler; not used: discriminator_predictions" in said
    assert "accuracy" in result(tmp_path / "topics")["metric"]


def test_it_is_scored_and_continued_with_the_generator_beside(launch, rtd, detected, tmp_path):
    model = f"model={{name_or_path: {detected}/model}}", "tokenizer={}"
    launch("pretrain_rtd", rtd, f"output={tmp_path}/scored", *model, "--eval-only")
    assert result(tmp_path / "scored")["metric"] == pytest.approx(result(detected)["metric"], rel=1e-5)
    said = launch("pretrain_rtd", rtd, f"output={tmp_path}/more", *model, *SHORT, "training.metric_for_best_model=null")
    assert "random weights" not in said.stderr
    assert "are replaced" not in said.stderr
    assert "generator_size" not in said.stderr
    assert losses(tmp_path / "more")[0] < losses(detected)[0] - 3
    scored = "objective.generator_size=0.25", f"output={tmp_path}/other", "--eval-only"
    said = launch("pretrain_rtd", rtd, *model, *scored).stderr
    assert "objective.generator_size has no effect" in said
    shutil.copytree(detected / "model", tmp_path / "alone" / "model")
    why = launch(
        "pretrain_rtd", rtd, f"output={tmp_path}/x", f"model={{name_or_path: {tmp_path}/alone/model}}", "tokenizer={}",
        "--eval-only", expect=2,
    )  # fmt: skip
    assert "alone/model is scored with its generator; set its folder" in why.stderr.strip().splitlines()[-1]


def test_a_discriminator_scores_minimal_pairs(launch, write_config, detected, tmp_path):
    lines = ["the bank raised its rate", "team the won match the", "a late goal by the young striker"]
    pairs = [{"good": good, "bad": bad} for good, bad in zip(lines, lines[1:] + lines[:1], strict=True)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    columns = "paradigm_column: null, phenomenon_column: null"
    config = write_config(
        "pairs",
        f"output: {tmp_path}/pairs\nmodel: {{name_or_path: {detected}/model}}\n"
        f"data: {{files: {{test: {tmp_path}/test.jsonl}}, {columns}}}\n",
    )
    launch("evaluate_minimal_pairs", config)
    tokenizer = AutoTokenizer.from_pretrained(detected / "model")
    model = AutoModelForPreTraining.from_pretrained(detected / "model").eval()
    scores = []
    for line in lines:
        with torch.no_grad():
            p_L = model(**tokenizer(line, return_tensors="pt")).logits[0, 1:-1].sigmoid()
        scores.append(float((1 - p_L).log().sum()))
    table = pd.read_parquet(tmp_path / "pairs" / "predictions.parquet")
    assert table["good_score"].tolist() == pytest.approx(scores, abs=1e-4)
    assert result(tmp_path / "pairs")["kind"] == "detection_score"
    assert result(tmp_path / "pairs")["metric"]["accuracy"] == pytest.approx(
        np.mean(np.array(scores) > np.roll(scores, -1))
    )
    said = launch("evaluate_minimal_pairs", config, f"output={tmp_path}/x", "objective.name=original", expect=2).stderr
    assert "a discriminator reads the text as it is, without masks" in said.strip().splitlines()[-1]
    masked = write_config(
        "masked", f"output: {tmp_path}/x\nmodel: {{name_or_path: {detected}/model}}\ndata: {{files: FILES}}\n"
    )
    rows = [{"sentence": "[he] runs", "first": "he", "second": "she", "label": "x"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bias = write_config(
        "bias", f"output: {tmp_path}/x\nmodel: {{name_or_path: {detected}/model}}\n"
        f"sets: {{s: {{format: crows_pairs, data: {{files: {{test: {tmp_path}/pairs.jsonl}}}}, "
        "columns: {text: sentence, more: first, less: second, category: label}}}\n"
        "unigram: {files: FILES}\n"
    )  # fmt: skip
    for recipe, config in (("evaluate_masked_lm", masked), ("probe_bias", bias)):
        said = launch(recipe, config, expect=2).stderr
        assert "gives no probabilities of tokens; use its generator" in said.strip().splitlines()[-1]


@pytest.mark.slow
def test_stock_electra_is_pretrained_and_padded_or_packed_alike(launch, rtd, tmp_path):
    (tmp_path / "electra.yaml").write_text(ELECTRA)
    words = f"model.config={tmp_path}/electra.yaml", "training.max_train_steps=6", "training.save_steps=null"
    for name, more in {"packed": [], "padded": ["training.packing=off"]}.items():
        launch("pretrain_rtd", rtd, f"output={tmp_path}/{name}", *words, *more)
    assert losses(tmp_path / "padded") == pytest.approx(losses(tmp_path / "packed"), rel=1e-3)
    read = [json.loads((tmp_path / "packed" / each / "config.json").read_text()) for each in ("model", "generator")]
    assert [config["architectures"] for config in read] == [["ElectraForPreTraining"], ["ElectraForMaskedLM"]]
    assert [config["hidden_size"] for config in read] == [24, 12]


@pytest.mark.slow
def test_a_dry_run_and_a_budget_see_both_models(launch, rtd, detected, tmp_path):
    said = launch("pretrain_rtd", rtd, f"output={tmp_path}/x", "--dry-run", "--device", "h100").stdout
    models = [AutoModelForPreTraining.from_pretrained(detected / "model")]
    models += [AutoModelForMaskedLM.from_pretrained(detected / "generator")]
    shared = models[0].get_input_embeddings().weight.numel()
    whole = sum(model.num_parameters() for model in models) - shared
    assert re.search(rf"^parameters +{whole:,}, {shared:,} of them embeddings$", said, flags=re.M)
    launch("pretrain_rtd", rtd, f"output={tmp_path}/in_time", "--budget", "20s", "training.metric_for_best_model=null")
    assert (tmp_path / "in_time" / "generator" / "config.json").is_file()


@pytest.mark.slow
def test_resuming_a_stopped_run_gives_the_same_weights(launch, rtd, detected, tmp_path):
    words = f"output={tmp_path}/a", "training.save_total_limit=9"
    launch("pretrain_rtd", rtd, *words)
    for left in ("result.json", "model", "generator", "checkpoints/step-00000030"):
        path = tmp_path / "a" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "at step 15 of 30" in launch("pretrain_rtd", rtd, *words, "--resume").stdout
    for part in ("model", "generator"):
        again = load_file(tmp_path / "a" / part / "model.safetensors")
        for name, tensor in load_file(detected / part / "model.safetensors").items():
            assert torch.equal(again[name], tensor), name


@pytest.mark.slow
def test_two_processes_train_the_same_pair(launch, rtd, detected, two_processes, tmp_path):
    launch("pretrain_rtd", rtd, f"output={tmp_path}/two", launcher=two_processes)
    assert losses(tmp_path / "two")[:10] == pytest.approx(losses(detected)[:10], rel=1e-3)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["objective.generator_size=1.5"], "objective.generator_size"),
        (["objective.generator_size=0"], "objective.generator_size"),
        (["objective.discriminator_weight=-1"], "objective.discriminator_weight"),
        (["model.config=configs/model/stock_bert_tiny.yaml"], "bert has no discriminator and generator that can share"),
        (["model.config=configs/model/modern_decoder_tiny.yaml"], "decero_decoder has no discriminator and generator"),
        (["model.config=configs/model/stock_gpt2_tiny.yaml"], "gpt2 has no discriminator and generator"),
        (["objective.generator=nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_settings_that_cannot_be_end_in_one_line(launch, rtd, words, why, tmp_path):
    said = launch("pretrain_rtd", rtd, f"output={tmp_path}/x", *words, expect=2).stderr
    assert why in said.strip().splitlines()[-1]
    assert "Traceback" not in said
    assert not (tmp_path / "x" / "model").exists()


def test_generators_that_do_not_fit_are_refused(launch, rtd, detected, write_config, tmp_path):
    def refused(*words):
        return launch("pretrain_rtd", rtd, f"output={tmp_path}/x", *words, expect=2).stderr.strip().splitlines()[-1]

    (tmp_path / "electra.yaml").write_text(ELECTRA)
    said = refused(f"model.config={tmp_path}/electra.yaml", f"objective.generator={detected}/generator")
    assert "generator is a decero_encoder, but the discriminator is a electra" in said
    launch("train_tokenizer", write_config("t", f"output: {tmp_path}/t\ndata: {{files: FILES}}\n"
                                                "tokenizer: {vocab_size: 70, lowercase: true}\n"))  # fmt: skip
    said = refused(f"tokenizer.name_or_path={tmp_path}/t/model", f"objective.generator={detected}/generator")
    assert "generator has another tokenizer than this run" in said
    said = refused("model.overrides.hidden_size=26", f"objective.generator={detected}/generator")
    assert "the generator cannot share embed_tokens.weight: [97, 22], but [97, 26] in the discriminator" in said
