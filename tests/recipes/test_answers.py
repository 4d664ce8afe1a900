"""Question answering as a user runs it: files, scores that do not depend on batches or processes, compare."""

import json
import random

import numpy as np
import pandas as pd
import pytest

from decero.evaluation.answer_metrics import answer_scores
from decero.inference import answer, load

SENTENCE = "the team won match after late goal by young striker in front of loud crowd"
WORDS = [*SENTENCE.split(" "), "bank", "raised", "rate"]
SHORT = ("training.max_train_steps=4", "training.eval_strategy=no")


def question(draw, number):
    """A context of 5 to 60 words and a question for the word after one of them; every third has no answer."""
    words = draw.choices(WORDS, k=draw.randint(5, 60))
    at = draw.randrange(len(words) - 1)
    context, start = " ".join(words), len(" ".join([*words[: at + 1], ""]))
    found = {"text": [words[at + 1]], "answer_start": [start]} if number % 3 else {"text": [], "answer_start": []}
    return {"id": f"q{number}", "context": context, "question": f"after {words[at]}", "answers": found}


@pytest.fixture(scope="module")
def config(write_config, trained_tokenizer, architecture, tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("answers"), random.Random(3)
    for split, size in {"train": 40, "validation": 13, "test": 17}.items():
        rows = [question(draw, number) for number in range(size)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ", ".join(f"{split}: {folder}/{split}.jsonl" for split in ("train", "validation", "test"))
    return write_config(
        "answers",
        f"""\
output: OUTPUT
model: {{config: {architecture}}}
tokenizer: {{name_or_path: {trained_tokenizer}}}
data: {{files: {{{files}}}, id_column: id, max_length: 24, stride: 7, max_answer_length: 4}}
optim: {{learning_rate: 1e-2}}
training: {{max_train_steps: 40, global_batch_size: 7, per_device_batch_size: 3, logging_steps: 1}}
tracking: {{trackers: []}}
""",
    )


@pytest.fixture(scope="module")
def trained(launch, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "answers"
    printed = launch("finetune_question_answering", config, f"output={folder}").stdout
    return folder, printed


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.long
def test_a_trained_model_is_scored_alone_as_it_was_trained(trained, launch, config, tmp_path):
    path = tmp_path / "alone.yaml"
    path.write_text(config.read_text().replace("max_length: 24, stride: 7, max_answer_length: 4", "max_length: 20"))
    words = "data.files.train=null", "data.files.validation=null", "data.stride=5", f"output={tmp_path}/alone"
    model = f"model={{name_or_path: {trained[0]}/model}}", "tokenizer={}"
    done = launch("finetune_question_answering", path, *words, *model, "--eval-only", expect=0)
    assert "windows as the model was trained: of 24 tokens, 5 shared" in done.stdout
    same = [word for word in words if "stride" not in word and "output" not in word]
    path.write_text(path.read_text().replace("max_length: 20", "max_length: 20, stride: 7"))
    launch("finetune_question_answering", path, *same, *model, f"output={tmp_path}/same", "--eval-only")
    assert result(tmp_path / "same")["metric"] == result(trained[0])["metric"]
    assert result(tmp_path / "same")["no_answer_threshold"] == result(trained[0])["no_answer_threshold"]


def test_other_shapes_answer_in_packed_windows(launch, config, other_shape, tmp_path):
    done = launch("finetune_question_answering", config, other_shape, *SHORT, f"output={tmp_path}/run")
    assert "packing: rows of" in done.stdout
    found = list(answer(load(tmp_path / "run" / "model", "answer"), [("after the", SENTENCE)]))
    assert len(found) == 1


def test_a_run_learns_and_writes_answers_with_their_scores(trained):
    folder, printed = trained
    assert "train: 40 questions in" in printed
    assert "packing: rows of 128 tokens" in printed
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
    assert set(result(folder)["metric"]) == {
        "f1", "exact_match", "has_answer_f1", "has_answer_exact_match", "no_answer_accuracy", "loss",
    }  # fmt: skip
    table, record = pd.read_parquet(folder / "predictions.parquet"), result(folder)
    assert table["id"].tolist() == [f"q{number}" for number in range(17)]
    scores = np.array([answer_scores(r.answer, list(r.references)) for r in table.itertuples()])
    assert scores.mean(axis=0) == pytest.approx([record["metric"]["exact_match"], record["metric"]["f1"]])
    assert (scores == table[["exact_match", "f1"]].to_numpy()).all()
    silent = table["margin"] > record["no_answer_threshold"]
    assert (silent == (table["answer"] == "")).all()
    assert table["windows"].max() > 2
    assert sum(each["questions"] for each in record["by_context_length"]) == 17
    assert record["first_window_only"]["f1"] == pytest.approx(table["first_f1"].mean())


def test_the_saved_model_answers_as_the_run_scored(trained, config):
    folder, _ = trained
    saved = json.loads((folder / "model" / "config.json").read_text())["question_answering"]
    threshold = result(folder)["no_answer_threshold"]
    assert saved == {"max_length": 24, "stride": 7, "max_answer_length": 4, "no_answer_threshold": threshold}
    draw = random.Random(3)
    rows = [question(draw, number) for size in (40, 13, 17) for number in range(size)][-17:]
    table = pd.read_parquet(folder / "predictions.parquet")
    found = list(answer(load(folder / "model", "answer"), [(row["question"], row["context"]) for row in rows]))
    assert [each.text for each in found] == table["answer"].tolist()
    assert [each.score for each in found] == pytest.approx(table["score"].tolist(), rel=1e-3)


@pytest.mark.long
def test_answers_do_not_depend_on_batches_or_packing(launch, config, tmp_path):
    made = {}  # without Adam, which makes steps of gradients that are zero but for rounding
    for size, packing in ((1, "off"), (7, "auto"), (64, "auto")):
        folder = tmp_path / f"{size}"
        words = (f"training.per_device_eval_batch_size={size}", f"training.packing={packing}", f"output={folder}")
        launch("finetune_question_answering", config, *SHORT, *words, "optim.name=sgd")
        made[size] = pd.read_parquet(folder / "predictions.parquet")
    for size in (7, 64):
        assert made[size]["answer"].tolist() == made[1]["answer"].tolist()
        for column in ("margin", "no_answer_score", "f1", "exact_match"):
            np.testing.assert_allclose(made[size][column], made[1][column], atol=1e-4)


@pytest.mark.slow
def test_two_processes_answer_as_one_does(launch, config, tmp_path, two_processes):
    launch("finetune_question_answering", config, f"output={tmp_path}/one", launcher=())
    launch("finetune_question_answering", config, f"output={tmp_path}/two", launcher=two_processes)
    one, two = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two"))
    assert one["answer"].tolist() == two["answer"].tolist()
    np.testing.assert_allclose(one["margin"], two["margin"], atol=1e-3)
    assert result(tmp_path / "one")["metric"] == pytest.approx(result(tmp_path / "two")["metric"], abs=1e-4)


@pytest.mark.parametrize(("choice", "threshold"), [("off", False), ("on", True)])
def test_no_answer_follows_the_setting(launch, config, tmp_path, choice, threshold):
    launch("finetune_question_answering", config, f"output={tmp_path}/r", *SHORT, f"objective.no_answer={choice}")
    assert (result(tmp_path / "r")["no_answer_threshold"] is not None) is threshold
    if choice == "off":
        assert (pd.read_parquet(tmp_path / "r" / "predictions.parquet")["answer"] != "").all()


def test_a_misplaced_answer_stops_the_run_before_it_writes(launch, config, tmp_path):
    rows = [{"context": "the team won", "question": "who", "answers": {"text": ["team"], "answer_start": [5]}}]
    (tmp_path / "train.jsonl").write_text(json.dumps(rows[0]) + "\n")
    words = f"data.files.train={tmp_path}/train.jsonl", "data.id_column=null", f"output={tmp_path}/out"
    line = launch("finetune_question_answering", config, *words, expect=2).stderr.splitlines()[-1]
    assert "train, row 0: the answer 'team' is not at character 5 of its context, which has 'eam ' there" in line
    assert line.endswith("the context has it at 4")
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_contenders_are_compared_by_question(launch, config, tmp_path):
    settings = config.read_text().replace("output: OUTPUT", f"output: {tmp_path}/compare")
    model = next(line for line in settings.splitlines() if line.startswith("model:"))
    tokenizer = next(line for line in settings.splitlines() if line.startswith("tokenizer:"))
    settings = settings.replace(model, "").replace(tokenizer, "").replace("max_train_steps: 40", "max_train_steps: 4")
    path = tmp_path / "compare.yaml"
    path.write_text(
        f"task: finetune_question_answering\nreference: ours\nseeds: [0]\nlabel_budgets: [20]\nkeep_models: true\n"
        f"contenders:\n  ours: {{{model}, {tokenizer}}}\n  words: {{baseline: sentence}}\n"
        f"  none: {{baseline: no_answer}}\n"
        f"{settings}"
    )
    printed = launch("compare", path).stdout
    assert "3 runs" in printed or "[3/3]" in printed
    tables = [pd.read_parquet(file) for file in sorted((tmp_path / "compare").rglob("predictions.parquet"))]
    assert len(tables) == 3
    assert len({tuple(table["id"]) for table in tables}) == 1
    none = next(table for table in tables if (table["answer"] == "").all() and "margin" not in table)
    assert none["f1"].mean() == pytest.approx(6 / 17)
    (saved,) = (tmp_path / "compare").rglob("model/config.json")
    assert json.loads(saved.read_text())["question_answering"]["no_answer_threshold"] is not None
