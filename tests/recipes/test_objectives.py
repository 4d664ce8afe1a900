"""Permutation and hybrid language models as a user trains and uses them."""

import json
import math
import shutil

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from decero.config.pretraining import PretrainPLM
from decero.errors import UserError
from decero.inference import fill, generate, score
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
    words = f"output={tmp_path}/a", "training.save_steps=8", "training.packing=off"
    launch("pretrain_plm", plm, *words)
    padded, packed = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "a", permuted))
    for name, tensor in packed.items():
        torch.testing.assert_close(padded[name], tensor, atol=2e-4, rtol=1e-3)
    (tmp_path / "a" / "result.json").unlink()
    shutil.rmtree(tmp_path / "a" / "model")
    steps = sorted((tmp_path / "a" / "checkpoints").glob("*16*"))
    assert steps
    for folder in steps:
        shutil.rmtree(folder)
    launch("pretrain_plm", plm, *words, "--resume")
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


@pytest.mark.slow
def test_stock_xlnet_is_pretrained_and_fine_tuned(launch, plm, classify, tmp_path):
    model = f"model.config={preset(tmp_path, XLNET)}"
    said = launch("pretrain_plm", plm, f"output={tmp_path}/xlnet", model, "training.max_train_steps=8").stdout
    assert "decero fill" not in said
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


# --- hybrid


@pytest.fixture(scope="module")
def hybrid(launch, write_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    algorithm = "tokenizer: {algorithm: byte_level_bpe, vocab_size: 293}"
    launch("train_tokenizer", write_config("bpe", f"output: {folder}/bpe\ndata: {{files: FILES}}\n{algorithm}\n"))
    shape = preset(folder, "model_type: decero_decoder\nvocab_size: 307\nmax_position_embeddings: 61\nhidden_size: 22\n"
                           "num_hidden_layers: 2\nnum_attention_heads: 1\nintermediate_size: 37\n")  # fmt: skip
    config = write_config(
        "hybrid",
        f"""\
output: {folder}/hybrid
seed: 3
model: {{config: {shape}}}
tokenizer: {{name_or_path: {folder}/bpe/model}}
data: {{files: FILES, max_length: 29}}
objective: {{name: hybrid_lm, causal_fraction: 0.4, mlm_probability: 0.3}}
optim: {{learning_rate: 1e-2, num_warmup_steps: 3}}
training: {{max_train_steps: 40, global_batch_size: 13, per_device_batch_size: 5, logging_steps: 1}}
tracking: {{trackers: []}}
""",
    )
    said = launch("pretrain_causal_lm", config).stdout
    assert "this model leaves as remote code, because none fills holes with a decoder's weights" in said
    assert f"next: decero generate {folder}/hybrid/model FILE; decero fill {folder}/hybrid/model FILE" in said
    return config, folder / "hybrid"


@pytest.mark.long
def test_a_hybrid_learns_both_and_reports_both(hybrid):
    _, folder = hybrid
    assert losses(folder)[-1] < losses(folder)[0] - 1
    assert {"bits_per_byte", "loss", "masked_loss"} <= set(metric(folder))
    assert metric(folder)["masked_loss"] < 5


def test_one_checkpoint_fills_and_generates(hybrid):
    _, folder = hybrid
    text = "the bank raised its rate as <mask> fell"
    (filled,) = fill(folder / "model", [text], top_k=5)
    assert "<mask>" not in filled.text
    (continued,) = generate(folder / "model", ["the bank"], max_new_tokens=5)
    assert continued
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    filler, writer = (auto.from_pretrained(folder / "model") for auto in (AutoModelForMaskedLM, AutoModelForCausalLM))
    inputs = tokenizer(text, return_tensors="pt")
    hole = int((inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero())
    with torch.no_grad():
        best = filler(**inputs).logits[0, hole, : len(tokenizer)].softmax(dim=-1).topk(5)
    assert [p for _, p in filled.holes[0]] == pytest.approx(best.values.tolist(), abs=1e-5)
    weights = writer.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in filler.state_dict().items())
    # What stands behind the hole matters to the filler, and not to the writer.
    other = inputs["input_ids"].clone()
    other[0, -1] = tokenizer.unk_token_id
    with torch.no_grad():
        assert not torch.allclose(filler(other).logits[0, hole], filler(**inputs).logits[0, hole])
        assert torch.allclose(writer(other).logits[0, hole], writer(**inputs).logits[0, hole])


def test_a_hybrid_is_measured_as_a_masked_model_too(hybrid, launch, write_config, tmp_path):
    _, folder = hybrid
    masked = write_config(
        "masked", f"output: {tmp_path}/x\nmodel: {{name_or_path: {folder}/model}}\nobjective: {{name: original}}\n"
        "data: {files: FILES, max_length: 61}\n"
    )  # fmt: skip
    launch("evaluate_masked_lm", masked)
    assert metric(tmp_path / "x")["pseudo_perplexity"] > 1
    text = "the bank raised its rate"
    (pseudo,), (causal,) = (
        score(folder / "model", [text], pseudo_likelihood="original"),
        score(folder / "model", [text]),
    )
    assert (pseudo.kind, causal.kind) == ("pseudo_log_likelihood", "log_likelihood")
    tokenizer, filler = (auto.from_pretrained(folder / "model") for auto in (AutoTokenizer, AutoModelForMaskedLM))
    ids, total = tokenizer(text, return_tensors="pt")["input_ids"], 0.0
    for place in (ids[0] >= len(tokenizer.all_special_ids)).nonzero()[:, 0].tolist():
        hidden = ids.clone()
        hidden[0, place] = tokenizer.mask_token_id
        with torch.no_grad():
            total += float(filler(hidden).logits[0, place].log_softmax(-1)[ids[0, place]])
    assert pseudo.total == pytest.approx(total, abs=1e-4)


def test_a_plain_decoder_still_refuses_to_fill(hybrid, launch, tmp_path):
    config, _ = hybrid
    launch("pretrain_causal_lm", config, f"output={tmp_path}/plain", "training.max_train_steps=1", "objective={}",
           "optim.num_warmup_steps=0")  # fmt: skip
    assert AutoConfig.from_pretrained(tmp_path / "plain" / "model").to_dict().get("pretraining_objective") is None
    with pytest.raises(UserError, match="continues texts; use decero generate"):
        load(tmp_path / "plain" / "model", "fill")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["objective.name=causal_lm"], "causal_lm masks no tokens; remove causal_fraction and mlm_probability"),
        (["objective.causal_fraction=1"], "objective.causal_fraction"),
        (["model.config=configs/model/stock_gpt2_tiny.yaml"], "gpt2 has no class that fills holes"),
        (["data.start_token=</s>"], "does not put </s> before a text"),
        (["model.overrides.position_embedding_type=relative"], "relative positions know no later tokens"),
    ],
)
def test_settings_of_a_hybrid_that_cannot_be(hybrid, launch, words, why, tmp_path):
    config, _ = hybrid
    said = launch("pretrain_causal_lm", config, f"output={tmp_path}/x", *words, expect=2).stderr
    assert why in said.strip().splitlines()[-1]
    assert not (tmp_path / "x" / "model").exists()


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
