"""The encoder of images and its heads: stems, positions, masks, and the interface of transformers."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.testing import assert_close
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForSemanticSegmentation,
    DetrConfig,
    DetrForObjectDetection,
    ViTImageProcessorPil,
)

from decero.models import (
    DeceroVisionBackbone,
    DeceroVisionConfig,
    DeceroVisionForImageClassification,
    DeceroVisionForMaskedImageModeling,
    DeceroVisionForSemanticSegmentation,
    DeceroVisionModel,
)
from decero.models.decode_heads import enlarge
from decero.models.patches import grid_positions, patchify

AUTO = {
    AutoModel: DeceroVisionModel,
    AutoBackbone: DeceroVisionBackbone,
    AutoModelForImageClassification: DeceroVisionForImageClassification,
    AutoModelForSemanticSegmentation: DeceroVisionForSemanticSegmentation,
    AutoModelForMaskedImageModeling: DeceroVisionForMaskedImageModeling,
}
HEADS = [DeceroVisionForImageClassification, DeceroVisionForSemanticSegmentation, DeceroVisionForMaskedImageModeling]
MASK = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]).bool()  # of 2 x 3 patches
LABELS = {
    DeceroVisionForImageClassification: {"labels": torch.tensor([1, 0, 4])},
    DeceroVisionForSemanticSegmentation: {"labels": torch.arange(3 * 8 * 12).view(3, 8, 12) % 5},
    DeceroVisionForMaskedImageModeling: {"bool_masked_pos": MASK},
}
SLOTS = {
    "stem": ["patch", "conv"],
    "pooling": ["cls", "mean"],
    "position_embedding_type": ["learned", "sinusoidal"],
    "norm_placement": ["pre", "post"],
}
COMBINATIONS = [dict(zip(SLOTS, values, strict=True)) for values in itertools.product(*SLOTS.values())]
DISTILLED = {"distillation_token": True, "distillation_head": True}
BASE = {
    "image_size": [8, 12], "patch_size": 4, "num_channels": 2, "hidden_size": 33, "num_hidden_layers": 2,
    "num_attention_heads": 3, "head_dim": 7, "intermediate_size": 41, "num_labels": 5, "decoder_hidden_size": 6,
}  # fmt: skip


@pytest.fixture
def make_model(randomize):
    """A model of odd sizes with large weights, in eval mode."""

    def make(model_class=DeceroVisionModel, backend="sdpa", **fields):
        model = randomize(model_class(DeceroVisionConfig(**{**BASE, **fields}))).eval()
        model.set_attn_implementation(backend)
        return model

    return make


@pytest.fixture
def images():
    return torch.randn(3, 2, 8, 12)


def fields_of(config):
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in ("_name_or_path", "architectures", "dtype")
    }


def main_output(out):
    return next(out[name] for name in ("logits", "reconstruction", "last_hidden_state") if out.get(name) is not None)


# --- what is computed


@pytest.mark.parametrize("slots", COMBINATIONS, ids=lambda slots: " ".join(slots.values()))
def test_eager_equals_sdpa_and_an_image_does_not_see_others(make_model, gradients, images, slots):
    found = []
    for backend in ("eager", "sdpa"):
        model = make_model(DeceroVisionForImageClassification, backend, **slots).train()
        out = model(images, labels=torch.tensor([1, 0, 4]))
        out.loss.backward()
        found.append((out.logits, gradients(model)))
        assert_close(model(images[1:2]).logits, out.logits[1:2], atol=1e-5, rtol=1e-5)
    (eager, eager_gradients), (sdpa, sdpa_gradients) = found
    assert_close(sdpa, eager)
    largest = max(gradient.abs().max() for gradient in eager_gradients.values())
    for name, gradient in eager_gradients.items():
        assert (sdpa_gradients[name] - gradient).abs().max() <= 3e-5 * largest, name


def test_a_patch_embedding_is_one_matrix_times_its_pixels(make_model, images):
    model = make_model()
    rows = patchify(images, 4)
    assert torch.equal(rows[1, 4], images[1, :, 4:8, 4:8].flatten())  # the fifth of 2 x 3 patches
    weight, table = model.stem.weight.flatten(1), model.embed_positions.weight
    expected = (
        torch.cat((model.special_tokens[0].weight.expand(3, 1, -1), rows @ weight.T + model.stem.bias), 1) + table
    )
    assert_close(model.embed(images), expected)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_each_stem_makes_one_token_a_patch(make_model, images, stem):
    assert make_model(stem=stem, pooling="mean")(images).last_hidden_state.shape == (3, 6, 33)
    assert make_model(stem=stem)(images).last_hidden_state.shape == (3, 7, 33)
    assert make_model(stem=stem, **DISTILLED)(images).last_hidden_state.shape == (3, 8, 33)
    if stem == "conv":
        deeper = make_model(stem=stem, stem_depth=3)
        assert [sum(p.dim() == 4 for p in each.stem.parameters()) for each in (make_model(stem=stem), deeper)] == [3, 7]
        assert deeper(images).last_hidden_state.shape == (3, 7, 33)


def test_the_sinusoidal_grid_equals_a_loop_of_the_formula():
    places = grid_positions(2, 3, 7)
    for row, column in itertools.product(range(2), range(3)):
        waves = []
        for place, size in ((row, 3), (column, 4)):
            for i in range(size):
                angle = place / 10000 ** ((i - i % 2) / size)
                waves.append(math.cos(angle) if i % 2 else math.sin(angle))
        assert_close(places[row * 3 + column], torch.tensor(waves))


def test_special_tokens_have_no_sinusoidal_position(make_model, images):
    model = make_model(position_embedding_type="sinusoidal", **DISTILLED)
    special = torch.stack([token.weight[0] for token in model.special_tokens])
    assert torch.equal(model.embed(images)[1, :2], special)
    assert not any("position" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_other_sizes_are_read_only_when_asked_for(make_model, images, positions):
    model = make_model(position_embedding_type=positions)
    assert_close(model(images, interpolate_pos_encoding=True).last_hidden_state, model(images).last_hidden_state)
    larger = torch.randn(1, 2, 12, 8)
    with pytest.raises(ValueError, match="images have 12 x 8 pixels, but the model reads 8 x 12; resize them"):
        model(larger)
    assert model(larger, interpolate_pos_encoding=True).last_hidden_state.shape == (1, 7, 33)
    with pytest.raises(ValueError, match="images have 9 x 8 pixels, which patches of 4 do not fill"):
        model(larger[:, :, :9], interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="images have 1 channels, but num_channels is 2"):
        model(images[:, :1])


def test_a_hidden_token_changes_no_other(make_model, images):
    model, mask = make_model(), torch.ones(3, 7)
    mask[:, 6] = 0
    changed = images.clone()
    changed[:, :, 4:, 8:] = 9.0  # the last patch
    before, after = (model(x, attention_mask=mask).last_hidden_state[:, :6] for x in (images, changed))
    assert_close(after, before)
    assert not torch.allclose(model(changed).last_hidden_state[:, :6], before, atol=1e-2)


# --- classification


@pytest.mark.parametrize("fields", [{}, {"distillation_token": True}, DISTILLED], ids=["cls", "token", "two heads"])
def test_the_last_layer_computes_only_what_a_head_reads(make_model, images, fields):
    model, seen = make_model(DeceroVisionForImageClassification, "eager", **fields), []
    model.model.layers[-1].mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    short = model(images).logits
    assert seen == [2 if "distillation_head" in fields else 1]
    assert_close(model(images, output_hidden_states=True).logits, short, atol=1e-5, rtol=1e-5)
    assert_close(model(images, output_attentions=True).logits, short, atol=1e-5, rtol=1e-5)
    model.config.output_hidden_states = True
    assert [state.shape for state in model(images).hidden_states] == [(3, 7 + bool(fields), 33)] * 3


def test_two_heads_vote_and_mean_pooling_reads_the_patches(make_model, images):
    model = make_model(DeceroVisionForImageClassification, **DISTILLED)
    hidden = model.model(images).last_hidden_state
    votes = model.classifier(hidden[:, 0]) + model.distillation_classifier(hidden[:, 1])
    assert_close(model(images).logits, votes / 2, atol=1e-5, rtol=1e-5)
    model = make_model(DeceroVisionForImageClassification, pooling="mean")
    hidden = model.model(images).last_hidden_state
    assert_close(model(images).logits, model.classifier(hidden.mean(dim=1)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_pooler_reads_what_pooling_says(make_model, images, pooling):
    model = make_model(pooling=pooling, pooling_layer=True)
    out = model(images)
    read = out.last_hidden_state[:, 0] if pooling == "cls" else out.last_hidden_state.mean(dim=1)
    assert_close(out.pooler_output, model.pooler.dense(read).tanh())
    assert make_model().pooler is None


# --- masked images


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_no_pixel_of_a_masked_patch_is_read(make_model, images, stem):
    model = make_model(DeceroVisionForMaskedImageModeling, stem=stem)
    changed = images.clone()
    changed[0, :, :4, :4] = 9.0  # masked in the first image only
    out, other = model(images, bool_masked_pos=MASK), model(changed, bool_masked_pos=MASK)
    assert torch.equal(other.reconstruction, out.reconstruction)
    assert not torch.equal(other.loss, out.loss)
    assert not torch.equal(model(changed).reconstruction, model(images).reconstruction)


def test_the_masked_image_loss_is_the_mean_over_masked_pixels(make_model, images):
    model = make_model(DeceroVisionForMaskedImageModeling)
    out = model(images, bool_masked_pos=MASK)
    assert out.reconstruction.shape == images.shape
    apart = [
        (images - out.reconstruction)[b, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].abs()
        for b, y, x in MASK.view(3, 2, 3).nonzero().tolist()
    ]
    assert_close(out.loss, torch.stack(apart).mean())
    assert model(images).loss is None
    with pytest.raises(ValueError, match="DeceroVisionModel has no mask token; build it with use_mask_token=True"):
        make_model()(images, bool_masked_pos=MASK)


# --- segmentation


@pytest.mark.parametrize(("head", "size"), [("naive", (2, 3)), ("pup", (8, 12)), ("mla", (8, 12))])
def test_each_way_back_to_pixels_has_its_size_and_loss(make_model, images, head, size):
    model = make_model(DeceroVisionForSemanticSegmentation, decode_head=head, num_hidden_layers=3)
    labels = torch.randint(0, 5, (3, 8, 12))
    out = model(images, labels=labels)
    assert out.logits.shape == (3, 5, *size)
    assert out.hidden_states is None
    assert_close(model.train()(images[1:2]).logits, out.logits[1:2], atol=1e-4, rtol=1e-4)  # no batch statistics
    scores = F.interpolate(out.logits, size=(8, 12), mode="bilinear")
    labels[:, :4] = 255
    assert_close(model(images, labels=labels).loss, F.cross_entropy(scores[:, :, 4:], labels[:, 4:]))
    counted = model(images, labels=labels, num_items_in_batch=7).loss
    assert_close(counted, F.cross_entropy(scores[:, :, 4:], labels[:, 4:], reduction="sum") / 7)


def test_levels_are_spread_over_the_layers_and_added_top_down(make_model, images):
    model = make_model(DeceroVisionForSemanticSegmentation, decode_head="mla", num_hidden_layers=6)
    head = model.decode_head
    assert head.levels == (1, 3, 4, 6)
    states = model.model(images, output_hidden_states=True).hidden_states
    maps = [model.model.norm(states[level])[:, 1:].transpose(1, 2).unflatten(2, (2, 3)) for level in head.levels]
    first = [narrow(each) for narrow, each in zip(head.narrow, maps, strict=True)]
    sums = [sum(first[i:]) for i in range(4)]
    mixed = torch.cat([stream(each) for stream, each in zip(head.streams, sums, strict=True)][::-1], dim=1)
    assert_close(model(images).logits, head.classifier(enlarge(mixed, 4)), atol=1e-4, rtol=1e-4)  # enlarged first


# --- backbone


def test_the_backbone_gives_normalised_maps_of_its_levels(make_model, images):
    model = make_model(DeceroVisionBackbone, out_features=["stem", "stage2"])
    assert model.config.out_indices == [0, 2]
    assert model.channels == [33, 33]
    first, last = model(images).feature_maps
    assert first.shape == last.shape == (3, 33, 2, 3)
    hidden = model.model(images).last_hidden_state
    assert_close(last[1, :, 1, 2], hidden[1, 6])
    assert model(images).hidden_states is None
    assert len(model(images, output_hidden_states=True).hidden_states) == 3
    assert model(torch.randn(1, 2, 16, 8)).feature_maps[0].shape == (1, 33, 4, 2)
    assert make_model(DeceroVisionBackbone).config.out_features == ["stage2"]


def test_stock_detr_learns_over_our_backbone(make_model):
    config = DetrConfig(
        backbone_config=DeceroVisionConfig(**BASE | {"num_channels": 3}), use_timm_backbone=False, num_labels=3,
        d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=8, decoder_ffn_dim=8, num_queries=5,
    )  # fmt: skip
    model = DetrForObjectDetection(config)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    labels = [{"class_labels": torch.tensor([i]), "boxes": boxes} for i in range(2)]
    out = model(pixel_values=torch.randn(2, 3, 8, 12), pixel_mask=torch.ones(2, 8, 12).long(), labels=labels)
    out.loss.backward()
    assert out.pred_boxes.shape == (2, 5, 4)
    weights = {name: p for name, p in model.named_parameters() if "backbone" in name}
    trained = [name for name, p in weights.items() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(trained) > 0.8 * len(weights)


# --- the interface of transformers


@pytest.mark.parametrize(("auto", "model_class"), AUTO.items(), ids=lambda value: value.__name__)
def test_every_auto_class_finds_its_model_saved_and_loaded(make_model, images, auto, model_class, tmp_path):
    model = make_model(model_class, decode_head="mla", **DISTILLED)
    model.save_pretrained(tmp_path)
    assert type(auto.from_config(model.config)) is model_class
    loads = model_class if auto is AutoBackbone else auto  # AutoBackbone only loads from the hub
    again = loads.from_pretrained(tmp_path).eval()
    assert type(again) is model_class
    assert fields_of(again.config) == fields_of(model.config)
    for ours, theirs in zip(model(images).to_tuple(), again(images).to_tuple(), strict=True):
        assert_close(theirs, ours)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())


def test_the_image_processor_is_found_without_torchvision(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 8, "width": 12}).save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).size == {"height": 8, "width": 12}


@pytest.mark.parametrize("head", [*HEADS, DeceroVisionBackbone])
def test_each_head_takes_its_body_from_a_masked_image_checkpoint(make_model, head, tmp_path):
    pretrained = make_model(DeceroVisionForMaskedImageModeling)
    pretrained.save_pretrained(tmp_path)
    model, report = head.from_pretrained(tmp_path, num_labels=4, output_loading_info=True)
    new = {name.split(".")[0] for name in report["missing_keys"]}
    assert new == {"classifier", "decode_head"} & {name for name, _ in model.named_children()}
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, pretrained.model.state_dict()[name]), name


@pytest.mark.parametrize("head", HEADS)
def test_gradient_checkpointing_recomputes_the_same_gradients(make_model, gradients, images, head):
    model = make_model(head, decode_head="mla").train()
    model(images, **LABELS[head]).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(images, **LABELS[head]).loss.backward()
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_is_trained(make_model, images, gradients, head):
    for fields in ({"decode_head": "mla", **DISTILLED}, {"stem": "conv", "decode_head": "pup", "pooling": "mean"}):
        model = make_model(head, **fields).train()
        model(images, **LABELS[head]).loss.backward()
        names = {name for name, p in model.named_parameters() if name not in gradients(model)}
        assert names == set()


@pytest.mark.parametrize("head", HEADS)
def test_heads_pass_hidden_states_and_attentions_on(make_model, images, head):
    model = make_model(head, "eager")
    out = model(images, **LABELS[head], output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in out.hidden_states] == [(3, 7, 33)] * 3
    assert [weights.shape for weights in out.attentions] == [(3, 3, 7, 7)] * 2
    assert_close(out.attentions[1].sum(-1), torch.ones(3, 3, 7))
    row = model(images, **LABELS[head], return_dict=False)
    assert isinstance(row, tuple)
    assert_close(row[0], out.loss)


def test_the_last_hidden_state_is_not_normalised_yet(make_model, images):
    model = make_model()
    out = model(images, output_hidden_states=True)
    assert_close(model.norm(out.hidden_states[-1]), out.last_hidden_state)
    assert not torch.allclose(out.hidden_states[-1], out.last_hidden_state, atol=1e-2)


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_is_finite_and_near_fp32(make_model, images, head):
    model = head(DeceroVisionConfig(**BASE, stem="conv", decode_head="pup")).eval()
    expected = main_output(model(images, **LABELS[head]))
    actual = main_output(model.to(torch.bfloat16)(images, **LABELS[head]))
    assert actual.dtype == torch.bfloat16
    assert_close(actual.float(), expected, atol=0.05, rtol=0.1)


def test_weights_start_with_the_configured_std(make_model):
    model = DeceroVisionForImageClassification(
        DeceroVisionConfig(**BASE | {"hidden_size": 330}, initializer_range=0.05)
    )
    for name, parameter in model.named_parameters():
        if parameter.numel() > 1000 and "norm" not in name:
            assert 0.045 < parameter.std() < 0.055, name


def test_unknown_arguments_are_an_error_with_the_nearest_name(make_model, images):
    with pytest.raises(TypeError, match="does not read label; did you mean labels"):
        make_model(DeceroVisionForImageClassification)(images, label=torch.tensor([1, 0, 4]))


@pytest.mark.slow
def test_a_classifier_compiles_without_a_graph_break(make_model, images):
    model = make_model(DeceroVisionForImageClassification, stem="conv")
    expected = model(images).logits
    assert_close(torch.compile(model, backend="eager", fullgraph=True)(images).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_size": 30}, "image_size 30 is not a multiple of patch_size 4"),
        ({"image_size": [8, 8, 8]}, "is not a multiple of patch_size 4"),
        ({"patch_size": 0}, "is not a multiple of patch_size 0"),
        ({"image_size": 9, "patch_size": 3, "stem": "conv"}, "stem conv works in steps of 2, but patch_size 3 is not"),
        ({"image_size": 9, "patch_size": 3, "decode_head": "pup"}, "decode_head pup works in steps of 2"),
        ({"pooling": "mean", "distillation_token": True}, "distillation_token needs pooling cls, not mean"),
        ({"distillation_head": True}, "distillation_head needs distillation_token: true"),
        ({"num_attention_heads": 4, "head_dim": None}, "hidden_size 33 is not a multiple of num_attention_heads 4"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_name(fields, said):
    with pytest.raises(Exception, match=said):
        DeceroVisionConfig(**{**BASE, **fields})


def test_the_configuration_knows_no_texts_and_survives_a_file(tmp_path):
    config = DeceroVisionConfig(**BASE, out_indices=[1])
    assert not {"vocab_size", "pad_token_id", "tie_word_embeddings", "max_position_embeddings"} & set(config.to_dict())
    config.save_pretrained(tmp_path)
    assert fields_of(AutoConfig.from_pretrained(tmp_path)) == fields_of(config)


def test_block_masks_compute_all_tokens():
    """Positions of a block mask cannot be selected."""
    model = DeceroVisionForImageClassification(DeceroVisionConfig(**BASE, pooling="cls"))
    pixels = torch.randn(2, 2, 8, 12)
    assert model.read_tokens(pixels).shape == (2, 1)
    model.config._attn_implementation = "flex_attention"
    assert model.read_tokens(pixels) is None
