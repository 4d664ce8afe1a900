"""The losses of set prediction are DETR's own, term by term; sums add up over parts of a batch."""

import pytest
import torch
from transformers import AutoModelForObjectDetection, DetrConfig

from decero.data.image_rows import Pixels
from decero.execution.detection_objective import Weights, detection, layer_terms, outputs_of_layers
from decero.execution.image_objective import PictureCollator

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
