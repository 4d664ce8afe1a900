"""Extractive summaries as a user makes them: the ceiling first, then a model that chooses sentences."""

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from accelerate import Accelerator
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from decero.config.finetune_summaries import FinetuneExtractiveSummaries
from decero.errors import UserError
from decero.inference import load, summarize
from decero.tasks import ExtractiveSummaries
from decero.training.runs import Run

LINE = "team match goal striker crowd bank rate shares market profit year late young loud weaker"
WORDS = LINE.split(" ")
SPLITS = {"train": 96, "validation": 15, "test": 21}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Documents of four sentences; the summary is the one that begins with `the`."""
    folder, draw = tmp_path_factory.mktemp("documents"), random.Random(7)
    for split, size in SPLITS.items():
        rows = []
        for _ in range(size):
            texts = [" ".join(draw.sample(WORDS, draw.randint(3, 5))) for _ in range(4)]
            place = draw.randrange(4)
            texts[place] = f"the {texts[place]}"
            document = " ".join(f"{text.capitalize()}." for text in texts)
            rows.append({"text": document, "summary": texts[place], "last": texts[3].split()[-1] + " zzz"})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def settings(documents, trained_tokenizer, architecture, tmp_path):
    def make(**changes):
        base = {
            "output": str(tmp_path / "run"), "model": {"config": str(architecture)}, "tracking": {"trackers": []},
            "tokenizer": {"name_or_path": str(trained_tokenizer)}, "objective": {"num_sentences": 1},
            "data": {"files": {split: str(documents / f"{split}.jsonl") for split in SPLITS}, "max_length": 120},
            "optim": {"learning_rate": 1e-2, "num_warmup_steps": 3},
            "training": {"max_train_steps": 40, "global_batch_size": 12, "per_device_batch_size": 12},
        }  # fmt: skip
        base["model"]["overrides"] = {"max_position_embeddings": 128}
        for name, section in changes.items():
            base[name] = section if name == "model" else base[name] | section
        path = tmp_path / "settings.yaml"
        path.write_text(json.dumps(base))
        return path

    return make


def test_a_model_finds_the_sentences_of_the_oracle(launch, settings, documents, tmp_path):
    printed = launch("finetune_extractive_summaries", settings()).stdout
    line = next(line for line in printed.splitlines() if line.startswith("ROUGE-1/2/L on validation without a model: "))
    assert "the oracle (1 sentence) 100.0 / 100.0 / 100.0" in line
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    without = record["without_a_model"]
    assert without["the oracle (1 sentence)"]["rouge1"] == 100
    assert record["metric"]["rouge1"] > without["the first 1 sentence"]["rouge1"] + 20
    table = pd.read_parquet(tmp_path / "run" / "outputs.parquet")
    assert len(table) == SPLITS["test"]
    assert all(len(row) == 1 for row in table["sentences"])
    path = settings(
        model={"name_or_path": f"{tmp_path}/run/model"},
        data={"files": {"test": str(documents / "test.jsonl")}},
        tokenizer={},
    )
    launch("finetune_extractive_summaries", path, f"output={tmp_path}/alone", "--eval-only")
    assert json.loads((tmp_path / "alone" / "result.json").read_text())["metric"] == record["metric"]
    loaded = load(tmp_path / "run" / "model", "summarize")
    assert list(summarize(loaded, [*table["source"], ""])) == [*table["hypothesis"], ""]
    assert list(summarize(loaded, table["source"], batch_tokens=1, first_window=1)) == list(table["hypothesis"])
    for command in ("extract", "classify"):
        with pytest.raises(UserError, match="model chooses sentences; use decero summarize"):
            load(tmp_path / "run" / "model", command)
    with pytest.raises(UserError, match="it chooses sentences and writes none; remove --beams"):
        list(summarize(loaded, ["a"], beams=2))
    warned = []
    loaded.model.config.extractive["max_length"] = 9
    assert list(summarize(loaded, ["The bank rose. " * 9], warn=warned.append)) == ["The bank rose."]
    assert "of 9 sentences are read" in warned[0]
    loaded.model.config.extractive = {"num_sentences": "many"}
    with pytest.raises(UserError, match=r"config\.json: extractive is"):
        list(summarize(loaded, ["a"]))


def test_summaries_that_sentences_cannot_reach_end_the_run(launch, settings, tmp_path):
    data = {"summary_column": "first"}
    path = settings(data=data)
    rows = json.loads(path.read_text())["data"]["files"]
    for split, name in rows.items():
        lines = [json.loads(line) for line in Path(name).read_text().splitlines()]
        lines = [line | {"first": " ".join(line["text"].split()[:2])} for line in lines]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.write_text(path.read_text().replace(str(rows["train"])[: -len("/train.jsonl")], str(tmp_path)))
    done = launch("finetune_extractive_summaries", path, expect=2)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: data: no choice of sentences beats the first words of the documents: on validation ")
    assert "these summaries must be written: use recipes/finetune_seq2seq.py" in line
    assert "ROUGE-1/2/L on validation without a model: " in done.stdout
    assert not (tmp_path / "run").exists()


def test_bad_columns_and_decoders_are_refused(launch, settings, trained_tokenizer, tmp_path):
    said = launch("finetune_extractive_summaries", settings(data={"summary_column": "sumary"}), expect=2).stderr
    assert "did you mean summary?" in said
    path = settings(data={"text_column": "summary"})
    assert "is the column of the documents" in launch("finetune_extractive_summaries", path, expect=2).stderr
    config = GPT2Config(vocab_size=97, n_embd=12, n_layer=1, n_head=2, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    path = settings(model={"name_or_path": str(tmp_path / "gpt2")})
    said = launch("finetune_extractive_summaries", path, expect=2).stderr.strip().splitlines()[-1]
    assert "gpt2 reads from left to right; choose an encoder" in said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def choices(settings, tmp_path):
    """The choices of a stock model with random weights, padded or packed, at some batch size."""

    def choose(packing, size, **data):
        config = FinetuneExtractiveSummaries.load(
            str(settings(model={"name_or_path": str(tmp_path / "bert")}, data=data)),
            [f"training.packing={packing}", f"training.per_device_eval_batch_size={size}"],
        )
        task = ExtractiveSummaries(config)
        run = Run(Accelerator(cpu=True), config.training, config.optim, tmp_path, progress=False, config=config)
        loaded = task.load_data(run)
        model = task.build_model()
        objective = task.optimize(run, model, loaded)
        assert objective.packed is (packing == "on")
        rows = loaded.held_out["test"][""]
        return task.choices(run, model, rows), task.evaluate(run, model, rows, loaded)["loss"]

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 17}
    fields = {"vocab_size": 97, "max_position_embeddings": 128, "initializer_range": 0.5}
    BertForMaskedLM(BertConfig(**sizes, **fields)).save_pretrained(tmp_path / "bert")
    return choose


def test_choices_depend_on_neither_batches_nor_packing(choices):
    (first, loss), *others = [choices("off", 1), choices("off", 7), choices("on", 64)]
    assert len(np.unique(np.concatenate(first))) > 1
    for chosen, other in others:
        assert chosen == first
        assert other == pytest.approx(loss, abs=1e-5)
