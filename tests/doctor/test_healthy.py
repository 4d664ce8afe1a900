"""A healthy run of any recipe gives only ok findings, and its settings identify the recipe."""

import re
from pathlib import Path

import pytest

from decero.doctor.identify import recipe_of
from decero.errors import UserError
from decero.tasks import TASKS

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
NAMES = list(TASKS)
PICTURES = [name for name, task in TASKS.items() if not task.tokenizer_needs]
STOCK = (
    "finetune_semantic_segmentation",
    "finetune_object_detection",
    "pretrain_masked_image",
    "pretrain_image_diffusion",
)
QUICK = ("pretrain_mlm", "finetune_question_answering")  # before a run, checks are fewer
LONG = (  # tasks much like those that stay
    "finetune_seq2seq", "pretrain_causal_lm", "pretrain_plm", "pretrain_rtd", "finetune_multiple_choice",
    "finetune_extractive_summaries", "pretrain_seq2seq", "finetune_object_detection", "finetune_causal_lm",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    """Let models this small learn their batch in 80 steps instead of 100."""
    monkeypatch.setattr("decero.doctor.weights.STEPS", 80)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else []) for n in NAMES])
def test_a_healthy_run_has_only_ok_findings(everything, name, healthy_log, monkeypatch):
    if name == "pretrain_rtd":  # two models learn
        monkeypatch.setattr("decero.doctor.weights.STEPS", 100)
    small = ("classification", "extractive", "choice", "segmentation")
    held_out = [{"step": 100, "eval_loss": 0.3 if any(word in name for word in small) else 1.9}]
    found = everything(name, log=healthy_log + held_out)
    stock = {"warn", "note"} if name in STOCK else set()  # what stock classes are like: large gradients, large steps
    assert {f.severity for f in found} <= {"ok"} | stock, "\n".join(f.line() for f in found)
    wanted = {"duplicates", "empty", "leakage", "rows", "tokenizer", "floor", "first loss", "overfit", "layers"}
    wanted |= {"updates", "schedule", "curve", "data wait"} | ({"labels"} if "classification" in name else set())
    wanted |= {"answers"} if name == "finetune_question_answering" else set()
    wanted -= {"tokenizer"} if name in PICTURES else set()
    assert {f.check for f in found} == wanted


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_a_configuration_can_be_examined_before_the_run(everything, name, monkeypatch):
    if name == "pretrain_rtd":  # two models learn
        monkeypatch.setattr("decero.doctor.weights.STEPS", 100)
    found = everything(name, before=True)
    stock = {"warn", "note"} if name in STOCK else set()
    assert {f.severity for f in found} <= {"ok"} | stock, "\n".join(f.line() for f in found)


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_a_run_identify_its_recipe(write, name):
    folder = write(name)
    resolved = TASKS[name].Config.load(str(folder / "config.yaml")).to_yaml()
    (folder / "config.yaml").write_text(resolved)
    assert recipe_of(folder / "config.yaml") == name


def trains(path):
    return set(re.findall(r"recipes/(\w+)\.py", path.read_text(encoding="utf-8"))) & set(NAMES)


RUNS = [p for p in sorted((ROOT / "configs").glob("*/*.yaml")) if p.parent.name in ("pretrain", "finetune")]


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_committed_configs_name_the_recipe_that_accepts_them(path):
    name = recipe_of(path)
    assert {name} == trains(path)
    TASKS[name].Config.load(str(path))


def test_settings_that_fit_two_recipes_need_recipe(write):
    path = write("pretrain_mlm", before=True)
    settings = path.read_text().replace('"mlm_probability": 0.3', "")
    path.write_text(settings)
    with pytest.raises(UserError, match="fits pretrain_mlm, pretrain_plm, finetune_classification; choose one"):
        recipe_of(path)
    assert recipe_of(path, "pretrain_mlm") == "pretrain_mlm"
    path.write_text(f"# python recipes/pretrain_mlm.py {path.name}\n{settings}")
    assert recipe_of(path) == "pretrain_mlm"
    with pytest.raises(UserError, match=r"unknown training recipe pretrain_mln; did you mean pretrain_mlm\?"):
        recipe_of(path, "pretrain_mln")


def test_the_kind_of_model_identifies_the_recipe_of_pictures(write):
    path = write("finetune_image_classification", before=True)
    assert recipe_of(path) == "finetune_image_classification"
    path.write_text(path.read_text().replace("/vit.yaml", "/decero_diffusion.yaml"))
    assert recipe_of(path) == "pretrain_image_diffusion"
    path.write_text(path.read_text().replace("/decero_diffusion.yaml", "/decoder.yaml"))
    with pytest.raises(UserError, match=r"fits .*pretrain_image_diffusion, finetune_image_classification; choose one"):
        recipe_of(path)


@pytest.mark.parametrize("name", ["pretrain_seq2seq", "pretrain_causal_lm", "finetune_seq2seq", "finetune_causal_lm"])
def test_the_kind_of_model_identifies_the_recipe(write, name):
    path = write(name, before=True)
    path.write_text(re.sub(r', "objective": \{[^}]*\}', "", path.read_text()))
    assert "objective" not in path.read_text()
    assert recipe_of(path) == name
