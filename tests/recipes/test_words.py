"""The recipe that labels words, from files to `decero extract`, on one process and on two."""

import json
import random

import pandas as pd
import pytest

from decero.cli.main import main

LABELS = {"team": "group", "bank": "group", "striker": "person"}
TEXT = "the bank raised its rate after the team won and the young striker feared the market"


@pytest.fixture(scope="module")
def words(tmp_path_factory, trained_tokenizer, architecture):
    folder, draw, files = tmp_path_factory.mktemp("words"), random.Random(3), {}
    for split, size in {"train": 41, "validation": 13, "test": 17}.items():
        rows = []
        for _ in range(size):
            tokens = draw.choices(TEXT.split(), k=draw.randint(3, 40))
            rows.append({"tokens": tokens, "ner_tags": [f"B-{LABELS[w]}" if w in LABELS else "O" for w in tokens]})
        files[split] = str(folder / f"{split}.jsonl")
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "words.yaml"
    settings = {
        "output": "OUTPUT", "seed": 3, "model": {"config": str(architecture)},
        "tokenizer": {"name_or_path": str(trained_tokenizer)},
        "data": {"files": files, "max_length": 29, "stride": 5}, "optim": {"learning_rate": 1e-2},
        "training": {"max_train_steps": 60, "global_batch_size": 7, "per_device_batch_size": 3, "logging_steps": 1},
        "tracking": {"trackers": []},
    }  # fmt: skip
    path.write_text(json.dumps(settings))
    return path


def test_a_model_learns_to_find_names_and_extract_finds_them(launch, words, tmp_path, capsys):
    done = launch("finetune_token_classification", words, f"output={tmp_path}/run")
    assert "packing: rows of" in done.stdout
    assert f"next: decero extract {tmp_path}/run/model FILE" in done.stdout
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["metric"]["f1"] > 0.9
    assert set(record["by_label"]) == {"person", "group"}
    table = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert len(table) == 17
    settings = json.loads(words.read_text())
    data = settings["data"] | {"files": {"test": settings["data"]["files"]["test"]}, "max_length": 9, "stride": 2}
    (tmp_path / "alone.yaml").write_text(json.dumps(settings | {"data": data}))
    model = f"model={{name_or_path: {tmp_path}/run/model}}", "tokenizer={}", f"output={tmp_path}/alone"
    done = launch("finetune_token_classification", tmp_path / "alone.yaml", *model, "--eval-only")
    assert "windows as the model was trained: of 29 tokens, 5 shared" in done.stdout
    alone = json.loads((tmp_path / "alone" / "result.json").read_text())
    assert alone["metric"] == record["metric"]
    assert alone["label_names"] == record["label_names"]
    assert "train_examples" not in alone
    main(["extract", f"{tmp_path}/run/model", "a Team, a Striker\n\nthe market", "--jsonl"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [[(e["text"], e["label"], e["start"], e["end"]) for e in line["entities"]] for line in lines]
    assert found == [[("Team", "group", 2, 6), ("Striker", "person", 10, 17)], [], []]


def test_other_shapes_label_words_in_packed_rows(launch, words, other_shape, tmp_path, capsys):
    done = launch(
        "finetune_token_classification", words, other_shape, "training.max_train_steps=3", f"output={tmp_path}/run"
    )
    assert "packing: rows of" in done.stdout
    main(["extract", f"{tmp_path}/run/model", "a team", "--jsonl"])
    assert json.loads(capsys.readouterr().out.splitlines()[0])["text"] == "a team"


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(launch, words, two_processes, tmp_path):
    launch("finetune_token_classification", words, f"output={tmp_path}/one", launcher=())
    launch("finetune_token_classification", words, f"output={tmp_path}/two", launcher=two_processes)
    one, two = (json.loads((tmp_path / name / "result.json").read_text())["metric"] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-6)
    tables = [pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two")]
    assert [list(row) for row in tables[0]["prediction"]] == [list(row) for row in tables[1]["prediction"]]
