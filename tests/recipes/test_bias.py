"""The recipe of bias probes: from rows to tables, a picture and a section of the card; and bad input."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, GPT2Config

from decero.hub.publish import push

FIELDS = {"vocab_size": 97, "hidden_size": 22, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 7}
LINE = "team won match late goal young striker front loud crowd bank raised rate shares fell market feared"
WORDS = LINE.split(" ")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory, trained_tokenizer):
    """A tiny BERT that was made to prefer `bank`, and a tiny GPT-2 with random weights."""
    tokenizer, folder = AutoTokenizer.from_pretrained(trained_tokenizer), tmp_path_factory.mktemp("models")
    torch.manual_seed(5)
    masked = BertForMaskedLM(BertConfig(**FIELDS, max_position_embeddings=31))
    with torch.no_grad():
        masked.cls.predictions.decoder.bias[tokenizer("bank", add_special_tokens=False)["input_ids"][0]] += 9
    masked.save_pretrained(folder / "masked" / "model")
    ids = {"bos_token_id": 2, "eos_token_id": 3}
    config = GPT2Config(vocab_size=97, n_embd=22, n_layer=1, n_head=2, n_positions=61, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "causal" / "model")
    for name in ("masked", "causal"):
        tokenizer.save_pretrained(folder / name / "model")
    return folder


@pytest.fixture(scope="module")
def config(models, corpus, tmp_path_factory):
    """CrowS-Pairs in both of its shapes: pairs of `bank` and `team`, each also as the less stereotyped, and others."""
    folder, rows, others = tmp_path_factory.mktemp("sets"), [], []
    for n in range(8):
        frame = " ".join(WORDS[(n * 5 + i) % len(WORDS)] for i in range(3))
        rows.append({"sent_more": f"bank {frame}", "sent_less": f"team {frame}", "bias_type": "planted"})
        words = [WORDS[(n + i) % len(WORDS)] for i in range(2)]
        pairs = zip(words, words[::-1], strict=True)
        rows += [{"sent_more": f"{a} {frame}", "sent_less": f"{b} {frame}", "bias_type": "both ways"} for a, b in pairs]
        answers = {"ans0": words[0], "ans1": "crowd", "ans2": words[1], "label": 1, "category": "Age"}
        about = {"context": frame, "question": "who", "groups": ["old", "unknown", "nonOld"], "stereotyped": ["old"]}
        kinds = {"context_condition": "ambig", "question_polarity": ("neg", "nonneg")[n % 2]}
        others.append(answers | about | kinds)
    for name, lines in (("pairs", rows), ("answers", others)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "bias.yaml"
    path.write_text(f"""\
output: OUTPUT
model: {{name_or_path: {models}/masked/model}}
sets:
  pairs: {{format: crows_pairs, data: {{files: {{test: {folder}/pairs.jsonl}}}}}}
  answers: {{format: bbq, data: {{files: {{test: {folder}/answers.jsonl}}}}}}
unigram: {{files: {{train: {corpus}/train.jsonl}}}}
control: {{seeds: [0, 1]}}
tracking: {{trackers: []}}
""")
    return path


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_probes_go_from_rows_to_tables_picture_and_card(launch, config, models, tmp_path, capsys):
    output = models / "masked" / "bias"
    words = [f"output={output}", "per_device_eval_batch_size=7"]
    printed = launch("probe_bias", config, *words).stdout
    record = result(output)
    found = {each["category"]: each for each in record["categories"]}
    assert set(found) == {"planted", "both ways", "Age, ambiguous"}
    assert found["both ways"]["plain"]["share"][0] == 0.5
    assert found["both ways"]["probes"] == 16
    # CrowS-Pairs asks for the shared words, so a prior of `bank` is not in it, and word counts know nothing
    assert found["planted"]["plain"]["unigram"][0] == 0.5
    assert set(found["Age, ambiguous"]["metrics"]) == {"accuracy", "bias score"}
    assert record["metric"] == {}
    assert "A share near 50 does not show that a model is fair" in printed
    assert "| pairs | planted | 8 |" in printed
    assert (output / "bias.svg").read_bytes().startswith(b"<?xml")
    assert "| pairs | planted | 8 |" in (output / "bias.md").read_text()
    table = pd.read_parquet(output / "predictions.parquet")
    assert len(table) == 24 * 2 + 8 * 3
    launch("probe_bias", config, f"output={tmp_path}/64", "per_device_eval_batch_size=64")
    other = pd.read_parquet(tmp_path / "64" / "predictions.parquet")
    np.testing.assert_allclose(other["score"], table["score"], rtol=1e-5)
    assert [e["plain"]["share"] for e in result(tmp_path / "64")["categories"]] == [
        e["plain"]["share"] for e in record["categories"]
    ]
    assert "is finished" in launch("probe_bias", config, *words, "--resume").stdout
    capsys.readouterr()
    push(models / "masked" / "model", "me/model", dry_run=True)
    said = capsys.readouterr().out
    assert "## Bias probes" in said
    assert "run/bias.json" in said
    assert "other bias and safety were not measured" in " ".join(said.split())


@pytest.mark.slow
def test_two_processes_probe_as_one_does(launch, config, two_processes, tmp_path):
    for name, launcher in (("one", None), ("two", two_processes)):
        launch("probe_bias", config, f"output={tmp_path}/{name}", launcher=launcher)
    one, two = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two"))
    assert len(one) == 24 * 2 + 8 * 3
    np.testing.assert_allclose(two["score"], one["score"], rtol=1e-5)
    records = [result(tmp_path / name) for name in ("one", "two")]
    assert [record["num_processes"] for record in records] == [1, 2]
    assert records[1]["categories"] == records[0]["categories"]


def test_a_causal_model_finds_what_its_words_alone_prefer(launch, config, models, tmp_path):
    words = [f"model.name_or_path={models}/causal/model", 'start_token="[CLS]"', "sets.pairs.categories=[planted]"]
    launch("probe_bias", config, f"output={tmp_path}/out", *words)
    found = result(tmp_path / "out")["categories"]
    assert [each["category"] for each in found] == ["planted", "Age, ambiguous"]
    assert found[0]["plain"]["noise"] > 0
    assert found[1]["plain"]["noise"] is None


def test_bad_probes_and_models_are_one_line(launch, config, models, trained_tokenizer, tmp_path):
    def said(*words):
        done = launch("probe_bias", config, f"output={tmp_path}/out", *words, expect=2)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out" / "result.json").exists()
        return errors[0]

    def rows(*lines):
        (tmp_path / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return f"sets={{pairs: {{format: crows_pairs, data: {{files: {{test: {tmp_path}/bad.jsonl}}}}}}}}"

    pair = {"sent_more": "bank fell", "sent_less": "team fell", "bias_type": "x"}
    assert "two texts are equal ('bank fell')" in said(rows(pair | {"sent_less": "bank fell"}))
    assert "'bank fell' and 'Bank fell' have the same tokens" in said(rows(pair | {"sent_less": "Bank fell"}))
    missing = said("sets.pairs.columns={more: sent_mor}")
    assert "there is no column 'sent_mor'; did you mean sent_more?" in missing
    assert "sets.pairs.columns.more" in missing
    assert "no probe has the category 'plantd'; did you mean planted?" in said("sets.pairs.categories=[plantd]")
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty" in said(f"sets.pairs.data.files={{test: {tmp_path}/empty.jsonl}}")
    assert "sets.pairs has no train, only test" in said("split=train")
    assert "set control.model.config, a preset" in said("control.model={name_or_path: x}").replace("give", "set")
    t5 = "model={config: configs/model/t5_small.yaml}"
    assert "has no masked or causal head" in said(t5, f"tokenizer.name_or_path={trained_tokenizer}")
    wrong = said("control.model={config: configs/model/stock_gpt2_tiny.yaml}")
    assert "gpt2 has no MaskedLM head, which the model has" in wrong
    BertModel(BertConfig(**FIELDS)).save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(trained_tokenizer).save_pretrained(tmp_path / "bare")
    assert "has no masked or causal head" in said(f"model.name_or_path={tmp_path}/bare")
