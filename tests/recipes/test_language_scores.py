"""Recipes that measure language models: minimal pairs, and text with masks."""

import json
import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, BertConfig, GPT2Config, set_seed

from decero.data.likelihood_rows import MaskedRows
from decero.evaluation.pair_accuracy import preferences
from decero.inference import score
from decero.inference.loading import Loaded
from decero.tasks import pseudo_likelihood as measuring

FIELDS = {"vocab_size": 97, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 7}
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
    """A tiny BERT and a tiny GPT-2 with random weights."""
    made = {}
    for name in ("masked", "causal"):
        folder = tmp_path_factory.mktemp(name)
        tokenizer = AutoTokenizer.from_pretrained(trained_tokenizer)
        set_seed(5)
        if name == "masked":
            config = BertConfig(**FIELDS, max_position_embeddings=31, initializer_range=0.4)
            AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
        else:
            ids = {"bos_token_id": 2, "eos_token_id": 3}
            config = GPT2Config(vocab_size=97, n_embd=22, n_layer=1, n_head=2, n_positions=31, **ids)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[name] = str(folder)
    return made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """60 pairs of two paradigms: words in another order, and some equal texts; and each pair the other way round."""
    rows = []
    for n in range(30):
        words = [WORDS[(n * 5 + i * i) % len(WORDS)] for i in range(4 + n % 3)]
        good, bad = " ".join(words), " ".join(words[::-1] if n % 7 else words)
        kind = {"paradigm": f"p{n % 2}", "phenomenon": "order"}
        rows += [{"good": good, "bad": bad} | kind, {"good": bad, "bad": good} | kind]
    path = tmp_path_factory.mktemp("pairs") / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def config(pairs, models, corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "pairs.yaml"
    path.write_text(f"""\
output: OUTPUT
model: {{name_or_path: {models["masked"]}}}
data: {{files: {{test: {pairs}}}}}
unigram: {{files: {{train: {corpus}/train.jsonl}}}}
tracking: {{trackers: []}}
""")
    return path


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_pairs_are_scored_as_single_texts_are(launch, config, models, tmp_path, kind):
    words = [] if kind == "masked" else [f"model.name_or_path={models['causal']}", 'start_token="[CLS]"']
    printed = launch("evaluate_minimal_pairs", config, f"output={tmp_path}/7", *words, "per_device_eval_batch_size=7")
    record, table = result(tmp_path / "7"), pd.read_parquet(tmp_path / "7" / "predictions.parquet")
    assert record["metric"] == {"accuracy": 0.5, "accuracy_per_token": 0.5}  # each pair stands there both ways round
    assert record["whole"]["unigram"][0] == 0.5
    assert set(record["paradigms"]) == {"p0", "p1"}
    assert record["phenomena"]["order"]["pairs"] == 60
    assert "| order | 60 | 50.0 [" in printed.stdout
    options = {} if kind == "masked" else {"start_token": "[CLS]"}
    single = [each.total for each in score(models[kind], table["bad"], **options)]
    assert table["bad_score"].tolist() == pytest.approx(single, rel=1e-6)
    assert (table["good_score"] != table["bad_score"]).sum() == 50
    launch("evaluate_minimal_pairs", config, f"output={tmp_path}/64", *words, "per_device_eval_batch_size=64")
    other = pd.read_parquet(tmp_path / "64" / "predictions.parquet")
    np.testing.assert_allclose(other["good_score"], table["good_score"], rtol=1e-6)
    assert result(tmp_path / "64")["whole"] == record["whole"]


def test_random_weights_are_averaged_over_seeds(launch, config, models, tmp_path):
    words = [f"output={tmp_path}/out", "control={seeds: [3, 8]}", "data.max_pairs=9"]
    printed = launch("evaluate_minimal_pairs", config, *words)
    found, table = result(tmp_path / "out"), pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    own = AutoTokenizer.from_pretrained(models["masked"])
    preferred = []
    for seed in (3, 8):
        set_seed(seed)
        model = AutoModelForMaskedLM.from_config(
            BertConfig(**FIELDS, max_position_embeddings=31, initializer_range=0.4)
        )
        loaded = Loaded("random", model.eval(), own)
        good, bad = ([each.total for each in score(loaded, table[side])] for side in ("good", "bad"))
        preferred.append(preferences(good, bad).mean())
    assert preferred[0] != preferred[1]
    value, low, high = found["whole"]["random_weights"]
    assert value == pytest.approx(np.mean(preferred))
    assert low <= value <= high
    assert "| accuracy | per token | random weights | unigram | fewer tokens |" in printed.stdout


@pytest.mark.long
def test_random_weights_come_out_at_50(launch, config, tmp_path):
    """Both texts of a pair have the same tokens in another order, so nothing but weights can prefer one."""
    draw, rows = random.Random(3), []
    for _ in range(100):
        words = draw.sample(WORDS, 5)
        good, bad = draw.sample(words, 5), draw.sample(words, 5)
        rows.append({"good": " ".join(good), "bad": " ".join(bad), "paradigm": "p", "phenomenon": "order"})
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["good"] != row["bad"]))
    seeds = f"control={{seeds: {list(range(16))}}}"
    launch("evaluate_minimal_pairs", config, f"output={tmp_path}/out", f"data.files.test={tmp_path}/test.jsonl", seeds)
    mean, low, high = result(tmp_path / "out")["whole"]["random_weights"]
    assert 0 < abs(mean - 0.5) < 0.05, (mean, low, high)
    assert low < 0.5 < high
    assert high - low < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["within_word_l2r", "original"])
def test_two_processes_measure_masked_text_as_one(launch, write_config, models, two_processes, tmp_path, method):
    settings = f"model: {{name_or_path: {models['masked']}}}\ndata: {{files: FILES, max_length: 11, max_rows: 5}}\n"
    config = write_config("text", f"output: OUT\n{settings}objective: {{name: {method}}}\ntracking: {{trackers: []}}\n")
    for name, launcher in (("one", None), ("two", two_processes)):
        launch("evaluate_masked_lm", config, f"output={tmp_path}/{name}", launcher=launcher)
    one, two = (result(tmp_path / name) for name in ("one", "two"))
    assert [one["num_processes"], two["num_processes"]] == [1, 2]
    assert two["metric"] == pytest.approx(one["metric"], rel=1e-6)


def test_masked_text_does_not_depend_on_the_batch(launch, write_config, models, tmp_path):
    settings = f"model: {{name_or_path: {models['masked']}}}\ndata: {{files: FILES, max_length: 11, max_rows: 5}}\n"
    config = write_config("text", f"output: OUT\n{settings}tracking: {{trackers: []}}\n")
    for size in (1, 7, 64):
        words = f"output={tmp_path}/{size}", f"per_device_eval_batch_size={size}"
        launch("evaluate_masked_lm", config, *words)
    one, *others = (result(tmp_path / str(size))["metric"] for size in (1, 7, 64))
    for other in others:
        assert other == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
def test_two_processes_score_pairs_as_one_does(launch, config, two_processes, tmp_path):
    for name, launcher in (("one", None), ("two", two_processes)):
        launch("evaluate_minimal_pairs", config, f"output={tmp_path}/{name}", "data.max_pairs=7", launcher=launcher)
    one, two = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two"))
    np.testing.assert_allclose(one["good_score"], two["good_score"], rtol=1e-6)
    records = [result(tmp_path / name) for name in ("one", "two")]
    assert [record["num_processes"] for record in records] == [1, 2]
    assert records[0]["phenomena"] == records[1]["phenomena"]
    assert len(one) == 14


def test_each_piece_is_scored_by_one_process(models, monkeypatch):
    """What two processes compute, gathered, is what one computes."""
    tokenizer = AutoTokenizer.from_pretrained(models["masked"])
    model, rows = AutoModelForMaskedLM.from_pretrained(models["masked"]), MaskedRows(tokenizer)
    passages = [text.passages[0] for text in rows.cut([" ".join(WORDS[:n]) for n in range(1, 9)] * 2, 31)]
    alone = measuring.shared_scores(Accelerator(cpu=True), model, rows, passages, 7)
    parts = []
    monkeypatch.setattr(measuring, "gather_object", lambda part: parts.append(part) or [*part, *map(lost, passages)])
    lost = lambda passage: (passage, None)  # noqa: E731
    for rank in range(2):
        fake = type("Fake", (), {"process_index": rank, "num_processes": 2})()
        monkeypatch.setattr(
            measuring, "evaluating", lambda accelerator, model: __import__("contextlib").nullcontext(model)
        )
        measuring.shared_scores(fake, model, rows, passages, 7)
    assert [len(part) for part in parts] == [4, 4]
    found = dict([*parts[0], *parts[1]])
    for passage, wanted in zip(passages, alone, strict=True):
        np.testing.assert_allclose(found[passage], wanted, rtol=1e-6)


def test_a_masked_text_has_pseudo_figures_but_for_one_method(launch, write_config, models, corpus, tmp_path):
    settings = f"model: {{name_or_path: {models['masked']}}}\ndata: {{files: FILES, max_length: 11, max_rows: 3}}\n"
    config = write_config("text", f"output: OUT\n{settings}tracking: {{trackers: []}}\n")
    printed = launch("evaluate_masked_lm", config, f"output={tmp_path}/within").stdout
    assert "pseudo figures do not compare with causal models" in printed
    record = result(tmp_path / "within")
    assert set(record["metric"]) == {"loss", "pseudo_perplexity", "pseudo_bits_per_byte"} - (
        set() if record["bytes"] else {"pseudo_bits_per_byte"}
    )
    texts = [json.loads(line)["text"] for line in (corpus / "validation.jsonl").read_text().splitlines()][:3]
    tokenizer, model = (auto.from_pretrained(models["masked"]) for auto in (AutoTokenizer, AutoModelForMaskedLM))
    nats = tokens = 0.0
    for text in texts:  # from first principles: passages of nine tokens, one mask at a time
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for begin in range(0, len(ids), 9):
            part = ids[begin : begin + 9]
            for k, label in enumerate(part):
                row = torch.tensor([[tokenizer.cls_token_id, *part, tokenizer.sep_token_id]])
                row[0, k + 1] = tokenizer.mask_token_id
                with torch.no_grad():
                    nats -= float(model(row).logits[0, k + 1].log_softmax(-1)[label])
                tokens += 1
    launch("evaluate_masked_lm", config, f"output={tmp_path}/original", "objective.name=original")
    metric = result(tmp_path / "original")["metric"]
    assert metric["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert metric["pseudo_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    printed = launch("evaluate_masked_lm", config, f"output={tmp_path}/l2r", "objective.name=sentence_l2r").stdout
    assert "perplexity" in result(tmp_path / "l2r")["metric"]
    assert "pseudo_" not in printed.split("l2r: ")[1]
    assert "is finished" in launch("evaluate_masked_lm", config, f"output={tmp_path}/within", "--resume").stdout


def test_bad_pairs_and_models_are_one_line(launch, config, models, tmp_path):
    def said(*words):
        done = launch("evaluate_minimal_pairs", config, f"output={tmp_path}/out", *words, expect=2)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
        return errors[0]

    def rows(*lines):
        (tmp_path / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return f"data={{files: {{test: {tmp_path}/bad.jsonl}}, paradigm_column: null, phenomenon_column: null}}"

    assert "there is no column 'godo'; did you mean good?" in said("data.good_column=godo")
    assert "data.phenomenon_column" in said("data.phenomenon_column=field")
    assert "two settings name the column good" in said("data.bad_column=good")
    assert "row 2: column 'bad' is empty" in said(rows({"good": "a", "bad": "b"}, {"good": "a", "bad": " "}))
    long = said(rows({"good": "team " * 40, "bad": "b"}))
    assert "row 1: the good text has 120 tokens, more than the 31 of the model" in long
    assert "split: the data have no train, only test" in said("split=train")
    assert "start_token: a masked model has no start token" in said('start_token="[CLS]"')
    causal = f"model.name_or_path={models['causal']}"
    assert "objective: a causal model has its likelihood" in said(
        causal, "objective.name=original", 'start_token="[CLS]"'
    )
    assert "no bos_token and no eos_token; give a start token" in said(causal)
    (tmp_path / "signs.jsonl").write_text('{"text": " "}\n')
    words = said(f"unigram.files.train={tmp_path}/signs.jsonl")
    assert "unigram: column 'text' has no words; give a text in the language of the model" in words
    AutoModelForCausalLM.from_config(BertConfig(**FIELDS)).save_pretrained(tmp_path / "ahead")
    AutoTokenizer.from_pretrained(models["masked"]).save_pretrained(tmp_path / "ahead")
    ahead = said(f"model.name_or_path={tmp_path}/ahead", "start_token='[CLS]'")
    assert "BertLMHeadModel reads later tokens, so it gives no likelihood" in ahead
    preset = "model={config: configs/model/t5_small.yaml}"
    assert "decero_encoder_decoder has no masked or causal head" in said(
        preset, f"tokenizer.name_or_path={models['masked']}"
    )
