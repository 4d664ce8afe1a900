"""The diffusion Transformer: nothing at first, equal to a plain one of its own, and saved whole."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import AutoModel

from decero.models import DeceroDiffusionConfig, DeceroDiffusionModel

SIZES = {"image_size": [8, 12], "patch_size": 4, "num_channels": 3, "hidden_size": 34, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 41, "num_labels": 5, "time_frequency_size": 14}
IMAGES = torch.linspace(-1, 1, 3 * 3 * 8 * 12).view(3, 3, 8, 12).sin()
TIMES, CLASSES = torch.tensor([0.0, 0.37, 0.99]), torch.tensor([4, 0, 5])  # 5: no class


@pytest.fixture
def make():
    def build(**fields):
        torch.manual_seed(3)
        return DeceroDiffusionModel(DeceroDiffusionConfig(**SIZES | fields))

    return build


def test_at_first_the_velocity_is_zero_and_layers_do_nothing(make):
    model = make()
    found = model(IMAGES, TIMES, CLASSES, output_hidden_states=True)
    assert found.velocity.shape == IMAGES.shape
    assert not found.velocity.any()
    first, *others = found.hidden_states
    assert len(others) == 2
    assert first.abs().max() > 0.1
    assert all(torch.equal(each, first) for each in others)
    found.velocity.sub(1).square().sum().backward()
    assert model.decoder.bias.grad.abs().min() > 0  # so it can begin to learn


def plain_dit(weights, images, times, classes):
    """A DiT in plain functions, written from Peebles & Xie 2022, section 3.2 and figure 3, right."""

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def waves(positions, size):
        rates = 10000.0 ** (-torch.arange(0, size, 2) / size)
        return positions[..., None] * rates

    angles = waves(times * 1000, 14)
    condition = linear(F.silu(linear(torch.cat((angles.sin(), angles.cos()), -1), "embed_time.up_proj")),
                       "embed_time.down_proj") + weights["embed_classes.weight"][classes]  # fmt: skip
    patches = images.reshape(3, 3, 2, 4, 3, 4).permute(0, 2, 4, 1, 3, 5).reshape(3, 6, 48)
    places = []
    for row in range(2):
        for column in range(3):
            halves = [waves(torch.tensor(float(place)), 17) for place in (row, column)]
            places.append(torch.cat([torch.stack((h.sin(), h.cos()), -1).flatten()[:17] for h in halves]))
    x = patches @ weights["stem.weight"].reshape(34, 48).T + weights["stem.bias"] + torch.stack(places)
    for i in range(2):
        at = f"layers.{i}"
        parts = linear(F.silu(condition), f"{at}.modulation.proj")[:, None].split(34, -1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts
        read = norm(x) * (1 + scale_1) + shift_1
        q, k, v = (linear(read, f"{at}.self_attn.{n}_proj").reshape(3, 6, 2, 17).transpose(1, 2) for n in "qkv")
        mix = ((q @ k.transpose(-1, -2)) / 17**0.5).softmax(-1) @ v
        x = x + gate_1 * linear(mix.transpose(1, 2).reshape(3, 6, 34), f"{at}.self_attn.o_proj")
        read = norm(x) * (1 + scale_2) + shift_2
        x = x + gate_2 * linear(F.gelu(linear(read, f"{at}.mlp.up_proj")), f"{at}.mlp.down_proj")
    shift, scale = linear(F.silu(condition), "final_modulation.proj")[:, None].split(34, -1)
    out = linear(norm(x) * (1 + scale) + shift, "decoder")
    return out.reshape(3, 2, 3, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(3, 3, 8, 12)


def test_outputs_and_gradients_are_those_of_a_plain_dit(make, randomize):
    model = randomize(make())
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
    images, theirs = IMAGES.clone().requires_grad_(), IMAGES.clone().requires_grad_()
    ours, plain = model(images, TIMES, CLASSES).velocity, plain_dit(weights, theirs, TIMES, CLASSES)
    assert float(ours.detach().abs().mean()) > 0.3
    assert_close(ours, plain, atol=3e-5, rtol=1e-5)
    for velocity in (ours, plain):
        (velocity * IMAGES.cos()).sum().backward()
    assert_close(images.grad, theirs.grad, atol=3e-5, rtol=1e-4)
    for name, weight in model.named_parameters():
        assert_close(weight.grad, weights[name].grad, atol=1e-4, rtol=1e-4, msg=lambda text, at=name: f"{at}: {text}")


def test_no_label_is_the_last_class_and_eager_equals_sdpa(make, randomize):
    model = randomize(make()).eval()
    none = model(IMAGES, TIMES).velocity
    assert torch.equal(none, model(IMAGES, TIMES, torch.full((3,), model.no_class)).velocity)
    model.set_attn_implementation("eager")
    found = model(IMAGES, TIMES, output_attentions=True)
    assert_close(found.velocity, none, atol=1e-5, rtol=1e-5)
    assert_close(found.attentions[1].sum(-1), torch.ones(3, 2, 6))


def test_checkpointing_and_saving_change_nothing(make, randomize, tmp_path):
    model = randomize(make(position_embedding_type="learned")).train()
    found = model(IMAGES, TIMES, CLASSES).velocity
    found.sum().backward()
    wanted = model.embed_time.up_proj.weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(IMAGES, TIMES, CLASSES).velocity.sum().backward()
    assert_close(model.embed_time.up_proj.weight.grad, wanted)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is DeceroDiffusionModel
    assert torch.equal(again(IMAGES, TIMES, CLASSES).velocity, model.eval()(IMAGES, TIMES, CLASSES).velocity)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_size": 10}, "image_size 10 is not a multiple of patch_size 4"),
        ({"norm_placement": "post"}, "set norm_placement pre"),
        ({"norm_type": "rmsnorm"}, "norm_type layernorm"),
        ({"embedding_norm": True}, "embedding_norm replaces the first norm"),
        ({"time_frequency_size": 7}, "time_frequency_size 7 must be even"),
    ],
)
def test_fields_that_do_not_fit_are_refused(make, fields, said):
    with pytest.raises(Exception, match=said):
        make(**fields)


def test_images_of_another_size_are_refused(make):
    with pytest.raises(ValueError, match=r"images are 3 x 8 x 8 .* but the model reads 3 x 8 x 12; resize them"):
        make()(IMAGES[..., :8], TIMES)
