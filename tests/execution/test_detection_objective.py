"""The losses of set prediction are DETR's own, term by term; sums add up over parts of a batch."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForObjectDetection, DetrConfig

from decero.data.box_noise import BoxNoise
from decero.data.image_rows import Pixels
from decero.execution.detection_objective import (
    Weights,
    corners,
    denoising_terms,
    detection,
    generalized_iou,
    layer_terms,
    noised_queries,
    outputs_of_layers,
)
from decero.execution.image_objective import PictureCollator
from decero.models import DeceroDetectionConfig, DeceroDetectionForObjectDetection

BACKBONE = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]}
BACKBONE |= {"layer_type": "basic", "out_features": ["stage2"]}
DETR = {"backbone_config": BACKBONE}
DETR |= {"d_model": 28, "encoder_layers": 1, "decoder_layers": 3, "encoder_attention_heads": 2, "num_queries": 7}
DETR |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 13, "decoder_ffn_dim": 13, "dropout": 0.0, "num_labels": 3}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return AutoModelForObjectDetection.from_config(DetrConfig(**DETR, auxiliary_loss=True)).train()


def batch_of(pictures, seed=0):
    """Random pictures with two objects, one, none, three, ..."""
    draw = torch.Generator().manual_seed(seed)
    counts = [2, 1, 0, 3, 2, 1][:pictures]
    labels = [
        {
            "class_labels": torch.randint(0, 3, (n,), generator=draw),
            "boxes": torch.rand(n, 4, generator=draw) * 0.4 + 0.2,
        }
        for n in counts
    ]
    return {"pixel_values": torch.randn(pictures, 3, 32, 32, generator=draw), "labels": labels}


def test_terms_are_those_of_transformers(model):
    batch = batch_of(4)
    config = model.config
    layers = outputs_of_layers(model, batch, auxiliary=True)
    assert len(layers) == 3
    stock = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
    objects = sum(len(each["class_labels"]) for each in batch["labels"])
    queries = 4 * config.num_queries
    weight = objects + config.eos_coefficient * (queries - objects)
    for place, (logits, boxes) in enumerate(layers):
        terms = layer_terms(logits, boxes, batch["labels"], Weights())
        suffix = "" if place == 0 else f"_{place - 1}"
        theirs = {name: stock.loss_dict[f"{key}{suffix}"] for name, key in
                  (("classes", "loss_ce"), ("boxes", "loss_bbox"), ("giou", "loss_giou"))}  # fmt: skip
        assert terms["classes"].item() / weight == pytest.approx(theirs["classes"].item(), abs=3e-5)
        assert terms["boxes"].item() / objects == pytest.approx(theirs["boxes"].item(), abs=3e-5)
        assert terms["giou"].item() / objects == pytest.approx(theirs["giou"].item(), abs=3e-5)


def test_sums_add_up_over_micro_batches(model):
    objective = detection(PictureCollator(Pixels((32, 32))), Weights())
    whole = batch_of(6)
    parts = [{name: value[part] for name, value in whole.items()} for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    total = objective.loss(model, whole)
    assert sum(objective.count(part) for part in parts) == objective.count(whole) == 9
    assert sum(objective.loss(model, part) for part in parts).item() == pytest.approx(total.item(), rel=1e-5)
    grads = [torch.autograd.grad(loss, list(model.model.decoder.parameters()))
             for loss in (total, sum(objective.loss(model, part) for part in parts))]  # fmt: skip
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_no_object_is_not_class_zero(model):
    logits, boxes = torch.full((1, 7, 4), -9.0), torch.rand(1, 7, 4)
    logits[..., -1] = 9.0
    nothing = [{"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}]
    terms = layer_terms(logits, boxes, nothing, Weights())
    assert terms["classes"] < 1e-5
    assert terms["boxes"] == terms["giou"] == 0


# --- denoising

NOISE = BoxNoise(groups=3, box_noise=0.4, class_noise=0.5, num_labels=3, seed=5)
OURS = {"patch_size": 8, "hidden_size": 26, "num_hidden_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
OURS |= {"intermediate_size": 11, "num_queries": 7, "num_labels": 3}


def noised_batch(pictures):
    batch = batch_of(pictures)
    for index, target in enumerate(batch["labels"]):
        boxes, classes = NOISE.draw(target["boxes"].numpy(), target["class_labels"].numpy(), 2, index)
        target |= {"noised_boxes": torch.from_numpy(boxes).float(), "noised_classes": torch.from_numpy(classes).long()}
    return batch


def test_noise_is_a_function_of_seed_epoch_and_row():
    boxes, classes = np.array([[0.5, 0.5, 0.2, 0.4]] * 400), np.zeros(400, dtype=int)
    noised, guesses = NOISE.draw(boxes, classes, 1, 7)
    again = NOISE.draw(boxes, classes, 1, 7)
    assert np.array_equal(noised, again[0])
    assert np.array_equal(guesses, again[1])
    for other in (NOISE.draw(boxes, classes, 2, 7), NOISE.draw(boxes, classes, 1, 8)):
        assert not np.array_equal(noised, other[0])
    assert noised.shape == (3, 400, 4)
    reach = np.abs(noised - boxes).max(axis=(0, 1))
    assert reach == pytest.approx([0.04, 0.08, 0.08, 0.16], rel=0.02)  # 0.4 of half a side, 0.4 of a side
    assert (guesses != 0).mean() == pytest.approx(0.5 * 2 / 3, abs=0.05)  # a class drawn anew may be the same


def test_each_copy_is_judged_by_its_own_object():
    batch = noised_batch(4)  # 2, 1, 0 and 3 objects
    queries = noised_queries(batch["labels"])
    assert queries["denoising_classes"].shape == (4, 3, 3)
    assert (queries["denoising_classes"] >= 0).sum(dim=2)[:, 0].tolist() == [2, 1, 0, 3]
    logits, boxes = torch.randn(4, 3, 3, 4), torch.rand(4, 3, 3, 4)
    terms = denoising_terms(logits, boxes, batch["labels"])
    classes = l1 = giou = 0.0
    for picture, target in enumerate(batch["labels"]):
        for place, (kind, box) in enumerate(zip(target["class_labels"], target["boxes"], strict=True)):
            for group in range(3):
                said = boxes[picture, group, place]
                classes -= logits[picture, group, place].log_softmax(-1)[kind] / 3
                l1 += (said - box).abs().sum() / 3
                giou += (1 - generalized_iou(corners(said[None]), corners(box[None])))[0] / 3
    torch.testing.assert_close(terms, {"classes": classes, "boxes": l1, "giou": giou}, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_losses_with_noise_add_up_over_micro_batches(auxiliary):
    torch.manual_seed(2)
    model = DeceroDetectionForObjectDetection(DeceroDetectionConfig(**OURS, auxiliary_loss=auxiliary))
    objective = detection(PictureCollator(Pixels((32, 32)), noise=NOISE), Weights(), auxiliary)
    whole = noised_batch(6)
    parts = [{name: value[part] for name, value in whole.items()} for part in (slice(0, 2), slice(2, 3), slice(3, 6))]
    total = objective.loss(model, whole)
    assert sum(objective.loss(model, part) for part in parts).item() == pytest.approx(total.item(), rel=1e-5)
    plain = detection(PictureCollator(Pixels((32, 32))), Weights(), auxiliary).loss(model, whole)
    assert total > plain + 1  # which is the loss of the queries that look for objects


def test_a_collator_draws_noise_after_the_window():
    collate = PictureCollator(Pixels((4, 4)), noise=NOISE)
    row = {"pixels": bytes(48), "boxes": [0.25, 0.25, 0.75, 0.5], "classes": [2], "epoch": 3, "index": 9}
    target = collate([row])["labels"][0]
    boxes, classes = NOISE.draw(np.array([[0.5, 0.375, 0.5, 0.25]]), np.array([2]), 3, 9)
    assert target["noised_boxes"].numpy() == pytest.approx(boxes)
    assert target["noised_classes"].tolist() == classes.tolist()
    assert "noised_boxes" not in PictureCollator(Pixels((4, 4)))([row])["labels"][0]
