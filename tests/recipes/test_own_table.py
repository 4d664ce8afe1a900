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


@pytest.mark.long
@pytest.mark.parametrize("make", [as_csv, pytest.param(as_text, marks=pytest.mark.slow)])
def test_the_chain_of_the_guide_runs_on_own_files(launch, rows, architecture, tmp_path, make, monkeypatch):
    table, column, label = make(rows, tmp_path)
    texts = [f"data.files.train={tmp_path}/texts/*.txt" if make is as_text else f"data.files.train={table}", *column]
    labelled = [f"data.files.train={table}", *column, *label]
    launch(
        "train_tokenizer", "configs/tokenizer/quickstart.yaml", *texts, *SPLIT[:2], f"output={tmp_path}/tokenizer",
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


def test_a_threshold_and_rows_are_kept_from_file_to_answers(launch, rows, architecture, tmp_path, trained_tokenizer):
    table, column, label = as_csv(rows, tmp_path)
    written = pd.read_csv(table, dtype=str)
    done = launch(
        "finetune_classification", "configs/finetune/bbc_minilm.yaml", f"data.files.train={table}", *column, *label,
        *SPLIT, *SHORT, f"model.config={architecture}", f"tokenizer.name_or_path={trained_tokenizer}",
        "data.max_train_rows=null", f"output={tmp_path}/run", "training.max_train_steps=2", "training.eval_strategy=no",
        "objective.threshold=validation",
    )  # fmt: skip
    record, answers = (json.loads((tmp_path / "run/result.json").read_text()),
                       pd.read_parquet(tmp_path / "run/predictions.parquet"))  # fmt: skip
    assert f"(threshold {record['threshold']}, chosen on validation)" in done.stdout
    assert answers["review"].tolist() == written["review"][answers["row"]].tolist()
    assert answers["label_name"].tolist() == written["stars"][answers["row"]].tolist()
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config.get("decision_threshold", 0.5) == record["threshold"]
    config["decision_threshold"] = float(answers["probabilities"].str[1].median())  # whatever it chose, one that acts
    (tmp_path / "run/model/config.json").write_text(json.dumps(config))
    answers[["review", "probabilities"]].to_csv(tmp_path / "test.csv", index=False)
    main(["classify", f"{tmp_path}/run/model", f"{tmp_path}/test.csv", "--column", "review", "--out",
          f"{tmp_path}/out.csv"])  # fmt: skip
    said = pd.read_csv(tmp_path / "out.csv", dtype={"prediction": str})
    above = said["probability of 1.00"] > config["decision_threshold"]
    assert said["prediction"].tolist() == ["1.00" if one else "1.0" for one in above]
    assert 0 < above.sum() < len(above)


def test_a_wrong_label_is_named_by_its_row_in_the_file(launch, rows, architecture, tmp_path, trained_tokenizer):
    table, column, label = as_csv(rows, tmp_path)
    written = pd.read_csv(table, dtype=str)
    written.loc[41, "stars"] = ""
    written.to_csv(table, index=False)
    done = launch(
        "finetune_classification", "configs/finetune/bbc_minilm.yaml", f"data.files.train={table}", *column, *label,
        *SPLIT, f"model.config={architecture}", f"tokenizer.name_or_path={trained_tokenizer}", f"output={tmp_path}/run",
        expect=2,
    )  # fmt: skip
    assert ", row 41: no label (column 'stars')" in done.stderr


@pytest.mark.long
def test_folds_score_every_row_once_by_a_model_that_never_saw_it(
    launch, rows, architecture, tmp_path, trained_tokenizer
):
    table, _, _ = as_csv(rows, tmp_path)
    config = tmp_path / "folds.yaml"
    config.write_text(f"""\
output: {tmp_path}/run
reference: random
contenders:
  random: {{model: {{config: {architecture}}}, tokenizer: {{name_or_path: {trained_tokenizer}}}}}
  words: {{baseline: tfidf}}
seeds: [0, 1]
folds: 2
label_budgets: [20]
tune: {{optim.learning_rate: [1e-5, 1e-2]}}
data:
  {{files: {{train: {table}}}, text_column: review, label_column: stars, max_length: 24, validation_fraction: 0.2}}
objective: {{threshold: validation}}
training: {{max_train_steps: 2, global_batch_size: 8, per_device_batch_size: 8, eval_strategy: "no"}}
tracking: {{trackers: []}}
""")
    done = launch("compare", config)
    record = json.loads((tmp_path / "run/result.json").read_text())
    assert (record["failed"], record["runs"]) == (0, 4), done.stdout
    assert "Cross-validation: each row was scored once a seed, in one of 2 folds" in done.stdout
    written, folds = pd.read_csv(table, dtype=str), {}
    for contender in ("random", "words"):
        for seed in (0, 1):
            folder = tmp_path / "run/runs" / contender / "labels-20" / f"seed-{seed}"
            pooled, own = (
                pd.read_parquet(folder / "predictions.parquet"),
                json.loads((folder / "result.json").read_text()),
            )
            assert pooled["row"].tolist() == list(range(len(rows)))
            right = [own["label_names"][i] for i in pooled["label"]]
            assert right == written["stars"].tolist()
            assert own["metric"]["accuracy"] == pytest.approx((pooled["label"] == pooled["prediction"]).mean())
            folds.setdefault(tuple(pooled["fold"]), []).append(contender)
            assert pooled.groupby("review" if contender == "random" else written["review"])["fold"].nunique().max() == 1
    assert len(folds) == 1, "the folds of all runs are those of the comparison's seed"
    mean = sum(
        json.loads((tmp_path / f"run/runs/words/labels-20/seed-{seed}/result.json").read_text())["metric"]["accuracy"]
        for seed in (0, 1)
    ) / 2  # fmt: skip
    assert record["metric"]["words, 20 labels"] == pytest.approx(mean)
    page = (tmp_path / "run/report.html").read_text()
    assert "Cross-validated accuracy (%)" in page
    assert "Scores of each label" in page
    assert "chosen in each run by the accuracy on validation" in page
    assert (tmp_path / "run/confusion.svg").exists()
    assert "Scores of each label" not in done.stdout


def test_a_missing_validation_split_is_said_once(launch, rows, architecture, tmp_path, trained_tokenizer):
    table, column, label = as_csv(rows, tmp_path)
    done = launch(
        "finetune_classification", "configs/finetune/bbc_minilm.yaml", f"data.files.train={table}", *column, *label,
        "data.test_fraction=0.3", "data.max_length=24", *SHORT, f"model.config={architecture}", "--dry-run",
        f"tokenizer.name_or_path={trained_tokenizer}", "data.max_train_rows=20", f"output={tmp_path}/run",
    )  # fmt: skip
    assert "no validation split: nothing is evaluated during training" in done.stdout
    assert (done.stdout + done.stderr).count("no validation") == 1
