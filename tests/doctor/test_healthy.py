"""A run with nothing wrong is told so, whatever its recipe; and which recipe it is, is told from its settings."""

import re
from pathlib import Path

import pytest

from decero.doctor.identify import recipe_of
from decero.errors import UserError
from decero.tasks import TASKS

ROOT = Path(__file__).parents[2]
NAMES = list(TASKS)


@pytest.mark.parametrize("name", NAMES)
def test_a_healthy_run_is_told_that_it_is_well(everything, name, healthy_log):
    held_out = [{"step": 100, "eval_loss": 0.3 if "classification" in name else 1.9}]
    found = everything(name, log=healthy_log + held_out)
    assert {f.severity for f in found} == {"ok"}, "\n".join(f.line() for f in found)
    wanted = {"duplicates", "empty", "leakage", "rows", "tokenizer", "floor", "first loss", "overfit", "layers"}
    wanted |= {"updates", "schedule", "curve", "data wait"} | ({"labels"} if "classification" in name else set())
    assert {f.check for f in found} == wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_that_has_not_run_is_looked_at_too(everything, name):
    found = everything(name, before=True)
    assert {f.severity for f in found} == {"ok"}, "\n".join(f.line() for f in found)


@pytest.mark.parametrize("name", NAMES)
def test_a_runs_own_settings_tell_its_recipe(write, name):
    folder = write(name)
    resolved = TASKS[name].Config.load(str(folder / "config.yaml")).to_yaml()
    (folder / "config.yaml").write_text(resolved)
    assert recipe_of(folder / "config.yaml") == name


def trains(path):
    return set(re.findall(r"recipes/(\w+)\.py", path.read_text(encoding="utf-8"))) & set(NAMES)


RUNS = [p for p in sorted((ROOT / "configs").glob("*/*.yaml")) if p.parent.name in ("pretrain", "finetune")]


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_a_file_of_ours_says_its_recipe_and_its_settings_are_those(path):
    name = recipe_of(path)
    assert {name} == trains(path)
    TASKS[name].Config.load(str(path))


def test_what_two_recipes_take_is_asked_for(write):
    path = write("pretrain_mlm", before=True)
    settings = path.read_text().replace('"mlm_probability": 0.3', "")
    path.write_text(settings)
    with pytest.raises(UserError, match="may be for pretrain_mlm or finetune_classification; say which with --recipe"):
        recipe_of(path)
    assert recipe_of(path, "pretrain_mlm") == "pretrain_mlm"
    path.write_text(f"# python recipes/pretrain_mlm.py {path.name}\n{settings}")
    assert recipe_of(path) == "pretrain_mlm"
    with pytest.raises(UserError, match=r"pretrain_mln is no recipe that trains; did you mean pretrain_mlm\?"):
        recipe_of(path, "pretrain_mln")


@pytest.mark.parametrize("name", ["pretrain_seq2seq", "pretrain_causal_lm", "finetune_seq2seq", "finetune_causal_lm"])
def test_the_shape_of_the_model_tells_where_settings_do_not(write, name):
    path = write(name, before=True)
    path.write_text(re.sub(r', "objective": \{[^}]*\}', "", path.read_text()))
    assert "objective" not in path.read_text()
    assert recipe_of(path) == name
