"""The chain of docs/guides/start.md on a user's own files: the configs of the quickstart, with settings replaced."""

import json

import pandas as pd
import pytest

from decero.cli.main import main

SHORT = ["training.global_batch_size=8", "training.per_device_batch_size=8", "optim.num_warmup_steps=1"]
SPLIT = ["data.validation_fraction=0.2", "data.test_fraction=0.3", "data.max_length=24"]


@pytest.fixture
def rows(corpus):
    lines = (corpus / "train.jsonl").read_text().splitlines() + (corpus / "test.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def as_csv(rows, folder):
    path = folder / "reviews.csv"
    table = pd.DataFrame({"id": range(len(rows)), "review": [row["text"] for row in rows]})
    table["stars"] = [{"sport": "1.0", "money": "1.00"}[row["label"]] for row in rows]  # two names, not one number
    table.to_csv(path, index=False)
    return path, ["data.text_column=review"], ["data.label_column=stars"]


def as_text(rows, folder):
    """Texts alone, for pretraining; labels come from a jsonl file beside them."""
    (folder / "texts").mkdir()
    for number, row in enumerate(rows):
        (folder / "texts" / f"{number}.txt").write_text(row["text"])
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "labelled.jsonl", [], []


@pytest.mark.parametrize("make", [as_csv, as_text])
def test_the_chain_of_the_guide_runs_on_own_files(launch, rows, architecture, tmp_path, make, monkeypatch):
    table, column, label = make(rows, tmp_path)
    texts = [f"data.files.train={tmp_path}/texts/*.txt" if make is as_text else f"data.files.train={table}", *column]
    labelled = [f"data.files.train={table}", *column, *label]
    launch(
        "train_tokenizer", "configs/tokenizer/quickstart.yaml", *texts, f"output={tmp_path}/tokenizer",
        "tokenizer.vocab_size=90", "tokenizer.min_frequency=1", f"model.config={architecture}",
    )  # fmt: skip
    tokenizer = f"tokenizer.name_or_path={tmp_path}/tokenizer/model"
    for seed in (0, 1):
        done = launch(
            "pretrain_mlm", "configs/pretrain/mlm_quickstart.yaml", *texts, *SPLIT, *SHORT, tokenizer, f"seed={seed}",
            f"output={tmp_path}/pretrain_{seed}", f"model.config={architecture}", "training.max_train_steps=2",
        )  # fmt: skip
        assert "data.files on the command line replaces data.name" in done.stderr
        assert f"next: decero fill {tmp_path}/pretrain_{seed}/model FILE" in done.stdout

    done = launch(
        "finetune_classification", "configs/finetune/bbc_minilm.yaml", *labelled, *SPLIT, *SHORT,
        f"model.name_or_path={tmp_path}/pretrain_0/model", "data.max_train_rows=20", f"output={tmp_path}/classify",
        "training.max_train_steps=3",
    )  # fmt: skip
    record = json.loads((tmp_path / "classify" / "result.json").read_text())
    assert "train: 20 of " in done.stdout
    assert "rows (data.max_train_rows)" in done.stdout
    names = record["label_names"]
    assert names == (["1.0", "1.00"] if make is as_csv else ["money", "sport"])
    assert set(record["per_class"]) == set(names)
    assert sum(map(sum, record["confusion_matrix"])) == sum(each["support"] for each in record["per_class"].values())
    written = pd.read_parquet(tmp_path / "classify" / "predictions.parquet")
    text = column[0].partition("=")[2] if column else "text"
    assert {text, "label_name", "prediction_name", "probabilities"} <= set(written.columns)
    assert set(written["label_name"]) <= set(names)

    pretrained = ", ".join(f"{tmp_path}/pretrain_{seed}/model" for seed in (0, 1))
    done = launch(
        "compare", "configs/compare/quickstart.yaml", *labelled, *SPLIT, *SHORT, f"output={tmp_path}/compare",
        f"contenders.ours.model.pretrained=[{pretrained}]", "contenders.MiniLM=null", "seeds=[0, 1]",
        f"contenders.random weights.model.config={architecture}", f"contenders.random weights.{tokenizer}",
        "label_budgets=[20]", "training.max_train_steps=2",
    )  # fmt: skip
    assert "Ship " in done.stdout
    assert "| 2 × " in done.stdout, "two pretrainings"
    monkeypatch.chdir(tmp_path)
    main(["classify", f"{tmp_path}/classify/model", str(table), "--column", text, "--out", "predictions.parquet"])
    assert len(pd.read_parquet("predictions.parquet")) == len(rows)
