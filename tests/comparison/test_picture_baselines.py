"""The simple baselines for pictures learn what they can, and write what the verdict reads."""

import json

import numpy as np
import pytest
from tests.recipes.pictures import VIT, write_splits

from decero.comparison.picture_baselines import majority
from decero.comparison.simple_baselines import BASELINES
from decero.tasks import TASKS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize(
    ("recipe", "name", "least"),
    [
        ("finetune_image_classification", "logistic", 0.7),
        ("finetune_image_classification", "cnn", 0.7),
        ("finetune_semantic_segmentation", "majority", 0.2),
        ("finetune_object_detection", "mean_box", 0.0),
    ],
)
def test_a_baseline_scores_and_writes_its_answers(files, tmp_path, recipe, name, least):
    if name == "mean_box":
        pytest.importorskip("pycocotools")
    task_class = TASKS[recipe]
    (tmp_path / "vit.yaml").write_text(json.dumps(VIT))
    settings = {"output": str(tmp_path), "model": {"config": "none"}, "data": {"files": files}}
    task = task_class(task_class.Config.parse(settings | {"training": {"num_train_epochs": 3}}, "x"))
    assert name in task.baselines
    record = BASELINES[name](task, tmp_path, "test")
    main = task.metrics[0]
    assert record["metric"][main] >= least
    (tmp_path / "result.json").write_text(json.dumps({"label_names": list(task.corpus.label_names)}))
    rows, score = task.example_statistics(tmp_path, main)
    assert len(rows) == 17
    assert score(np.sum(rows, axis=0)) == pytest.approx(record["metric"][main], abs=0.02)


def test_the_class_of_most_pixels_is_one_that_is_scored(files, tmp_path):
    (tmp_path / "vit.yaml").write_text(json.dumps(VIT))
    kind = TASKS["finetune_semantic_segmentation"]
    data = {"files": files, "ignored_id": 0}
    settings = {"output": str(tmp_path), "model": {"config": "none"}, "data": data, "training": {"num_train_epochs": 3}}
    record = majority(kind(kind.Config.parse(settings, "x")), None, "test")
    assert record["metric"]["pixel_accuracy"] > 0.3
