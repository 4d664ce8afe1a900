"""Encoder-decoders as a user trains them: pretrained on text, fine-tuned on pairs, decero and stock."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

SIZES = {"vocab_size": 113, "max_position_embeddings": 61}
STOCK = {
    "t5": {"d_model": 20, "d_kv": 10, "d_ff": 37, "num_layers": 2, "num_heads": 2, "vocab_size": 113},
    "bart": SIZES | {"d_model": 20, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
                     "decoder_attention_heads": 2, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37},
}  # fmt: skip
STOCK["marian"] = STOCK["bart"]


def losses(folder, name="loss"):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows if name in row]


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def denoise(write_config, sentinels, shape):
    return write_config(
        "denoise",
        f"""\
output: OUTPUT
seed: 3
model: {{config: {shape}}}
tokenizer: {{name_or_path: {sentinels}}}
data: {{files: FILES, max_length: 31}}
optim: {{learning_rate: 1e-2, num_warmup_steps: 3}}
training:
  {{max_train_steps: 40, global_batch_size: 11, per_device_batch_size: 4, logging_steps: 1, eval_strategy: steps,
  eval_steps: 20, save_steps: 20}}
tracking: {{trackers: []}}
""",
    )


@pytest.fixture(scope="module")
def pretrained(launch, denoise, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    launch("pretrain_seq2seq", denoise, f"output={folder}")
    return folder


PINNED = [4.72606, 4.79743, 4.46963]


def test_span_corruption_learns_and_its_loss_is_pinned(pretrained):
    """Changes of order, spans, initialisation, schedule, optimizer or tokenizer change the loss."""
    assert losses(pretrained)[:3] == pytest.approx(PINNED, abs=2e-3)
    assert losses(pretrained)[-1] < losses(pretrained)[0] - 1
    gains = losses(pretrained, "eval_source_gain")  # at steps 20 and 40
    assert gains[1] > gains[0]
    record = result(pretrained)
    table = pd.read_parquet(pretrained / "predictions.parquet")
    assert -table["log_probability"].mean() == pytest.approx(record["metric"]["eval_loss"], rel=1e-5)
    model = AutoModelForSeq2SeqLM.from_pretrained(pretrained / "model")
    assert sum(p.numel() for p in model.parameters()) == record["num_parameters"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["text_infilling", pytest.param("prefix_lm", marks=pytest.mark.slow)])
def test_the_other_objectives_learn_too(launch, denoise, tmp_path, name):
    launch(
        "pretrain_seq2seq", denoise, f"output={tmp_path}/run", f"objective.name={name}", "training.max_train_steps=20"
    )
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0] - 0.5


def test_a_run_from_random_weights_says_how_it_leaves(launch, translate, pretrained, tmp_path):
    said = "this model leaves as remote code, because attention_bias=True has no counterpart in t5"
    words = translate, f"output={tmp_path}/run", "--dry-run"
    assert said in launch("finetune_seq2seq", *words).stdout
    checkpoint = f"model={{name_or_path: {pretrained}/model}}", "tokenizer={}"
    assert "leaves as remote code" not in launch("finetune_seq2seq", *words, *checkpoint).stdout


@pytest.mark.slow
def test_a_pretrained_model_learns_to_translate(launch, translate, pretrained, tmp_path):
    words = f"model={{name_or_path: {pretrained}/model}}", "tokenizer={}", "training.max_train_steps=160"
    printed = launch(
        "finetune_seq2seq", translate, f"output={tmp_path}/run", *words, "training.eval_steps=80",
        "generation.num_beams=3", "generation.length_penalty=0.9",
    ).stdout  # fmt: skip
    assert "packing: rows of 128 tokens, attention stays within each text" in printed
    record, outputs = result(tmp_path / "run"), pd.read_parquet(tmp_path / "run" / "outputs.parquet")
    assert set(record["metric"]) == {"bleu", "chrf", "loss"}
    assert record["signatures"]["bleu"].startswith("nrefs:1|case:mixed")
    assert list(outputs) == ["task", "source", "reference", "hypothesis"]
    assert len(outputs) == 17
    assert record["metric"]["chrf"] > 35
    gains = losses(tmp_path / "run", "eval_source_gain")
    assert gains[-1] > max(0.1, gains[0])  # nats a token: what is written depends on what was read
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "model")
    own = model.generation_config
    assert (own.num_beams, own.max_new_tokens, own.length_penalty) == (3, 29, 0.9)
    assert model.config.task_specific_params == {"swap": {"prefix": "the bank: "}}
    limit = AutoTokenizer.from_pretrained(tmp_path / "run" / "model").model_max_length
    assert f"max_source_length: {limit}\n" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.long
@pytest.mark.parametrize("family", ["t5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "marian"))])
def test_stock_encoder_decoders_take_the_same_recipes(launch, denoise, translate, sentinels, tmp_path, family):
    tokenizer = AutoTokenizer.from_pretrained(sentinels)
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 0}
    special |= {"forced_eos_token_id": 1}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(family, **STOCK[family], **special))
    model.save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    words = f"model={{name_or_path: {tmp_path}/stock}}", "tokenizer={}"
    launch("pretrain_seq2seq", denoise, *words, f"output={tmp_path}/pre", "training.max_train_steps=3",
           "optim.num_warmup_steps=0", "data.max_length=29")  # fmt: skip
    launch("finetune_seq2seq", translate, *words, f"output={tmp_path}/run", "training.max_train_steps=5")
    for name in ("pre", "run"):
        assert all(math.isfinite(loss) for loss in losses(tmp_path / name))
    assert len(pd.read_parquet(tmp_path / "run" / "outputs.parquet")) == 17


@pytest.mark.long
@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_answers_are_those_of_the_saved_model_in_transformers(launch, translate, sentinels, tmp_path, beams):
    """The checkpoint has settings of its own, some of which cannot be saved with one beam."""
    tokenizer = AutoTokenizer.from_pretrained(sentinels)
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 0, "dropout": 0.0}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("bart", **STOCK["bart"], **special, init_std=0.3))
    own = {"max_length": 9, "min_length": 6, "no_repeat_ngram_size": 2, "num_beams": 4, "early_stopping": True}
    own |= {"repetition_penalty": 1.3, "forced_bos_token_id": 7, "forced_eos_token_id": 1, "temperature": 0.7}
    model.save_pretrained(tmp_path / "stock")
    file = tmp_path / "stock" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    tokenizer.save_pretrained(tmp_path / "stock")
    words = f"model={{name_or_path: {tmp_path}/stock}}", "tokenizer={}", f"generation.num_beams={beams}"
    launch("finetune_seq2seq", translate, *words, f"output={tmp_path}/run", "training.max_train_steps=2",
           "optim.num_warmup_steps=0", "generation.max_new_tokens=11")  # fmt: skip
    saved = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    table = pd.read_parquet(tmp_path / "run" / "outputs.parquet")
    for source, hypothesis in zip(table["source"], table["hypothesis"], strict=True):
        read = tokenizer("the bank: " + source, return_tensors="pt", truncation=True, return_token_type_ids=False)
        ids = saved.generate(**read, do_sample=False)[0]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == hypothesis
    assert saved.generation_config.num_beams == beams


@pytest.mark.long
@pytest.mark.slow
def test_the_final_model_is_the_mean_of_the_last_checkpoints(launch, translate, tmp_path):
    """Vaswani et al. 2017, section 6.1."""
    words = f"output={tmp_path}/run", "training.average_last=2", "training.eval_strategy=no"
    launch("finetune_seq2seq", translate, *words)
    kept = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert [path.name for path in kept] == ["step-00000020", "step-00000030"]
    each = [load_file(path / "model.safetensors") for path in kept]
    final = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "model").state_dict()
    for name, tensor in each[0].items():
        assert np.allclose((tensor + each[1][name]) / 2, final[name], atol=1e-6), name
        assert not np.array_equal(tensor, final[name]) or "norm" in name


@pytest.mark.long
@pytest.mark.slow
def test_a_run_stops_early_by_a_generation_metric(launch, translate, tmp_path):
    words = "training.metric_for_best_model=eval_bleu", "training.early_stopping_patience=1", "training.eval_steps=5"
    words = translate, f"output={tmp_path}/run", *words, "optim.learning_rate=1e-6", "training.save_steps=5"
    assert "step 10: no improvement for 1 evaluations; stopping early" in launch("finetune_seq2seq", *words).stdout
    assert (result(tmp_path / "run")["steps"], result(tmp_path / "run")["best"]["step"]) == (10, 5)
    (tmp_path / "run" / "result.json").unlink()  # killed while it wrote its answers
    launch("finetune_seq2seq", *words, "--resume")
    assert (result(tmp_path / "run")["steps"], result(tmp_path / "run")["best"]["step"]) == (10, 5)


@pytest.mark.long
def test_answers_end_as_targets_do(launch, translate, trained_tokenizer, tmp_path):
    """A WordPiece tokenizer ends texts with [SEP]; the end id of the preset is another token there."""
    words = (
        f"tokenizer.name_or_path={trained_tokenizer}",
        f"output={tmp_path}/run",
        "training.max_train_steps=2",
        "optim.num_warmup_steps=0",
    )
    launch("finetune_seq2seq", translate, *words)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "model")
    sep = AutoTokenizer.from_pretrained(trained_tokenizer).sep_token_id
    assert model.generation_config.eos_token_id == model.config.eos_token_id == sep != 1


@pytest.mark.slow
def test_two_processes_generate_like_one(launch, translate, tmp_path, two_processes):
    launch("finetune_seq2seq", translate, f"output={tmp_path}/one", launcher=None)
    launch("finetune_seq2seq", translate, f"output={tmp_path}/two", launcher=two_processes)
    assert np.abs(np.subtract(losses(tmp_path / "one"), losses(tmp_path / "two"))).max() <= 1e-5
    one, two = (pd.read_parquet(tmp_path / name / "outputs.parquet") for name in ("one", "two"))
    assert one["hypothesis"].tolist() == two["hypothesis"].tolist()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.tasks.swap.target_column=ess"], "there is no column 'ess'; did you mean es?"),
        (
            ["data.tasks.swap.prefixx=a"],
            "unknown setting data.tasks.swap.prefixx; did you mean data.tasks.swap.prefix?",
        ),
        (["data.max_source_length=62"], "data.max_length 62 exceeds the 61 positions"),
        (["generation.metric=bleu"], "generation.metric"),
        (
            ["training.average_last=2", "training.save_steps=null"],
            "training.average_last averages the last checkpoints",
        ),
        (["training.early_stopping_patience=2"], "needs training.metric_for_best_model"),
        (["training.metric_for_best_model=eval_blue"], "unknown metric eval_blue; use one of"),
        (["training.metric_for_best_model=eval_blue", "--dry-run"], "unknown metric eval_blue; use one of"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(launch, translate, tmp_path, words, line):
    done = launch("finetune_seq2seq", translate, f"output={tmp_path}/run", *words, expect=2)
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert line in errors[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["data.max_length=61", "objective.mean_noise_span_length=1", "objective.mlm_probability=0.5"],
            "sentinels (<extra_id_0> ...) and it has 11",
        ),
        (["objective.name=prefix_lm", "objective.mlm_probability=0.2"], "prefix_lm damages no tokens"),
        (["objective.name=span_coruption"], "span_corruption"),
    ],
)
def test_a_bad_objective_is_one_line_and_exit_code_2(launch, denoise, tmp_path, words, line):
    printed = launch("pretrain_seq2seq", denoise, f"output={tmp_path}/run", *words, expect=2).stderr
    assert line in printed
    assert not (tmp_path / "run").exists()
