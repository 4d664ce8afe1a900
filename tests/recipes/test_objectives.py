"""Permutation language models and continued pretraining, as a user runs them."""

import json
import math
import shutil

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from decero.config.pretraining import PretrainPLM
from decero.inference import fill
from decero.inference.loading import load
from decero.tasks import PermutationLM
from decero.training.runs import Run


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Use one thread: such small matrices are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


XLNET = (
    "model_type: xlnet\nvocab_size: 97\nd_model: 22\nn_layer: 2\nn_head: 1\nd_inner: 37\npad_token_id: 0\ndropout: 0\n"
)


def preset(folder, text):
    path = folder / "preset.yaml"
    path.write_text(text)
    return path


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in lines if "loss" in row]


def metric(folder):
    return json.loads((folder / "result.json").read_text())["metric"]


@pytest.fixture(scope="module")
def plm(write_config, trained_tokenizer, architecture):
    return write_config(
        "plm",
        f"""\
output: OUTPUT
seed: 3
model: {{config: {architecture}}}
tokenizer: {{name_or_path: {trained_tokenizer}}}
data: {{files: FILES, max_length: 29}}
objective: {{plm_probability: 0.2}}
optim: {{learning_rate: 1e-2, num_warmup_steps: 3}}
training: {{max_train_steps: 16, global_batch_size: 7, per_device_batch_size: 3, logging_steps: 1}}
tracking: {{trackers: []}}
""",
    )


@pytest.fixture(scope="module")
def permuted(launch, plm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "plm"
    said = launch("pretrain_plm", plm, f"output={folder}").stdout
    assert "attention stays within each text" in said
    return folder


def test_a_permutation_model_learns_and_scores_each_target(permuted):
    assert losses(permuted)[-1] < losses(permuted)[0] - 0.4
    table = pd.read_parquet(permuted / "predictions.parquet")
    assert sorted(table["row"].unique()) == list(
        range(json.loads((permuted / "result.json").read_text())["scored_rows"])
    )
    assert set(metric(permuted)) == {"eval_loss", "eval_accuracy"}


def test_it_fills_a_hole_that_no_token_sees(permuted):
    """A hole is a query: what the other holes hold, and how many stand there, changes no other prediction."""
    model, tokenizer = load(permuted / "model", "fill").model, AutoTokenizer.from_pretrained(permuted / "model")
    assert model.config.pretraining_objective == "permutation_lm"
    (found,) = fill(permuted / "model", ["the bank raised its [MASK] as shares fell"], top_k=3)
    from decero.data.permutation import add_queries, stack_ordered
    from decero.execution.packed_forward import logits_of

    ids = tokenizer("the bank raised its [MASK] as shares fell", return_tensors="np")["input_ids"][0]
    (place,) = (ids == tokenizer.mask_token_id).nonzero()[0:1]
    batch = stack_ordered([add_queries(ids, place, tokenizer.mask_token_id)], 0)
    with torch.no_grad():
        best = logits_of(model, batch)[0, -1, : len(tokenizer)].softmax(dim=-1).topk(3)
    assert [p for _, p in found.holes[0]] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [t for t, _ in found.holes[0]] == [tokenizer.decode([i]) for i in best.indices]


def test_a_warmup_cuts_the_text_to_its_own_length(plm, tmp_path):
    """Rows are longer than the text by their queries; the text grows to `data.max_length`."""
    config = PretrainPLM.from_cli([str(plm), "data.length_warmup=0.5", f"output={tmp_path}/run"])
    task, accelerator = PermutationLM(config), Accelerator(cpu=True)
    run = Run(accelerator, config.training, config.optim, tmp_path / "run", progress=False, config=config)
    data = task.load_data(run)
    packed = task.optimize(run, task.initial_model(config.model), data).collate
    assert (packed.collate.max_length, task.row_length) == (29, 35)


@pytest.mark.slow
def test_resuming_and_padding_give_the_same_weights(launch, plm, permuted, tmp_path):
    words = f"output={tmp_path}/a", "training.save_steps=8", "training.save_total_limit=9", "training.packing=off"
    launch("pretrain_plm", plm, *words)
    padded, packed = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "a", permuted))
    for name, tensor in packed.items():
        torch.testing.assert_close(padded[name], tensor, atol=2e-4, rtol=1e-3)
    (tmp_path / "a" / "result.json").unlink()
    shutil.rmtree(tmp_path / "a" / "model")
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "step-00000016")
    assert "at step 8 of 16" in launch("pretrain_plm", plm, *words, "--resume").stdout
    for name, tensor in load_file(tmp_path / "a" / "model" / "model.safetensors").items():
        assert torch.equal(tensor, padded[name]), name


@pytest.mark.slow
def test_two_processes_train_the_same_model(launch, plm, permuted, two_processes, tmp_path):
    launch("pretrain_plm", plm, f"output={tmp_path}/two", launcher=two_processes)
    assert losses(tmp_path / "two") == pytest.approx(losses(permuted), abs=2e-4)


def test_continued_with_masks_the_mark_is_gone(launch, mlm, permuted, tmp_path):
    launch(
        "pretrain_mlm", mlm, f"output={tmp_path}/mlm", f"model.name_or_path={permuted}/model",
        "training.max_train_steps=1", "optim.num_warmup_steps=0",
    )  # fmt: skip
    config = json.loads((tmp_path / "mlm" / "model" / "config.json").read_text())
    assert config.get("pretraining_objective") is None


def test_stock_xlnet_takes_two_steps(launch, plm, tmp_path):
    few = "training.max_train_steps=2", "optim.num_warmup_steps=0", "training.eval_strategy=no"
    launch("pretrain_plm", plm, f"output={tmp_path}/xlnet", f"model.config={preset(tmp_path, XLNET)}", *few)
    assert losses(tmp_path / "xlnet") == pytest.approx([math.log(97)] * 2, abs=0.5)
    assert metric(tmp_path / "xlnet")["eval_loss"] < losses(tmp_path / "xlnet")[0]
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "xlnet" / "model")).__name__ == "XLNetLMHeadModel"


@pytest.mark.slow
def test_stock_xlnet_is_pretrained_and_fine_tuned(launch, plm, classify, tmp_path):
    model = f"model.config={preset(tmp_path, XLNET)}"
    said = launch("pretrain_plm", plm, f"output={tmp_path}/xlnet", model, "training.max_train_steps=8").stdout
    assert "decero fill" in said
    assert losses(tmp_path / "xlnet")[-1] < losses(tmp_path / "xlnet")[0] - 0.1
    folder = tmp_path / "xlnet" / "model"
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["XLNetLMHeadModel"]
    AutoModelForCausalLM.from_pretrained(folder)
    launch("finetune_classification", classify, f"output={tmp_path}/topics", f"model.name_or_path={folder}",
           "training.max_train_steps=25")  # fmt: skip
    assert metric(tmp_path / "topics")["accuracy"] > 0.8


def test_a_model_that_breaks_the_order_ends_in_one_line(launch, plm, tmp_path):
    text = "model_type: mpnet\nvocab_size: 97\nhidden_size: 22\nnum_hidden_layers: 1\nnum_attention_heads: 1\n"
    text += "intermediate_size: 37\nmax_position_embeddings: 64\n"
    model = f"model.config={preset(tmp_path, text)}"
    said = launch("pretrain_plm", plm, f"output={tmp_path}/x", model, expect=2).stderr.strip().splitlines()[-1]
    why = "mpnet cannot learn from permuted orders: it does not take positions from position_ids; use a decero_encoder"
    assert f"{why}, bert, roberta, modernbert or xlnet" in said


# --- continued pretraining


def test_a_stock_checkpoint_without_a_head_is_continued(launch, mlm, trained_tokenizer, tmp_path):
    """Its body is kept and its head is new; a second run then continues with that head."""
    tokenizer = AutoTokenizer.from_pretrained(trained_tokenizer)
    torch.manual_seed(5)
    shape = {"hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 37}
    body = BertModel(BertConfig(vocab_size=97, **shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    body.save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    words = "tokenizer.name_or_path=null", "training.max_train_steps=15", "training.eval_strategy=no"
    said = launch("pretrain_mlm", mlm, f"output={tmp_path}/one", f"model.name_or_path={tmp_path}/body", *words).stderr
    assert "new, with random weights: cls; not used: pooler.dense (2 tensors)" in said
    assert losses(tmp_path / "one")[0] == pytest.approx(math.log(97), abs=0.3)
    assert losses(tmp_path / "one")[-1] < losses(tmp_path / "one")[0] - 0.4
    config = json.loads((tmp_path / "one" / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    tiny = "optim.learning_rate=1e-9", "training.max_train_steps=4"
    again = launch(
        "pretrain_mlm", mlm, f"output={tmp_path}/two", f"model.name_or_path={tmp_path}/one/model", *words, *tiny
    )
    assert "random weights" not in again.stderr
    assert metric(tmp_path / "two")["eval_loss"] == pytest.approx(metric(tmp_path / "one")["eval_loss"], abs=1e-4)
    kept = AutoModel.from_pretrained(tmp_path / "one" / "model", add_pooling_layer=False).state_dict()
    moved = max(float((kept[name] - tensor).abs().max()) for name, tensor in body.state_dict().items() if name in kept)
    assert 0 < moved < 0.2  # 15 steps of at most 0.01 each: it began with the checkpoint's weights
