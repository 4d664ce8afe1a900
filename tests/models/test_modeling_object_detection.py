"""The detector: stems, positions, anchors, denoising queries, and the interface of transformers."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch.testing import assert_close
from transformers import AutoImageProcessor, AutoModel, AutoModelForObjectDetection, DetrImageProcessorPil

import decero.execution.attention_kernels  # noqa: F401  registers "matmul"
from decero.models import DeceroDetectionConfig, DeceroDetectionForObjectDetection, DeceroDetectionModel
from decero.models.detection_parts import FrozenBatchNorm2d, coordinate_positions, places
from decero.models.detection_queries import box_prior, denoising_mask, tiled_boxes

RESNET = {"model_type": "resnet", "embedding_size": 5, "hidden_sizes": [5, 7], "depths": [1, 1], "num_channels": 2}
RESNET |= {"layer_type": "basic", "out_features": ["stage2"]}
VIT = {"model_type": "decero_vision", "image_size": [8, 12], "patch_size": 4, "num_channels": 2, "hidden_size": 9}
VIT |= {"num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 5}
BASE = {
    "patch_size": 4, "num_channels": 2, "hidden_size": 26, "num_hidden_layers": 2, "decoder_layers": 3, "num_labels": 5,
    "num_attention_heads": 2, "intermediate_size": 11, "num_queries": 7,
}  # fmt: skip
STEMS = {
    "conv": {}, "patch": {"stem": "patch"}, "resnet": {"stem": "backbone", "backbone_config": RESNET},
    "vit": {"stem": "backbone", "backbone_config": VIT},
}  # fmt: skip
NOISED = {
    "denoising_classes": torch.tensor([[[0, 4, 2], [1, 4, 3]], [[3, -100, -100], [2, -100, -100]]]),
    "denoising_boxes": torch.linspace(0.05, 0.95, 48).view(2, 2, 3, 4),
}
LABELS = [
    {"class_labels": torch.tensor([0, 4, 2]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.5]]).repeat(3, 1)},
    {"class_labels": torch.tensor([3]), "boxes": torch.tensor([[0.5, 0.6, 0.7, 0.3]])},
]


@pytest.fixture
def make_model(randomize):
    """A detector of odd sizes with large weights, in eval mode."""

    def make(model_class=DeceroDetectionForObjectDetection, **fields):
        return randomize(model_class(DeceroDetectionConfig(**{**BASE, **fields}))).eval()

    return make


@pytest.fixture
def images():
    return torch.randn(2, 2, 20, 28)


def same_answers(one, other, **limits):
    assert_close(one.logits, other.logits, **limits)
    assert_close(one.pred_boxes, other.pred_boxes, **limits)


@pytest.mark.parametrize("stem", STEMS)
def test_gradients_reach_every_weight_of_each_stem(make_model, images, stem):
    model = make_model(**STEMS[stem]).train()
    out = model(images, labels=LABELS, **NOISED)
    (out.loss + sum(each["logits"].sum() for each in out.denoising_outputs)).backward()
    assert out.logits.shape == (2, 7, 6)
    assert out.pred_boxes.shape == (2, 7, 4)
    assert all(parameter.grad is not None for parameter in model.parameters())
    stems = {name: p.grad for name, p in model.named_parameters() if "stem" in name}
    assert sum(bool(grad.abs().max() > 0) for grad in stems.values()) > 0.8 * len(stems)
    alone, both = model(images[1:]), model(images)
    assert_close(alone.logits, both.logits[1:], atol=1e-4, rtol=1e-4)  # no batch statistics
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_a_frozen_norm_is_a_batch_norm_in_evaluation():
    norm = torch.nn.BatchNorm2d(5).train()
    norm(3 * torch.randn(4, 5, 6, 7) + 2)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 4)
    assert_close(FrozenBatchNorm2d(norm).train()(x), norm.eval()(x), atol=1e-5, rtol=1e-5)


def test_positions_equal_a_loop_of_the_formula():
    seen = torch.ones(2, 3, 5).bool()
    seen[1, :, 3:] = False
    found = coordinate_positions(places(seen), 12)
    for picture, row, column in ((0, 0, 0), (0, 2, 4), (1, 1, 2)):
        shares = ((row + 1) / 3, (column + 1) / (5, 3)[picture])
        waves = []
        for share in shares:
            for i in range(6):
                angle = 2 * math.pi * share / 10000 ** ((i - i % 2) / 6)
                waves.append(math.cos(angle) if i % 2 else math.sin(angle))
        assert_close(found[picture, row * 5 + column], torch.tensor(waves), atol=1e-5, rtol=0)
    centres = places(seen, centred=True)
    assert_close(centres[0, 1 * 5 + 4], torch.tensor([1.5 / 3, 4.5 / 5]), atol=1e-5, rtol=0)
    assert_close(centres[1, 2 * 5 + 0], torch.tensor([2.5 / 3, 0.5 / 3]), atol=1e-5, rtol=0)
    cooler = coordinate_positions(torch.tensor([0.3]), 24, 20)
    assert_close(cooler[4], torch.tensor(2 * math.pi * 0.3 / 20 ** (4 / 12)).sin(), atol=1e-5, rtol=0)


def test_a_prior_is_the_gaussian_of_its_box():
    box, grid = [0.7, 0.2, 0.4, 0.02], places(torch.ones(1, 5, 7).bool(), centred=True)
    found = box_prior(torch.tensor([[box]]), grid)
    for row in range(5):
        for column in range(7):
            x, y = (column + 0.5) / 7, (row + 0.5) / 5
            expected = -((x - 0.7) ** 2) / (2 * 0.2**2) - (y - 0.2) ** 2 / (2 * 0.025**2)  # at least 0.05 high
            assert_close(found[0, 0, row * 7 + column].item(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "matmul"])
def test_a_prior_makes_queries_differ_from_the_start(images, backend):
    seen = torch.ones(2, 20, 28).long()
    seen[1, :, 12:] = 0
    spread = []
    for prior in (False, True):
        torch.manual_seed(0)
        model = DeceroDetectionForObjectDetection(
            DeceroDetectionConfig(**BASE, stem="patch", anchor_prior=prior)
        ).eval()
        model.set_attn_implementation(backend)
        changed = images.clone()
        changed[1, :, :, 12:] = 9.0  # padding
        out = model(images, seen, **NOISED)
        same_answers(model(changed, seen, **NOISED), out, atol=1e-5, rtol=1e-5)
        spread.append(out.last_hidden_state[0, :7].std(0).mean().item())
    assert spread[1] > 10 * spread[0]
    model.set_attn_implementation("flex_attention")
    with (
        pytest.raises(ValueError, match="flex_attention does not support anchor_prior; use sdpa or eager"),
        torch.no_grad(),
    ):
        model(images)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "matmul"])
def test_heads_learn_where_to_look_beside_a_box(images, backend):
    torch.manual_seed(0)
    config = DeceroDetectionConfig(**BASE, stem="patch", anchor_prior=True, box_bias=True)
    model = DeceroDetectionForObjectDetection(config).eval()
    model.set_attn_implementation(backend)
    bias = model.model.decoder.box_biases[1]
    boxes, grid = torch.rand(2, 3, 4), places(torch.ones(2, 5, 7).bool(), centred=True).unflatten(1, (5, 7))
    assert not bias(boxes, grid).any()  # at first
    seen, without = torch.ones(2, 20, 28).long(), model(images).logits
    for weight in bias.parameters():
        torch.nn.init.normal_(weight, std=1.0)
    found = bias(boxes, grid)
    assert found.shape == (2, 2, 3, 35)
    for row, column, query in [(0, 0, 0), (4, 6, 2), (2, 5, 1)]:
        x, y, width, height = boxes[1, query].tolist()
        expected = 0
        for perceptron, place, sides in [
            (bias.across, (column + 0.5) / 7, (x - width / 2, x + width / 2)),
            (bias.down, (row + 0.5) / 5, (y - height / 2, y + height / 2)),
        ]:
            apart = [math.copysign(math.log1p(8 * abs(place - side)), place - side) for side in sides]
            expected = expected + perceptron(torch.tensor(apart))
        assert_close(found[1, :, query, row * 7 + column], expected, atol=1e-5, rtol=1e-5)
    assert (model(images).logits - without).abs().max() > 1e-3
    seen[1, :, 12:] = 0
    changed = images.clone()
    changed[1, :, :, 12:] = 9.0  # padding
    same_answers(model(changed, seen), model(images, seen), atol=1e-5, rtol=1e-5)
    model(images, labels=LABELS).loss.backward()
    assert all(weight.grad.abs().max() > 0 for weight in bias.parameters() if weight.ndim > 1)


def test_the_likeliest_places_become_queries(images):
    torch.manual_seed(0)
    config = DeceroDetectionConfig(**BASE | {"num_queries": 4}, stem="patch", proposals=True)
    model = DeceroDetectionForObjectDetection(config).eval()
    for weight in model.model.proposals.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    seen = torch.ones(2, 20, 28).long()
    seen[1, :, 12:] = 0  # columns of the map from the fourth on
    out = model(images, seen, output_hidden_states=True)
    first = out.auxiliary_outputs[0]
    assert first["logits"].shape == (2, 35, 6)
    assert [each["logits"].shape[1] for each in out.auxiliary_outputs] == [35, 4, 4]
    assert (first["logits"][1].unflatten(0, (5, 7))[:, 3:].argmax(-1) == 5).all()  # padding holds nothing
    shares = first["logits"].softmax(-1)
    decoder, classes = model.model.decoder, model.model.decoder.embed_classes.weight
    for row in range(2):
        best = sorted(range(35), key=lambda place: -shares[row, place, :-1].max().item())[:4]
        states, anchors = decoder.first_queries(
            2, (first["logits"], first["pred_boxes"].logit())
        )  # the same as the model's
        assert_close(anchors[row].sigmoid(), first["pred_boxes"][row, best], atol=1e-5, rtol=1e-5)
        assert_close(states[row], torch.stack([shares[row, place] @ classes for place in best]), atol=1e-5, rtol=1e-5)
    same_answers(model(images, seen, **NOISED), out, atol=1e-5, rtol=1e-5)
    small = model(images[:, :, :4, :8])
    assert small.logits.shape[1] == 2  # a small image has fewer places than queries


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_detector_runs_in_other_types(images, dtype):
    config = DeceroDetectionConfig(**BASE, stem="patch", anchor_prior=True, box_bias=True, proposals=True)
    model = DeceroDetectionForObjectDetection(config).eval()
    expected = model(images)
    found = model.to(dtype)(images.to(dtype), **NOISED)
    assert found.logits.dtype == dtype
    assert_close(found.pred_boxes.float(), expected.pred_boxes, atol=0.05, rtol=0)


def test_no_object_is_matched_to_padding(images):
    torch.manual_seed(0)
    model = DeceroDetectionForObjectDetection(DeceroDetectionConfig(**BASE, stem="patch", proposals=True))
    for weight in model.model.proposals.bbox_predictor.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    seen = torch.ones(2, 20, 28).long()
    seen[:, 12:] = 0
    low = [{"class_labels": torch.tensor([0, 4]), "boxes": torch.tensor([[0.3, 0.97, 0.2, 0.06]]).repeat(2, 1)}] * 2
    out = model(images, seen, labels=low)
    assert out.loss_dict["loss_ce_proposals"] < 4


def test_proposals_begin_around_their_place_and_learn(images):
    config = DeceroDetectionConfig(**BASE, stem="patch", proposals=True)
    model = DeceroDetectionForObjectDetection(config)
    out = model(images, labels=LABELS)
    box = out.auxiliary_outputs[0]["pred_boxes"][0, 1 * 7 + 4]
    assert_close(box, torch.tensor([4.5 / 7, 1.5 / 5, 0.25, 0.25]), atol=1e-4, rtol=0)
    without = DeceroDetectionForObjectDetection(DeceroDetectionConfig(**BASE, stem="patch"))(images, labels=LABELS)
    assert out.loss > without.loss * 1.1  # one layer more
    weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    total = sum(weights.get("_".join(name.split("_")[:2]), 0) * part for name, part in out.loss_dict.items())
    assert_close(out.loss, total, atol=1e-4, rtol=1e-5)
    out.loss.backward()
    assert model.model.proposals.classifier.weight.grad.norm() > 0
    assert model.model.proposals.bbox_predictor.layers[-1].weight.grad.norm() > 0


def test_anchors_cover_the_image_and_learn_either_way(images):
    boxes = tiled_boxes(12)
    assert_close(boxes[:, 2:].prod(-1).sum().item(), 1.0)
    quarters = {(x > 0.5, y > 0.5) for x, y in boxes[:, :2].tolist()}
    assert len(quarters) == 4
    assert len(torch.unique(boxes.round(decimals=2), dim=0)) == 12
    for auxiliary in (True, False):
        model = DeceroDetectionForObjectDetection(DeceroDetectionConfig(**BASE, auxiliary_loss=auxiliary))
        anchors = model.model.decoder.anchors.weight
        assert_close(anchors.sigmoid(), tiled_boxes(7))
        out = model(images, labels=LABELS)
        assert_close(out.pred_boxes[1], tiled_boxes(7))  # corrections begin with 0
        out.loss.backward()
        assert anchors.grad.norm() > 0.1


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_denoising_queries_change_no_answer(make_model, images, backend):
    model = make_model().train()
    model.set_attn_implementation(backend)
    plain, noised = model(images), model(images, **NOISED)
    assert plain.denoising_outputs is None
    same_answers(noised, plain, atol=1e-5, rtol=1e-5)
    for one, other in zip(noised.auxiliary_outputs, plain.auxiliary_outputs, strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert [each["pred_boxes"].shape for each in noised.denoising_outputs] == [(2, 2, 3, 4)] * 3


def test_a_denoising_query_reads_its_own_group_only(make_model, images):
    model = make_model()
    before = model(images, **NOISED).denoising_outputs[0]["logits"]
    changed = {name: tensor.clone() for name, tensor in NOISED.items()}
    changed["denoising_boxes"][0, 0, 1] = 0.5
    changed["denoising_boxes"][1, 0, 1:] = 0.3  # padding
    after = model(images, **changed).denoising_outputs[0]["logits"]
    assert_close(after[0, 1], before[0, 1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[0, 0, 0], before[0, 0, 0], atol=1e-3)
    assert_close(after[1, :, 0], before[1, :, 0], atol=1e-5, rtol=1e-5)
    mask = denoising_mask(1, torch.tensor([[[True, True], [True, False]]]))[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 0]]


@pytest.mark.parametrize("queries", ["learned", "anchors"])
@torch.no_grad()
def test_the_order_of_queries_changes_only_the_order(make_model, images, queries):
    model = make_model(queries=queries)
    before, order = model(images), torch.tensor([3, 1, 6, 0, 5, 2, 4])
    table = model.model.decoder.anchors if queries == "anchors" else model.model.decoder.query_positions
    table.weight.copy_(table.weight[order])
    after = model(images)
    assert_close(after.logits, before.logits[:, order], atol=1e-4, rtol=1e-4)
    assert_close(after.pred_boxes, before.pred_boxes[:, order], atol=1e-4, rtol=1e-4)


def test_each_layer_corrects_the_boxes_of_the_last_one(make_model, images):
    model = make_model()
    for parameter in model.model.decoder.bbox_predictor.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    out = model(images)
    expected = model.model.decoder.anchors.weight.sigmoid().expand(2, -1, -1)
    for each in (out, *out.auxiliary_outputs):  # no correction: the anchors
        assert_close(each["pred_boxes"], expected)
    with torch.no_grad():
        model.model.decoder.bbox_predictor.layers[-1].bias.fill_(0.5)
    out = model(images)
    found = [each["pred_boxes"].logit() for each in (*out.auxiliary_outputs, out)]
    for layer, logits in enumerate(found, start=1):
        assert_close(logits, (expected.logit() + 0.5 * layer), atol=1e-4, rtol=1e-4)


def test_padding_of_a_batch_is_not_read(make_model, images):
    model, seen = make_model(stem="patch"), torch.ones(2, 20, 28).long()
    seen[1, :, 12:] = 0
    changed = images.clone()
    changed[1, :, :, 12:] = 9.0
    one, other = model(images, seen), model(changed, seen)
    same_answers(one, other, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(changed).logits, model(images).logits, atol=1e-3)


@pytest.mark.parametrize(
    "fields", [{}, {"anchor_prior": True, "box_bias": True, "proposals": True}], ids=["plain", "all"]
)
def test_eager_and_sdpa_give_the_same_answers(make_model, images, fields):
    model, seen = make_model(**fields), torch.ones(2, 20, 28).long()
    seen[1, :, 12:] = 0
    answers = []
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        assert model.config._attn_implementation == kernel
        answers.append(model(images, seen, **NOISED))
    same_answers(*answers, atol=3e-5, rtol=1e-4)


def test_any_size_is_read_and_wrong_inputs_are_named(make_model, images):
    model = make_model(stem="patch")
    assert model.model.read(images[:, :, :17, :26]).shape == (2, 26, 5, 7)
    with pytest.raises(ValueError, match="images have 1 channels, but num_channels is 2; convert the images"):
        model(images[:, :1])
    with pytest.raises(ValueError, match="denoising_classes and denoising_boxes go together"):
        model(images, denoising_boxes=NOISED["denoising_boxes"])
    with pytest.raises(ValueError, match="queries are learned positions and cannot denoise boxes"):
        make_model(queries="learned")(images, **NOISED)
    for fields, line in (
        ({"stem": "backbone"}, "stem is backbone, with no backbone_config"),
        ({"backbone_config": RESNET}, "stem is conv, with a backbone_config"),
        ({"patch_size": 6}, "patch_size 6 must be positive, and a power of 2 for stem conv"),
        ({"hidden_size": 9, "num_attention_heads": 3}, "hidden_size 9 must be even"),
        ({"num_queries": 0}, "num_queries 0 must be at least 1"),
        ({"queries": "learned", "anchor_prior": True}, "anchor_prior needs a box a query; set queries: anchors"),
        ({"box_bias": True}, "box_bias needs anchor_prior: true"),
        ({"proposals": True, "auxiliary_loss": False}, "proposals need queries: anchors and auxiliary_loss: true"),
        ({"proposals": True, "queries": "learned"}, "proposals need queries: anchors and auxiliary_loss: true"),
        ({"position_temperature": 1}, "position_temperature 1 must be greater than 1; DAB-DETR has 20"),
        ({"stem": "patch", "stem_depth": 2}, "stem_depth 2 must be at least 1, and is 1 without stem: conv"),
    ):
        with pytest.raises(StrictDataclassError, match=line):
            DeceroDetectionConfig(**{**BASE, **fields})


@pytest.mark.parametrize("stem", ["conv", "resnet"])
def test_auto_classes_find_models_saved_and_loaded(make_model, images, stem, tmp_path):
    model = make_model(**STEMS[stem])
    if stem == "resnet":
        norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
        for norm in norms:
            torch.nn.init.normal_(norm.running_mean)
        assert norms
    model.save_pretrained(tmp_path)
    DetrImageProcessorPil(size={"height": 20, "width": 28}, do_pad=False).save_pretrained(tmp_path)
    again = AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    assert type(again) is DeceroDetectionForObjectDetection
    same_answers(again(images), model(images))
    assert again.config.id2label == model.config.id2label
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    assert type(AutoModel.from_pretrained(tmp_path)) is DeceroDetectionModel
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    found = processor.post_process_object_detection(again(images), threshold=0.0, target_sizes=[(20, 28)] * 2)
    assert [len(each["boxes"]) for each in found] == [7, 7]


def test_states_attentions_and_checkpointing_are_those_asked_for(make_model, images, gradients):
    model = make_model()
    model.set_attn_implementation("eager")
    out = model(images, output_hidden_states=True, output_attentions=True, **NOISED)
    assert [len(each) for each in (out.encoder_hidden_states, out.decoder_hidden_states)] == [3, 4]
    assert [weights.shape for weights in out.encoder_attentions] == [(2, 2, 35, 35)] * 2
    assert [weights.shape for weights in out.decoder_attentions] == [(2, 2, 13, 13)] * 3
    assert [weights.shape for weights in out.cross_attentions] == [(2, 2, 13, 35)] * 3
    model.train()(images, labels=LABELS).loss.backward()
    kept = {name: grad.clone() for name, grad in gradients(model).items()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(images, labels=LABELS).loss.backward()
    assert_close(gradients(model), kept)
