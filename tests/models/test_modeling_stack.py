"""The stack that text and other inputs share: layers, and embeddings that a subclass adds."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from decero.models.layers import EncoderLayer
from decero.models.modeling_stack import DeceroStack


class PatchStack(DeceroStack):
    """Embed rows of pixels, without a vocabulary."""

    def __init__(self, config):
        super().__init__(config, EncoderLayer, config.num_hidden_layers)
        self.post_init()

    def add_embeddings(self, config):
        self.embed_patches = nn.Linear(7, config.hidden_size)

    def forward(self, pixels_BLC, positions_BLD=None):
        hidden_BLD = self.embed_patches(pixels_BLC)
        place_1L = torch.arange(hidden_BLD.shape[1])[None]
        return self.apply_layers(hidden_BLD, {"full_attention": None}, place_1L, positions_BLD=positions_BLD)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "recomputed"])
def test_a_stack_without_tokens_takes_positions_in_each_layer(make_config, randomize, checkpointed):
    config = make_config(position_embedding_type="none", norm_placement="post")
    stack = randomize(PatchStack(config))
    assert not hasattr(stack, "embed_tokens")
    assert list(dict(stack.named_children())) == [
        "embed_patches", "embed_norm", "embed_projection", "dropout", "layers", "norm",
    ]  # fmt: skip
    pixels, places = torch.randn(2, 5, 7), torch.randn(1, 5, 33, requires_grad=True)
    if checkpointed:
        stack.gradient_checkpointing_enable()
    out = stack.train()(pixels, places)
    hidden = stack.embed_patches(pixels)
    for layer in stack.layers:
        mix = layer.self_attn(hidden, positions_BLD=places)[0]
        hidden = layer.post_attn_norm(hidden + mix)
        hidden = layer.post_mlp_norm(hidden + layer.mlp(hidden))
    assert_close(out, hidden)
    assert_close(*(torch.autograd.grad(each.square().sum(), places)[0] for each in (out, hidden)))
    shuffled = torch.tensor([3, 0, 4, 1, 2])  # without positions, order is not seen; with them it is
    assert_close(stack(pixels[:, shuffled]), stack(pixels)[:, shuffled])
    assert not torch.allclose(stack(pixels[:, shuffled], places), out[:, shuffled], atol=1e-2)
