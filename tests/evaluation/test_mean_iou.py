"""Mean IoU is that of scikit-learn, pooled over pictures; what is ignored counts nowhere."""

import evaluate
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score

from decero.evaluation import metrics
from decero.evaluation.mean_iou import pixel_counts, pixel_metrics, pixel_statistics


@pytest.mark.parametrize("cases", [range(40), pytest.param(range(1000), marks=pytest.mark.slow)])
def test_pooled_scores_are_those_of_scikit_learn(cases):
    for seed in cases:
        draw = np.random.default_rng(seed)
        classes, shape = int(draw.integers(2, 9)), (int(draw.integers(1, 5)), 3, 7)
        true = draw.choice([*draw.choice(classes, 2), 255], shape)
        said = np.where(draw.random(shape) < 0.4, true, draw.integers(0, classes, shape)) % classes
        kept = true != 255
        found = pixel_metrics(sum(pixel_counts(a, b, classes, 255) for a, b in zip(said, true, strict=True)))
        if not kept.any():
            assert found == {"mean_iou": 0.0, "pixel_accuracy": 0.0}
            continue
        wanted = jaccard_score(true[kept], said[kept], average="macro", zero_division=0)
        assert abs(found["mean_iou"] - wanted) < 1e-12
        assert abs(found["pixel_accuracy"] - accuracy_score(true[kept], said[kept])) < 1e-12


def test_the_module_of_evaluate_gives_the_same():
    module = evaluate.load(
        str(metrics.Path(metrics.__file__).parent / "metric_modules" / "mean_iou"), keep_in_memory=True
    )
    found = module.compute(predictions=[[0, 1, 1, 0], [1, 0]], references=[[0, 1, 0, 255], [255, 1]], num_labels=2)
    assert found == {"mean_iou": pytest.approx((1 / 3 + 1 / 3) / 2), "pixel_accuracy": 0.5}


def test_pictures_add_up_to_the_pooled_score():
    draw = np.random.default_rng(0)
    counts = np.stack([pixel_counts(draw.integers(0, 3, 40), draw.integers(0, 3, 40), 3) for _ in range(11)])
    rows, score = pixel_statistics("mean_iou", counts)
    assert score(rows.sum(axis=0)) == pixel_metrics(counts.sum(axis=0))["mean_iou"]
    with pytest.raises(ValueError, match="outside 0 to 2"):
        pixel_counts([3], [0], 3)
