"""Students of a teacher, as a user trains them: classifiers, masked language models, contenders of a comparison."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig

from decero.config.comparison import Compare
from decero.config.finetuning import FinetuneClassification
from decero.config.recorded_settings import changed_setting
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.tasks import Classification, MaskedLM
from decero.tasks import teacher as module
from decero.training.runs import Run

pytestmark = pytest.mark.long

SIZES = {"hidden_size": 18, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 23}
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def texts(corpus):
    return {split: pd.read_json(corpus / f"{split}.jsonl", lines=True)["text"].tolist() for split in SPLITS}


@pytest.fixture(scope="module")
def teacher(texts, tmp_path_factory):
    """A stock classifier with a tokenizer of its own, and its labels in another order."""

    def build(names=("sport", "money"), **fields):
        folder = tmp_path_factory.mktemp("teacher")
        tokenizer = train_tokenizer(
            texts["train"], algorithm="byte_level_bpe", vocab_size=300, model_max_length=64, show_progress=False
        )
        torch.manual_seed(1)
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        fields = {"initializer_range": 0.8, "pad_token_id": tokenizer.pad_token_id} | labels | fields
        config = BertConfig(**SIZES, vocab_size=len(tokenizer), **fields)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="module")
def known(teacher):
    return teacher()


@pytest.fixture
def settings(write_config, trained_tokenizer, architecture, known, corpus, tmp_path):
    files = {split: str(corpus / f"{split}.jsonl") for split in SPLITS}

    def make(distill=None, **changes):
        base = {
            "output": str(tmp_path / "run"), "model": {"config": str(architecture)},
            "tokenizer": {"name_or_path": str(trained_tokenizer)}, "tracking": {"trackers": []},
            "data": {"files": files, "max_length": 29, "max_train_rows": 8},
            "objective": {"distill": {"teacher": str(known)} | (distill or {})},
            "training": {"max_train_steps": 4, "global_batch_size": 6, "per_device_batch_size": 3, "save_steps": 2},
        }  # fmt: skip
        path = tmp_path / "settings.yaml"
        path.write_text(json.dumps(base | changes))
        return path

    return make


@pytest.fixture
def open_task(settings):
    def load(distill=None, resume=False, dry_run=False, eval_only=False, **changes):
        config = FinetuneClassification.load(str(settings(distill, **changes)))
        config.call.resume, config.call.dry_run, config.call.eval_only = resume, dry_run, eval_only
        task = Classification(config)
        os.makedirs(config.output, exist_ok=True)
        run = Run(
            Accelerator(cpu=True), config.training, config.optim, Path(config.output), resume=resume, progress=False,
            config=config,
        )  # fmt: skip
        return task, task.load_data(run)

    return load


def test_the_teacher_reads_texts_and_labels_go_by_name(open_task, known, texts, tmp_path):
    task, data = open_task({"unlabelled_rest": True})
    assert task.corpus.label_names == ("money", "sport")
    assert data.train["labelled"] == [True] * 8 + [False] * 52
    assert data.train["labels"][8:] == [0] * 52
    read = task.corpus.splits["train"][""]["text"][:] + task.corpus.unlabelled["text"][:]
    assert sorted(read) == sorted(texts["train"])
    model = AutoModelForSequenceClassification.from_pretrained(known).eval()
    tokenizer = module.load_teacher(task.config.objective.distill, "classify").tokenizer
    with torch.no_grad():
        alone = [
            model(**tokenizer(text, truncation=True, max_length=29, return_tensors="pt")).logits[0] for text in read
        ]
    expected = np.array([[logits[1], logits[0]] for logits in alone])
    np.testing.assert_allclose(np.array(data.train["teacher_logits"]), expected, atol=2e-5)
    assert expected.std() > 0.1


def test_texts_of_held_out_splits_get_no_labels(open_task, texts, tmp_path):
    own = ["a new text about the match", texts["test"][3], "another one", texts["validation"][0]]
    (tmp_path / "more.txt").write_text("\n\n".join(own))
    task, data = open_task({"unlabelled_files": str(tmp_path / "more.txt")})
    assert task.corpus.unlabelled["text"][:] == [own[0], own[2]]
    assert len(data.train) == 10
    assert "texts without labels: 2 of 4 rows (the others stand in validation or test)" in task.corpus.notes


def test_a_resumed_run_has_the_labels_it_began_with(open_task, known, teacher, monkeypatch, tmp_path):
    copy = shutil.copytree(known, tmp_path / "copy")
    _, first = open_task({"teacher": str(copy)})
    monkeypatch.setattr(module, "_label", None)  # would fail
    task, again = open_task({"teacher": str(copy)}, resume=True)
    assert again.train["teacher_logits"] == first.train["teacher_logits"]
    assert task.teacher_record["texts"] == 8
    (tmp_path / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    shutil.copy(teacher(initializer_range=0.1) / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(UserError, match=r"has changed since .* began, so its labels would differ; restore it"):
        open_task({"teacher": str(copy)}, resume=True)


def test_a_run_that_trains_nothing_asks_no_teacher(open_task, known, tmp_path):
    model = {"name_or_path": str(known)}
    task, data = open_task({"teacher": str(tmp_path / "gone")}, eval_only=True, model=model, tokenizer={})
    assert "teacher_logits" not in data.train.column_names
    assert task.objective(task.build_model()).per_text == ("labels",)


def test_damaged_labels_are_made_again(open_task, tmp_path):
    _, first = open_task()
    (tmp_path / "run" / module.FILE).write_bytes(b"\x08")
    _, again = open_task(resume=True)
    assert again.train["teacher_logits"] == first.train["teacher_logits"]
    with safe_open(tmp_path / "run" / module.FILE, framework="numpy") as file:
        assert file.get_tensor("logits").shape == (8, 2)


def test_a_dry_run_counts_the_time_of_the_teacher(launch, settings, tmp_path):
    printed = launch("finetune_classification", settings({"unlabelled_rest": True}), "--dry-run").stdout
    assert " for the teacher's labels" in " ".join(printed.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_students_of_several_labels_and_of_numbers(launch, settings, teacher, corpus, tmp_path, problem):
    numbers = problem == "regression"
    folder = teacher(("value",) if numbers else ("sport", "money"), problem_type=problem)
    data = {"files": {s: str(corpus / f"{s}.jsonl") for s in SPLITS}, "max_length": 29, "max_train_rows": 8}
    data |= {"label_column": "score" if numbers else "tags"}
    distill = {"teacher": str(folder), "unlabelled_rest": True}
    config = settings(None, data=data, objective={"problem_type": problem, "distill": distill})
    launch("finetune_classification", config)
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["train_examples"] == 8
    assert record["teacher"]["texts"] == 60
    assert ("temperature" in record["teacher"]) is not numbers


REFUSED = {
    "no such folder": ({"teacher": "none/here"}, {}, "objective.distill.teacher: none/here: no such folder"),
    "no head": ({"teacher": "MLM"}, {}, "has no classification head; fine-tune it on train, and give"),
    "other labels": ({"teacher": "LABELS"}, {}, "has other labels (cats, dogs; train has money, sport)"),
    "more labels": ({"teacher": "MORE"}, {}, "has other labels (cats, money, sport; train has money, sport)"),
    "another problem": ({"teacher": "NUMBER"}, {}, "was trained for regression, and this run is single_label"),
    "no files": ({"unlabelled_files": "nope.txt"}, {}, "or a folder (objective.distill.unlabelled_files)"),
    "no alpha": ({"alpha": 0.0}, {}, "objective.distill.alpha is 0.0, but input should be greater than 0"),
    "a typo": ({"temprature": 2.0}, {}, "objective.distill.temprature; did you mean objective.distill.temperature?"),
    "heat of a number": (
        {"temperature": 2.0}, {"problem_type": "regression"}, "objective.distill.temperature: a regression has none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_teacher_that_does_not_fit_is_refused(launch, settings, teacher, masked, tmp_path, case):
    distill, objective, line = REFUSED[case]
    folders = {"MLM": masked, "LABELS": lambda: teacher(("cats", "dogs"))}
    folders |= {"MORE": lambda: teacher(("cats", "money", "sport")), "NUMBER": lambda: teacher(("value",))}
    if (name := distill.get("teacher")) in folders:
        distill = distill | {"teacher": str(folders[name]())}
    config = settings(distill)
    if objective:
        config.write_text(config.read_text().replace('"objective": {', '"objective": {"problem_type": "regression", '))
    said = launch("finetune_classification", config, expect=2).stderr.strip().splitlines()[-1]
    assert line in said
    assert not (tmp_path / "run").exists()


# --- masked language models


@pytest.fixture(scope="module")
def masked(trained_tokenizer, tmp_path_factory):
    """A stock masked language model with the tokenizer of the runs."""

    def build(vocab_size=97, **fields):
        folder = tmp_path_factory.mktemp("masked")
        torch.manual_seed(2)
        config = BertConfig(**SIZES, vocab_size=vocab_size, initializer_range=0.5, **fields)
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
        shutil.copytree(trained_tokenizer, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.json"))
        return folder

    return build


def test_a_masked_student_resumes_exactly(launch, mlm, masked, tmp_path):
    words = mlm, f"objective.distill.teacher={masked(103)}", "training.max_train_steps=6", "training.save_steps=3"
    words += ("training.save_total_limit=2",)
    launch("pretrain_mlm", *words, f"output={tmp_path}/whole")
    launch("pretrain_mlm", *words, f"output={tmp_path}/part")
    shutil.rmtree(tmp_path / "part" / "model")
    (tmp_path / "part" / "result.json").unlink()
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "step-00000006")
    assert "at step 3 of 6" in launch("pretrain_mlm", *words, f"output={tmp_path}/part", "--resume").stdout
    states = [
        AutoModelForMaskedLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "part")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    record = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert record["teacher"]["temperature"] == 2.0
    assert len(record["teacher"]["fingerprint"]) == 64


def test_masked_teachers_that_do_not_fit_are_refused(launch, mlm, masked, known, tmp_path):
    lines = {
        known: "has no masked language model head",
        masked(pretraining_objective="permutation_lm"): "learnt permutation language modelling, where no token sees",
        masked(max_position_embeddings=16): "reads 16 tokens; lower data.max_length to 16",
    }
    other = masked(300)
    for path in known.glob("tokenizer*"):
        shutil.copy(path, other)
    lines[other] = "has another tokenizer than this run, so it cannot read the same tokens"
    for folder, line in lines.items():
        words = f"output={tmp_path}/run", f"objective.distill.teacher={folder}"
        said = launch("pretrain_mlm", mlm, *words, expect=2).stderr.strip().splitlines()[-1]
        assert line in said
        assert not (tmp_path / "run").exists()


# --- comparisons


@pytest.fixture
def compared(settings, known, tmp_path):
    def make(**changes):
        one = json.loads(settings().read_text())
        model = {"model": one["model"], "tokenizer": one["tokenizer"]}
        taught = model | {"distill": {"teacher": "contender:stock", "alpha": 0.7, "unlabelled_rest": True}}
        settings_ = {
            "output": str(tmp_path / "out"), "reference": "plain", "seeds": [0, 1], "label_budgets": [8, 20],
            "contenders": {"taught": taught, "plain": model, "stock": {"model": {"name_or_path": str(known)}}},
            "data": {k: v for k, v in one["data"].items() if k != "max_train_rows"}, "tracking": {"trackers": []},
            "training": one["training"] | {"max_train_steps": 2, "save_steps": None, "eval_strategy": "no"},
        }  # fmt: skip
        return settings_ | changes

    return make


def test_a_contender_teaches_another_with_the_same_labels(launch, compared, tmp_path):
    path, settings = tmp_path / "compare.yaml", compared(label_budgets=[8], seeds=[1])
    path.write_text(json.dumps(settings))
    dry = launch("compare", path, f"output={tmp_path}/dry", "--dry-run").stdout
    assert "taught: 1 runs, time unknown: " in dry
    lost = {"model": {"name_or_path": str(tmp_path / "nowhere")}}
    settings["contenders"]["lost"] = lost
    settings["contenders"]["orphan"] = settings["contenders"]["plain"] | {"distill": {"teacher": "contender:lost"}}
    path.write_text(json.dumps(settings))
    printed = launch("compare", path).stdout
    order = [line.split("] ")[1].split(",")[0] for line in printed.splitlines() if line.startswith("[")]
    assert order == ["plain", "stock", "lost", "taught", "orphan"]
    names = ("taught", "stock", "orphan")
    folders = {name: tmp_path / f"out/runs/{name}/labels-8/seed-1" for name in names}
    records = {name: json.loads((folder / "result.json").read_text()) for name, folder in folders.items()}
    assert records["taught"]["teacher"]["name"] == str(folders["stock"] / "model")
    assert (records["taught"]["train_examples"], records["taught"]["teacher"]["texts"]) == (8, 60)
    assert "/lost/labels-8/" in records["orphan"]["error"]
    assert "nowhere: no such folder" in records["orphan"]["error"]
    report = (tmp_path / "out" / "verdict.md").read_text().replace("\\", "")
    assert "taught by stock (alpha 0.7, unlabelled_rest True)" in report


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"teacher": "contender:stok"},
            "distill.teacher: unknown contender stok; did you mean stock?",
        ),
        ({"teacher": "contender:words"}, "words is a baseline, or is taught itself"),
        ({"teacher": "contender:taught"}, "taught is a baseline, or is taught itself"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(compared, changes, line):
    settings = compared()
    settings["contenders"]["words"] = {"tfidf": True}
    settings["contenders"]["taught"]["distill"] |= changes
    with pytest.raises(UserError) as refusal:
        Compare.parse(settings, "compare.yaml")
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_trials_cannot_wait_for_a_teacher(compared):
    with pytest.raises(UserError, match="stock is trained after the trials of tune; give the folder of a model"):
        Compare.parse(compared(tune={"optim.learning_rate": [1e-3, 1e-2]}), "compare.yaml")


def test_a_moved_teacher_is_the_same_setting(known, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(known)
    assert changed_setting(str(known), str(link), "objective.distill.teacher") is None


def test_masked_tasks_name_no_teacher_without_one():
    assert MaskedLM(None).teacher_record == {}


@pytest.mark.slow
def test_two_processes_share_the_work_of_the_teacher(launch, settings, two_processes, tmp_path):
    config = settings({"unlabelled_rest": True})
    launch("finetune_classification", config, f"output={tmp_path}/one", launcher=())
    launch("finetune_classification", config, f"output={tmp_path}/two", launcher=two_processes)
    logits = []
    for name in ("one", "two"):
        with safe_open(tmp_path / name / module.FILE, framework="numpy") as file:
            logits.append(file.get_tensor("logits"))
    np.testing.assert_allclose(*logits, atol=1e-5)
    tables = [pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two")]
    np.testing.assert_allclose(*(np.stack(table["logits"]) for table in tables), atol=1e-4)
