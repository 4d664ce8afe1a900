"""Hybrid language models as a user trains and uses them: one checkpoint that generates and fills."""

import json
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from decero.errors import UserError
from decero.inference import fill, generate, score
from decero.inference.loading import commands_of, load


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


def metric(folder):
    return json.loads((folder / "result.json").read_text())["metric"]


@pytest.fixture(scope="module")
def hybrid(launch, write_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    algorithm = "tokenizer: {algorithm: byte_level_bpe, vocab_size: 293}"
    launch("train_tokenizer", write_config("bpe", f"output: {folder}/bpe\ndata: {{files: FILES}}\n{algorithm}\n"))
    shape = folder / "preset.yaml"
    shape.write_text("model_type: decero_decoder\nvocab_size: 307\nmax_position_embeddings: 61\nhidden_size: 22\n"
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


def test_either_head_of_a_loaded_hybrid_serves_both_commands(hybrid):
    folder, text = hybrid[1] / "model", "the bank raised its rate as <mask> fell, <mask>"
    assert commands_of(str(folder)) == ("generate", "score", "fill")
    named = next(fill(folder, [text])), next(generate(folder, ["the bank"], max_new_tokens=5))
    for command in ("fill", "generate", "score"):
        loaded = load(str(folder), command)
        assert (next(fill(loaded, [text])), next(generate(loaded, ["the bank"], max_new_tokens=5))) == named
        of_loaded, of_name = (next(score(model, ["the bank"])) for model in (loaded, folder))
        assert (of_loaded.kind, of_loaded.total) == ("log_likelihood", pytest.approx(of_name.total))
        other = load(loaded, "fill" if command != "fill" else "generate")
        assert other.model.lm_head is loaded.model.lm_head  # no second copy of the weights


def test_a_classifier_made_of_a_hybrid_only_classifies(hybrid, tmp_path):
    folder = hybrid[1] / "model"
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert commands_of(str(tmp_path)) == ("classify",)
    for command in ("fill", "generate", "score"):
        with pytest.raises(UserError, match="this decero_decoder model classifies texts; use decero classify"):
            load(tmp_path, command)


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


def test_pairs_of_a_hybrid_are_scored_in_either_mode(hybrid, launch, write_config, tmp_path):
    _, folder = hybrid
    lines = ["the bank raised its rate", "its rate raised the bank"]
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"good": lines[0], "bad": lines[1]}))
    (tmp_path / "probes.jsonl").write_text(json.dumps({"sent_more": lines[0], "sent_less": lines[1], "bias_type": "x"}))
    shared = f"output: {tmp_path}/OUT\nmodel: {{name_or_path: {folder}/model}}\nunigram: {{files: FILES}}\n"
    columns = "paradigm_column: null, phenomenon_column: null"
    pairs = f"data: {{files: {{test: {tmp_path}/pairs.jsonl}}, {columns}}}\n"
    probes = f"sets: {{s: {{format: crows_pairs, data: {{files: {{test: {tmp_path}/probes.jsonl}}}}}}}}\n"
    config, bias = write_config("pairs", shared + pairs), write_config("bias", shared + probes)
    for name, words in {"causal": [], "original": ["objective.name=original"]}.items():
        launch("evaluate_minimal_pairs", config, f"output={tmp_path}/{name}", *words)
        table = pd.read_parquet(tmp_path / name / "predictions.parquet")
        found = [float(table[side][0]) for side in ("good_score", "bad_score")]
        method = {} if name == "causal" else {"pseudo_likelihood": name}
        expected = [each.total for each in score(folder / "model", lines, **method)]
        assert found == pytest.approx(expected, rel=1e-5)
    for words in ([], ["objective.name=original"]):
        launch("probe_bias", bias, f"output={tmp_path}/bias{len(words)}", "control.seeds=[0, 1]", *words)
    scores = [pd.read_parquet(tmp_path / f"bias{n}" / "predictions.parquet")["score"][0] for n in (0, 1)]
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)


def test_a_plain_decoder_still_refuses_to_fill(hybrid, launch, tmp_path):
    config, _ = hybrid
    launch("pretrain_causal_lm", config, f"output={tmp_path}/plain", "training.max_train_steps=1", "objective={}",
           "optim.num_warmup_steps=0")  # fmt: skip
    assert AutoConfig.from_pretrained(tmp_path / "plain" / "model").to_dict().get("pretraining_objective") is None
    with pytest.raises(UserError, match="continues texts; use decero generate"):
        load(tmp_path / "plain" / "model", "fill")


@pytest.mark.long
def test_a_hybrid_run_resumes_exactly(hybrid, launch, tmp_path):
    config, _ = hybrid
    words = f"output={tmp_path}/a", "training.max_train_steps=9", "training.save_steps=5", "training.save_total_limit=9"
    launch("pretrain_causal_lm", config, *words)
    whole = load_file(tmp_path / "a" / "model" / "model.safetensors")
    for folder in (tmp_path / "a" / "checkpoints").glob("*9"):
        shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "a" / "model")
    (tmp_path / "a" / "result.json").unlink()
    said = launch("pretrain_causal_lm", config, *words, "--resume").stdout
    assert "at step 5 of 9" in said
    again = load_file(tmp_path / "a" / "model" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_two_processes_train_the_same_hybrid(hybrid, launch, two_processes, tmp_path):
    config, folder = hybrid
    launch("pretrain_causal_lm", config, f"output={tmp_path}/two", launcher=two_processes)
    assert losses(tmp_path / "two")[:20] == pytest.approx(losses(folder)[:20], abs=2e-4)
    assert metric(tmp_path / "two") == pytest.approx(metric(folder), rel=1e-2)


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
