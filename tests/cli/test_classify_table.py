"""Tables: every row is answered, written with its columns, and scored where it has a label."""

import csv
import datetime
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, precision_score, recall_score
from transformers import AutoModelForSequenceClassification

from decero.cli.main import main
from decero.data.corpus import load_corpus
from decero.data.tokenizer import train_tokenizer
from decero.inference import classify
from decero.models import DeceroEncoderConfig

WORDS = ["the", "soup", "room", "driver", "garden", "was", "warm", "cold", "red", "blue", "left", "right"]
TEXTS = [" ".join(WORDS[(n * k) % len(WORDS)] for k in range(1, 5)) for n in range(1, 24)]
NAMES = ["bad", "so, so", "good"]
SIZES = {"hidden_size": 22, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 37}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Save a tiny classifier with large weights, so that its answers differ."""

    def make(name, **fields):
        folder = tmp_path_factory.mktemp(name) / "model"
        tokenizer = train_tokenizer(
            TEXTS, algorithm="wordpiece", vocab_size=89, model_max_length=32, show_progress=False
        )
        torch.manual_seed(1)
        config = DeceroEncoderConfig(
            vocab_size=89, initializer_range=1.0, max_position_embeddings=32, **SIZES, **fields
        )
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def model(make):
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    return make("three", num_labels=3, problem_type="single_label_classification", **labels)


@pytest.fixture
def reviews(tmp_path):
    table = pd.DataFrame({"id": [f"0{n}" for n in range(len(TEXTS))], "review": TEXTS})
    table["stars"] = [NAMES[n % 3] for n in range(len(TEXTS))]
    table.to_csv(tmp_path / "reviews.csv", index=False)
    return tmp_path / "reviews.csv"


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_rows_are_written_with_their_columns_and_answers(model, reviews, tmp_path, ending):
    out = tmp_path / f"out.{ending}"
    main(["classify", model, str(reviews), "--column", "review", "--out", str(out)])
    read = {"jsonl": lambda p: pd.read_json(p, lines=True, dtype=str), "parquet": pd.read_parquet}
    table = read.get(ending, lambda p: pd.read_csv(p, sep="\t" if ending == "tsv" else ",", dtype=str))(out)
    assert table["id"].tolist() == [f"0{n}" for n in range(len(TEXTS))], "written as it was read"
    expected = list(classify(model, TEXTS))
    assert table["prediction"].tolist() == [next(iter(answer)) for answer in expected]
    assert list(table)[:4] == ["id", "review", "stars", "prediction"], "the order of the file"
    for name in NAMES:
        found = table[f"probability of {name}"].astype(float).tolist()
        assert found == pytest.approx([answer[name] for answer in expected], abs=1e-5)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_of_the_user_keep_their_values(model, tmp_path, ending):
    """Large numbers beside an empty one, all digits, dates, lists: pandas would change them."""
    row = {"id": 1234567890123456789, "text": TEXTS[0], "share": 1 / 3, "tags": ["ñ", "y"], "when": None}
    other = {"id": None, "text": TEXTS[1], "share": 0.1, "tags": [], "when": "2024-01-02"}
    table = pa.Table.from_pylist([row, other])
    when = pa.array([None, datetime.date(2024, 1, 2)])
    pq.write_table(table.set_column(4, "when", when), tmp_path / "in.parquet")
    out = tmp_path / f"out.{ending}"
    main(["classify", model, f"{tmp_path}/in.parquet", "--column", "text", "--out", str(out)])
    if ending == "csv":
        found = list(csv.DictReader(out.open()))
        assert [found[0][name] for name in row] == [str(row["id"]), TEXTS[0], repr(1 / 3), '["ñ", "y"]', ""]
        assert [found[1][name] for name in row] == ["", TEXTS[1], "0.1", "[]", "2024-01-02"]
    elif ending == "jsonl":
        found = [json.loads(line) for line in out.read_text().splitlines()]
        assert [{name: each[name] for name in row} for each in found] == [row, other]
    else:
        found = pq.read_table(out).to_pylist()
        assert [found[0][name] for name in row] == list(row.values())
        assert found[1]["when"] == datetime.date(2024, 1, 2)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_tabs_and_line_ends_in_a_field_are_read_back(model, tmp_path, ending):
    given = pa.table({"text": ["two\nlines", "a\ttab", 'say "no"', "c\r\nd"], "note": ["", 'a "quote"', "plain", "x"]})
    pq.write_table(given, tmp_path / "in.parquet")
    out = tmp_path / f"out.{ending}"
    main(["classify", model, f"{tmp_path}/in.parquet", "--column", "text", "--out", str(out)])
    table = load_corpus(files={"test": str(out)}, needs_train=False)["test"]
    assert table["text"][:] == given["text"].to_pylist()
    assert [note or "" for note in table["note"]] == given["note"].to_pylist()


def test_a_table_is_not_written_over_itself(model, reviews, capsys):
    before = reviews.read_bytes()
    with pytest.raises(SystemExit) as end:
        main(["classify", model, str(reviews), "--column", "review", "--out", str(reviews)])
    assert end.value.code == 2
    assert "this is the table that is read; give another name" in capsys.readouterr().err
    assert reviews.read_bytes() == before


def test_a_column_that_would_be_replaced_is_refused(model, reviews, tmp_path, capsys):
    table = pd.read_csv(reviews, dtype=str).assign(prediction="mine")
    table.to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises(SystemExit) as stopped:
        main(["classify", model, f"{tmp_path}/own.csv", "--column", "review", "--out", f"{tmp_path}/out.csv"])
    assert stopped.value.code == 2
    assert "its column 'prediction' has the name of one that --out adds; rename it" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_labelled_rows_are_scored(model, reviews, capsys):
    arguments = ["classify", model, str(reviews), "--column", "review", "--label-column", "stars"]
    main([*arguments, "--jsonl"])
    found = json.loads(capsys.readouterr().out)
    right = [NAMES[n % 3] for n in range(len(TEXTS))]
    said = [next(iter(answer)) for answer in classify(model, TEXTS)]
    assert len(set(said)) > 1
    assert found["metric"]["accuracy"] == pytest.approx(accuracy_score(right, said))
    assert found["confusion_matrix"] == confusion_matrix(right, said, labels=NAMES).tolist()
    for name in NAMES:
        for score, function in (("precision", precision_score), ("recall", recall_score)):
            expected = function(right, said, labels=[name], average="macro", zero_division=0)
            assert found["per_class"][name][score] == pytest.approx(expected)
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert "accuracy" in lines[0]
    assert lines[1].split()[:3] == ["label", "precision", "recall"]
    assert len(lines) == 5


def test_rows_without_text_are_not_scored(model, reviews, tmp_path, capsys):
    table = pd.read_csv(reviews)
    table["stars"] = [next(iter(answer)) for answer in classify(model, table["review"])]
    table.loc[len(table)] = ["x", "", NAMES[0]]
    table.loc[len(table)] = ["y", "", NAMES[1]]
    table.to_csv(tmp_path / "gaps.csv", index=False)
    main(["classify", model, str(tmp_path / "gaps.csv"), "--column", "review", "--label-column", "stars", "--jsonl"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["metric"]["accuracy"], found["examples"]) == (1.0, len(TEXTS))
    assert "2 rows have no text, so they are not scored" in said.err
    main(["classify", model, str(reviews), "--column", "review", "--jsonl"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    assert all(set(line["labels"]) == set(NAMES) for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "is a table: name its column of texts with --column NAME"),
        (["--column", "reviw"], "there is no column 'reviw'; did you mean review?"),
        (["--column", "review", "--label-column", "id"], "row 0: label '00' is not one of the model's"),
        (["--column", "review", "--out", "x.txt"], "give a name that ends in .csv"),
        (["--column", "review", "--pair"], "name the column of the second texts: --pair-column NAME"),
        (["--column", "review", "--out", "/dev/null/x.csv"], "error: --out /dev/null/x.csv: "),
    ],
)
def test_what_cannot_be_answered_is_one_line(model, reviews, words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["classify", model, str(reviews), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_options_of_a_table_need_one(model, capsys):
    with pytest.raises(SystemExit):
        main(["classify", model, "hello", "--column", "review"])
    assert "hello: there is no such file; --column, --pair-column, --label-column and --out" in capsys.readouterr().err


def test_a_regression_writes_values_and_scores_them(make, reviews, tmp_path, capsys):
    model = make("value", num_labels=1, problem_type="regression")
    table = pd.read_csv(reviews).assign(stars=[n / 7 for n in range(len(TEXTS))])
    table.to_csv(reviews, index=False)
    main(
        ["classify", model, str(reviews), "--column", "review", "--label-column", "stars", "--out", f"{tmp_path}/o.csv"]
    )
    values = [next(iter(answer.values())) for answer in classify(model, TEXTS)]
    assert pd.read_csv(tmp_path / "o.csv")["prediction"].tolist() == pytest.approx(values, abs=1e-5)
    mse = sum((v - n / 7) ** 2 for n, v in enumerate(values)) / len(values)
    assert f"mse {mse:.4f}" in capsys.readouterr().out


def test_several_labels_a_row_are_scored(make, tmp_path, capsys):
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    model = make("many", num_labels=3, problem_type="multi_label_classification", **names)
    rows = [{"review": text, "tags": NAMES[: 1 + n % 3]} for n, text in enumerate(TEXTS)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["classify", model, f"{tmp_path}/r.jsonl", "--column", "review", "--label-column", "tags", "--jsonl"])
    found = json.loads(capsys.readouterr().out)
    answers = list(classify(model, TEXTS))
    right = [
        [(name in row["tags"]) == (answer[name] > 0.5) for name in NAMES]
        for row, answer in zip(rows, answers, strict=True)
    ]
    assert found["metric"]["label_accuracy"] == pytest.approx(sum(map(sum, right)) / (3 * len(rows)))
    assert "confusion_matrix" not in found
