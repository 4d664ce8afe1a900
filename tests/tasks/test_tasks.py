"""Every task is complete, and its recipe uses it."""

import re
from pathlib import Path

import pytest

from decero.config.finetune_images import ImageRun
from decero.config.training_run import TrainingRun
from decero.tasks import TASKS
from decero.tasks.picture_task import PictureTask

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", TASKS)
def test_a_recipe_uses_the_settings_and_the_task_of_its_name(name):
    text = (ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8")
    task = TASKS[name]
    assert re.search(rf"config = {task.Config.__name__}\.from_cli\(\)", text)
    assert re.search(rf"task = {task.__name__}\(config\)", text)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_its_settings_head_and_special_tokens(name):
    task = TASKS[name]
    of_pictures = issubclass(task, PictureTask)
    assert issubclass(task.Config, ImageRun if of_pictures else TrainingRun)
    assert "--eval-only" in task.Config.options
    draws = name == "pretrain_image_diffusion"  # no Auto class of transformers is for that
    assert task.auto_class.__name__.startswith("AutoModel" if draws else "AutoModelFor")
    assert bool(task.tokenizer_needs) != of_pictures
    assert not task.__abstractmethods__


def test_every_recipe_that_trains_a_model_has_a_task():
    others = {"benchmark", "compare", "evaluate_causal_lm", "evaluate_suite", "long_range", "train_tokenizer"}
    others |= {"evaluate_masked_lm", "evaluate_minimal_pairs", "evaluate_drawings", "probe_bias"}
    others |= {"tokenize_images", "evaluate_image_tokens"}
    assert {path.stem for path in (ROOT / "recipes").glob("*.py")} == set(TASKS) | others
