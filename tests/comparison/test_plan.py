"""Plans of comparisons: what is refused before anything runs, what is tuned, what was set by hand."""

import json
import unicodedata
from pathlib import Path

import pytest

from decero.comparison.contender_folders import folder_names
from decero.comparison.grid import points
from decero.comparison.plan import by_hand, configure, make_plan
from decero.config.comparison import Compare
from decero.errors import UserError
from decero.tasks import TASKS

MODEL = {"model": {"config": "x.yaml"}}
TUNE = {"optim.learning_rate": [1e-3, 3e-3, 1e-2], "training.max_train_steps": [5, 9]}


@pytest.fixture
def files(tmp_path):
    """Rows that any task can read."""
    for split, size in {"train": 20, "validation": 6, "test": 8}.items():
        rows = [
            {"text": f"word {n}", "label": "ab"[n % 2], "source": f"s {n}", "target": f"t {n}"}
            | {"context": f"word {n}", "question": "which", "answers": {"text": [f"{n}"], "answer_start": [5]}}
            for n in range(size)
        ]
        rows = [row | {"summary": row["text"]} for row in rows]
        rows = [row | {"tokens": row["text"].split(), "ner_tags": ["B-X", "O"]} for row in rows]
        objects = {"bbox": [[0.0, 0.0, 1.0, 1.0]], "category": ["a"]}
        rows = [row | {"image": "a.png", "mask": "a.png", "objects": objects} for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation", "test")}


@pytest.fixture
def settings(files, tmp_path):
    def make(task="finetune_classification", **changes):
        pairs = task in ("finetune_seq2seq", "finetune_causal_lm")
        data = {"tasks": {"swap": {"files": files}}} if pairs else {"files": files}
        if task == "finetune_multiple_choice":
            data |= {"text_column": "text", "choices": ["a", "b"]}
        if task == "finetune_semantic_segmentation":
            data |= {"class_names": ["a", "b"]}
        base = {"output": str(tmp_path / "out"), "task": task, "reference": "ours", "contenders": {"ours": MODEL}}
        base |= {"data": data, "training": {"max_train_steps": 3}}
        return Compare.parse(base | changes, "compare.yaml")

    return make


def test_one_model_at_the_largest_budget_is_a_candidate(settings):
    changes = {"label_budgets": [5, 9], "hub": {"license": "mit", "language": "es"}}
    contenders = {"ours": MODEL, "words": {"tfidf": True}}
    plan = make_plan(settings(contenders=contenders, **changes), keep_best=True)
    assert [(run.contender, run.budget, run.seed) for run in plan.candidates] == [
        ("ours", 9, seed) for seed in range(3)
    ]
    assert plan.last == 9
    hub = plan.candidates[0].config.hub
    assert (hub.license, hub.language, hub.repo_id) == ("mit", ["es"], None)
    assert make_plan(settings()).candidates == []
    assert make_plan(settings(label_budgets=[None, 5]), keep_best=True).last is None
    assert make_plan(settings(folds=2), keep_best=True).candidates == [], "no model is trained on all rows"


@pytest.mark.parametrize(
    ("hub", "said"),
    [
        ({"license": "apache"}, "hub.license: 'apache' is no license of the hub; did you mean apache-2.0?"),
        ({"language": "Spanish"}, "hub.language: 'Spanish' is no code of a language; did you mean es?"),
        ({"language": ["e"]}, "hub.language: 'e' is no code of a language; give one such as en or es"),
        ({"language": [7]}, "hub.language: 7 is no code of a language; give one such as en or es"),
        ({"language": 7}, "hub.language"),
    ],
)
def test_a_license_or_language_of_nobody_is_refused(settings, hub, said):
    with pytest.raises(UserError) as error:
        settings(hub=hub)
    assert said in str(error.value)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_compared(settings, task):
    plan = make_plan(settings(task))
    assert [run.seed for run in plan.runs] == [0, 1, 2]
    assert isinstance(plan.runs[0].config, TASKS[task].Config)
    assert plan.metric == plan.task.metrics[0]
    assert plan.split == "test"
    assert plan.runs[0].config.training.save_steps is None


@pytest.mark.parametrize(
    ("task", "changes", "line"),
    [
        ("finetune_question_answering", {"label_budgets": [21]}, "21 exceeds the 20 questions of train"),
        ("finetune_question_answering", {"metric": "has_answers_f1"}, "did you mean has_answer_f1?"),
        ("finetune_classification", {"label_budgets": [1000]}, "label_budgets: 1000 is outside"),
        ("pretrain_mml", {}, "task: unknown task pretrain_mml; did you mean pretrain_mlm?"),
        ("pretrain_mlm", {"label_budgets": [5]}, "label_budgets: pretrain_mlm uses text without labels"),
        ("pretrain_mlm", {"metric": "eval_los"}, "eval_los is not a metric of pretrain_mlm; did you mean eval_loss?"),
        ("finetune_seq2seq", {"label_budgets": [21]}, "label_budgets: 21 exceeds the 20 training pairs of swap"),
        ("finetune_seq2seq", {"generation": {"metrics": "text"}}, "unknown setting generation.metrics; did you mean"),
        ("finetune_classification", {"generation": {"metric": "text"}}, "unknown setting generation;"),
        ("finetune_classification", {"objective": {"name": "x"}}, "unknown setting objective.name; known"),
        ("pretrain_causal_lm", {"contenders": {"ours": MODEL, "w": {"tfidf": True}}},
         "contenders.w: unknown baseline tfidf of pretrain_causal_lm; known: ngram"),
        ("pretrain_causal_lm", {"contenders": {"ours": MODEL, "w": {"baseline": "ngrams"}}}, "did you mean ngram?"),
        ("pretrain_mlm", {"contenders": {"ours": MODEL, "w": {"baseline": "copy"}}}, "pretrain_mlm, which has none"),
        ("finetune_classification", {"tune": {"optim.learning_ratee": [1.0]}},
         "contenders.ours: unknown setting optim.learning_ratee; did you mean optim.learning_rate?"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_in_one_line(settings, task, changes, line):
    with pytest.raises(UserError) as refusal:
        make_plan(settings(task, **changes))
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tune": {"model.overrides": [1]}}, "tune.model.overrides: tune settings of optim and training"),
        ({"tune": {"optim.learning_rate": [1e-3, 1e-3]}}, "tune.optim.learning_rate: give different values"),
        ({"tune": TUNE, "trials": 7}, "trials: 7 exceeds the 6 points of the grid"),
        ({"trials": 2}, "trials: 2 exceeds the 0 points"),
        ({"tune": TUNE, "contenders": {"ours": MODEL | {"optim": {"learning_rate": 1.0}}}},
         "contenders.ours.optim.learning_rate: is tuned; leave it out here"),
        ({"contenders": {"ours": {"tfidf": True, "baseline": "copy"}}}, "a contender is one of"),
    ],
)  # fmt: skip
def test_a_tuning_that_makes_no_sense_is_refused(settings, changes, line):
    with pytest.raises(UserError) as refusal:
        settings(**changes)
    assert line in str(refusal.value)


def test_tuning_needs_validation_and_a_test_split_beside_it(settings, files):
    no_validation = {"files": {"train": files["train"], "test": files["test"]}}
    with pytest.raises(UserError, match="tune needs a validation split"):
        make_plan(settings(data=no_validation, tune=TUNE))
    no_test = {"files": {"train": files["train"], "validation": files["validation"]}}
    assert make_plan(settings("pretrain_mlm", data=no_test)).split == "validation"
    with pytest.raises(UserError, match="tune needs a test split, because the trials have seen validation"):
        make_plan(settings("pretrain_mlm", data=no_test, tune=TUNE))


def test_every_model_gets_the_same_trials_a_baseline_none(settings):
    contenders = {"ours": MODEL, "other": MODEL, "words": {"tfidf": True}}
    plan = make_plan(settings(contenders=contenders, tune=TUNE, label_budgets=[8, None], seed=4))
    assert len(plan.trials) == 2 * 2 * 6
    tried = {}
    for trial in plan.trials:
        tried.setdefault((trial.contender, trial.budget), []).append(trial.values)
        assert trial.seed == 4
        assert trial.config.optim.learning_rate == trial.values["optim.learning_rate"]
        assert trial.config.training.max_train_steps == trial.values["training.max_train_steps"]
    assert set(tried) == {(name, budget) for name in ("ours", "other") for budget in (8, None)}
    assert all(values == tried["ours", 8] for values in tried.values())
    chosen = plan.with_values(plan.runs[0], {"training.max_train_steps": 9})
    assert chosen.config.training.max_train_steps == 9


def test_some_of_a_grid_are_drawn_by_the_seed(settings):
    first, again, other = (points(settings(tune=TUNE, trials=3, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 3
    assert all(point in points(settings(tune=TUNE)) for point in first + other)


def test_a_contender_may_be_tuned_over_values_of_its_own(settings):
    sgd = MODEL | {"optim": {"name": "sgd"}, "tune": {"optim": {"learning_rate": [0.1, 0.3]}}}
    tune = {"optim.learning_rate": [1e-3, 3e-3]}
    plan = make_plan(settings(contenders={"ours": MODEL, "SGD": sgd}, tune=tune))
    rates = [(trial.contender, trial.config.optim.name, trial.config.optim.learning_rate) for trial in plan.trials]
    assert rates == [("ours", "adamw", 1e-3), ("ours", "adamw", 3e-3), ("SGD", "sgd", 0.1), ("SGD", "sgd", 0.3)]


@pytest.mark.parametrize(
    ("tune", "says"),
    [
        ({"optim.learning_rate": [0.1]}, "give 2 different values, as many as tune.optim.learning_rate has"),
        ({"optim.learning_rate": [0.1, 0.1]}, "give 2 different values"),
        ({"optim.learning_ratee": [0.1, 0.2]}, "is no key of tune; did you mean optim.learning_rate?"),
    ],
)
def test_unequal_effort_for_a_contender_is_refused(settings, tune, says):
    with pytest.raises(UserError, match=says):
        settings(contenders={"ours": MODEL | {"tune": tune}}, tune={"optim.learning_rate": [1e-3, 3e-3]})


def test_nested_names_of_what_is_tuned_mean_the_same(settings):
    nested = settings(tune={"optim": {"learning_rate": [1e-3, 3e-3]}})
    assert nested.tune == {"optim.learning_rate": [1e-3, 3e-3]}


def test_settings_by_hand_are_named_and_equal_ones_are_not(settings):
    own = MODEL | {"optim": {"learning_rate": 3e-4}, "training": {"max_train_steps": 3}}
    said = by_hand(settings(contenders={"ours": MODEL, "mini": own}))
    assert said == (
        "mini has settings of its own: optim.learning_rate, which was set by hand, not tuned with equal effort."
    )
    more = MODEL | {"training": {"max_train_steps": 4}}
    said = by_hand(settings(contenders={"ours": more, "mini": own}))
    assert said.startswith("ours and mini have settings of their own: training.max_train_steps, optim.learning_rate,")
    assert by_hand(settings(contenders={"ours": MODEL | {"training": {"max_train_steps": 3}}})) is None


def test_a_contender_may_count_its_batch_in_tokens(settings):
    own = MODEL | {"training": {"global_batch_tokens": 64, "per_device_tokens": 64}}
    config = configure(settings(contenders={"ours": own}), TASKS["finetune_classification"], "ours", None, 0, Path("x"))
    assert (config.training.global_batch_tokens, config.training.global_batch_size) == (64, None)


NAMES = [
    "../../x", "/abs", "ours/.", "ours", "Ours", "OURS", "a", "a/.", "", ".", "..", " ", "a ", "a.", ".a", "x" * 300,
    "y" * 300, "a:b", "a\\b", "a\nb", "a\0b", "caf\u00e9", "cafe\u0301", "CAF\u00c9", "\ud800", "CON", "~", "a~b", "*",
    "ligature \ufb01", "ligature fi", "\U0001f600", "stra\u00dfe", "strasse",
]  # fmt: skip


def test_every_contender_has_one_folder_inside_and_its_own(tmp_path):
    folders = folder_names(NAMES)
    assert set(folders) == set(NAMES)
    alike = {unicodedata.normalize("NFKC", folder).casefold() for folder in folders.values()}
    assert len(alike) == len(NAMES), "also where the file system ignores case and Unicode form"
    for folder in folders.values():
        assert Path(folder).name == folder
        (tmp_path / folder / "labels-all").mkdir(parents=True)
    assert len(list(tmp_path.iterdir())) == len(NAMES)


@pytest.mark.parametrize(
    "name", ["ours", "Ours", "BERT base", "ours+aug (3e-4)", "x_1.5", "lr=1e-3", "caf\u00e9", "#1", "a" * 200]
)
def test_a_plain_name_is_its_own_folder_as_before(name):
    assert folder_names(["other", name])[name] == name


def test_the_folder_of_a_name_does_not_depend_on_the_order():
    assert folder_names(NAMES) == folder_names(reversed(NAMES))
    assert folder_names(["Ours", "ours"])["ours"] == "ours"


def test_runs_of_odd_names_stay_inside_the_output(settings, tmp_path):
    odd = ["../../x", "/abs", "", "a\nb", "x" * 300]
    plan = make_plan(settings(contenders={"ours": MODEL} | {name: {"tfidf": True} for name in odd}))
    for run in plan.runs:
        assert run.folder.resolve().relative_to((tmp_path / "out" / "runs").resolve()).parts[1:] == (
            "labels-all", f"seed-{run.seed}",
        )  # fmt: skip
        assert run.name.isprintable()
        assert len(run.name) < 100
    assert plan.runs[0].folder == tmp_path / "out" / "runs" / "ours" / "labels-all" / "seed-0"


def test_steps_of_a_contender_replace_shared_epochs(settings):
    own = {"ours": MODEL, "other": MODEL | {"training": {"max_train_steps": 7}}}
    plan = make_plan(settings(contenders=own, training={"num_train_epochs": 2}))
    found = {run.contender: run.config.training for run in plan.runs}
    assert (found["ours"].num_train_epochs, found["ours"].max_train_steps) == (2, None)
    assert (found["other"].num_train_epochs, found["other"].max_train_steps) == (None, 7)


def test_a_student_of_a_fold_has_the_teacher_of_that_fold(settings, files):
    data = {"files": {"train": files["train"]}, "validation_fraction": 0.3}
    contenders = {"plain": MODEL, "taught": MODEL | {"distill": {"teacher": "contender:plain"}}}
    plan = make_plan(settings(folds=3, data=data, contenders=contenders, reference="plain"))
    own = {(run.seed, run.fold): run.folder for run in plan.runs if run.contender == "plain"}
    for run in plan.runs:
        if run.contender == "taught":
            assert run.config.objective.distill.teacher == str(own[run.seed, run.fold] / "model")


def test_checkpoints_of_two_contenders_are_as_many(settings):
    own = {"ours": {"model": {"pretrained": ["a", "b"]}}, "other": {"model": {"pretrained": ["c", "d", "e"]}}}
    with pytest.raises(UserError, match=r"other\.model\.pretrained: 3 checkpoints, but ours has 2; seeds would share"):
        settings(contenders=own, seeds=[0, 1, 2, 3, 4, 5])
    own["other"]["model"]["pretrained"] = ["c"]
    settings(contenders=own, seeds=[0, 1])


def test_own_steps_and_tuned_epochs_exclude_each_other(settings):
    own = {"ours": MODEL | {"training": {"max_train_steps": 7}}, "other": MODEL}
    with pytest.raises(UserError, match=r"ours\.training\.max_train_steps: tune\.training\.num_train_epochs takes"):
        settings(contenders=own, tune={"training.num_train_epochs": [1, 2]})


def test_seeds_take_turns_with_several_pretrainings(settings):
    own = {"ours": {"model": {"pretrained": ["a", "b", "c"]}}}
    plan = make_plan(settings(contenders=own, seeds=[5, 6, 7, 8, 9, 10]))
    assert [run.config.model.name_or_path for run in plan.runs] == ["a", "b", "c"] * 2
    with pytest.raises(UserError, match="4 seeds do not share 3 checkpoints evenly"):
        settings(contenders=own, seeds=[0, 1, 2, 3])
    with pytest.raises(UserError, match="a checkpoint appears twice"):
        settings(contenders={"ours": {"model": {"pretrained": ["a", "a"]}}})


def test_each_fold_is_tuned_and_run_alone_on_the_same_folds(settings, files):
    data = {"files": {"train": files["train"]}, "validation_fraction": 0.3}
    contenders = {"ours": MODEL, "words": {"tfidf": True}}
    plan = make_plan(settings(folds=4, data=data, contenders=contenders, seed=5, tune={"optim.learning_rate": [1, 2]}))
    assert plan.size == "8 trials and 24 runs"
    assert len(plan.judged) == 6
    assert {run.folder for run in plan.judged} == {run.folder.parent for run in plan.runs}
    for run in (*plan.trials, *plan.runs):
        fold = run.config.data.fold
        assert (fold.number, fold.of, fold.seed) == (run.fold, 4, 5)
    assert len({run.folder for run in (*plan.trials, *plan.runs)}) == 32
    assert plan.with_values(plan.runs[1], {}).config.data.fold.number == 1
    tested = [set(plan.task.__class__(run.config).corpus.splits["test"][""]["text"]) for run in plan.runs[:4]]
    tuned = [plan.task.__class__(run.config).corpus.splits for run in plan.trials[:4]]
    for test, splits in zip(tested, tuned, strict=True):
        assert set(splits["test"][""]["text"]) == test
        assert not test & {*splits["train"][""]["text"], *splits["validation"][""]["text"]}


@pytest.mark.parametrize(
    ("task", "changes", "line"),
    [
        ("pretrain_mlm", {}, "folds: pretrain_mlm has no cross-validation, only finetune_classification"),
        ("finetune_classification", {"data": {"test_fraction": 0.2}}, "with folds, every row of train is tested"),
        ("finetune_classification", {"data": {"fold": {"number": 0, "of": 2}}}, "set folds instead"),
        ("finetune_classification", {"folds": 21}, "21 folds of 20 different texts; give fewer folds, or more rows"),
        ("finetune_classification", {"folds": 1}, "folds"),
    ],
)
def test_folds_that_cannot_be_are_refused(settings, files, task, changes, line):
    data = {"files": {"train": files["train"]}} | changes.pop("data", {})
    with pytest.raises(UserError) as refusal:
        make_plan(settings(task, **{"folds": 2, "data": data} | changes))
    assert line in str(refusal.value)
