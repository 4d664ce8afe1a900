"""A suite as a user runs it: several tasks, averages, reports, --resume, and what is refused."""

import json

import pytest
import torch

from decero.comparison.suite_plan import make_suite
from decero.config.suite import EvaluateSuite
from decero.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Matrices this small are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _no_reports_of_tasks():
    """Tests of comparisons look at them; their figures take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "decero.comparison.suite_plan.write_report", lambda folder, *_, **__: (folder / "verdict.md").touch()
        )
        yield


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def suite(write_config, trained_tokenizer, architecture, tmp_path_factory):
    """A class, a number and a choice, learned by one model and by counts where a task has such a baseline."""
    folder = tmp_path_factory.mktemp("suite")
    topic = write_config("topic", "output: x\ndata: {files: FILES, max_length: 29, max_train_rows: 7}\n")
    config = write_config(
        "suite",
        f"""\
output: {folder}/run
title: A tiny suite
tasks:
  topic: {{config: {topic}}}
  score:
    data: {{files: FILES, max_length: 29, label_column: score}}
    objective: {{problem_type: regression}}
    metric: pearson
    training: {{max_train_steps: 4}}
  choice:
    recipe: finetune_multiple_choice
    data: {{files: FILES, max_length: 29, text_column: text, choices: [sport, money]}}
    label_budgets: [12, null]
reference: ours
contenders:
  ours: {{model: {{config: {architecture}}}, tokenizer: {{name_or_path: {trained_tokenizer}}}}}
  words: {{tfidf: true}}
  counts: {{baseline: first}}
seeds: [0, 1]
label_budgets: [10, null]
optim: {{learning_rate: 1e-2}}
training: {{max_train_steps: 3, global_batch_size: 8, per_device_batch_size: 8, eval_strategy: "no", logging_steps: 3}}
tracking: {{trackers: []}}
""",
    )
    return folder / "run", config


@pytest.fixture(scope="module")
def done(launch, suite):
    folder, config = suite
    return launch("evaluate_suite", config, f"output={folder}").stdout


def test_a_suite_averages_every_task(suite, done):
    folder, _ = suite
    record = result(folder)
    assert (record["failed"], record["runs"]) == (0, 2 * 2 * (3 + 3 + 2))
    assert "choice: without words, because it has no such baseline" in done
    for budget, place in (("10 examples or 12 examples", 0), ("all examples", 1)):
        shares = [
            [
                result(run)["metric"][metric]
                for run in sorted((folder / "tasks" / task / "runs" / "ours").glob(f"{b}/seed-*"))
            ]
            for task, metric, b in (
                ("topic", "accuracy", ("labels-10", "labels-all")[place]),
                ("score", "pearson", ("labels-10", "labels-all")[place]),
                ("choice", "accuracy", ("labels-12", "labels-all")[place]),
            )
        ]
        expected = 100 * sum(sum(own) / len(own) for own in shares) / 3
        assert record["metric"][f"ours, {budget}"] == pytest.approx(expected, abs=1e-6)
        assert record["metric"][f"words, {budget}"] is None, "it is not in every task"
        assert record["differences"][f"words, {budget}"]["tasks"] == 2
        found = record["averages"][f"ours, {budget}"]
        assert found["low"] < found["value"] < found["high"]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/svg+xml") == 3, "a curve of label efficiency a task"
    assert "(2 of 3 tasks)" in page
    assert record["table"] in (folder / "suite.md").read_text()
    for task in ("topic", "score", "choice"):
        assert (folder / "tasks" / task / "verdict.md").is_file()


@pytest.mark.long
@pytest.mark.slow
def test_a_resumed_suite_runs_only_what_is_missing(launch, suite, done):
    folder, config = suite
    before = {path: path.read_text() for path in folder.rglob("seed-*/result.json")}
    again = launch("evaluate_suite", config, f"output={folder}", "--resume").stdout
    assert result(folder)["table"] in again
    (folder / "result.json").unlink()
    lost = folder / "tasks/choice/runs/counts/labels-all/seed-1/result.json"
    lost.unlink()
    launch("evaluate_suite", config, f"output={folder}", "--resume")
    after = {path: path.read_text() for path in folder.rglob("seed-*/result.json")}
    assert before.keys() == after.keys()
    assert all(before[path] == after[path] for path in before if path != lost)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tasks.score.metric=mse"], "tasks.score.metric: mse is better when low, so it has no place in an average"),
        (["tasks.score.metric=spearman"], "spearman cannot be computed from sums over examples"),
        (["tasks.topic.recipe=finetune_clasification"], "did you mean finetune_classification?"),
        (
            ["tasks.topic.data.max_lenght=3"],
            "tasks.topic: task finetune_classification: unknown setting data.max_lenght",
        ),
        (["tasks.choice.label_budgets=[7]"], "1 budgets, where the suite has 2; an average needs as many"),
        (["contenders.words={baseline: tfdif}"], "contenders.words: unknown baseline tfdif; did you mean tfidf?"),
        (["reference=words"], "reference: choose a model; a baseline is not in every task"),
        (["tasks.topic.training.mixed_precision=bf16"], "cannot differ between tasks"),
    ],
)
def test_what_cannot_be_averaged_is_refused_before_it_runs(suite, words, line):
    with pytest.raises(UserError) as refusal:
        make_suite(EvaluateSuite.load(str(suite[1]), words))
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)
