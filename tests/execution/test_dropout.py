"""Dropout that draws sixteen bits an element: its share, its mean, its seed, and where it is put."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM

from decero.execution.attention_kernels import choose_attention
from decero.execution.dropout import SixteenBitDropout, draw_fewer_bits, sixteen_bit_dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_the_share_and_follows_the_seed(p, dtype):
    x = torch.full((3, 101, 1009), 2.0, dtype=dtype, requires_grad=True)  # not a multiple of four
    torch.manual_seed(5)
    y = sixteen_bit_dropout(x, p)
    share = float((y == 0).float().mean())
    assert share == pytest.approx(p, abs=0.003)
    assert y.dtype == dtype
    if p < 1:
        assert y.max().item() == pytest.approx(2 / (1 - p), rel=4e-3)
    rows = (y == 0).float().mean(dim=2)
    spread = (p * (1 - p) / 1009) ** 0.5  # of independent draws
    assert float(rows.std()) == pytest.approx(spread, rel=0.2, abs=1e-3)
    y.sum().backward()
    assert_close(x.grad, y.detach() / 2)
    torch.manual_seed(5)
    assert torch.equal(sixteen_bit_dropout(x, p), y)
    assert not torch.equal(sixteen_bit_dropout(x, p), y) or p == 1


def test_dropout_of_nothing_is_the_input():
    x = torch.randn(5, 7)
    assert torch.equal(sixteen_bit_dropout(x, 0.0), x)
    assert sixteen_bit_dropout(torch.ones(0, 3), 0.2).shape == (0, 3)


class Twice(nn.Dropout):
    def forward(self, x):
        return 2 * x


def test_only_plain_dropout_is_replaced():
    model = nn.Sequential(nn.Dropout(0.3), Twice(0.3), nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Dropout(0.7)))
    model[2].eval()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    model.again = model[0]
    draw_fewer_bits(model)
    assert [type(each) for each in (model[0], model[1], *model[2])] == [
        SixteenBitDropout, Twice, nn.Dropout, SixteenBitDropout,
    ]  # fmt: skip
    assert (model[0].p, model[2][1].p) == (0.3, 0.7)
    assert (model[0].training, model[2][1].training) == (True, False)
    x = torch.randn(11, 13)
    assert torch.equal(model[2][1](x), x)
    assert (model.again(x) == 0).float().mean() == pytest.approx(0.3, abs=0.1)
    assert seen == [1]
    assert copy.deepcopy(model).state_dict() == {}


def test_dropout_does_not_break_a_compiled_graph():
    torch.compiler.reset()
    module = SixteenBitDropout(0.3).train()
    y = torch.compile(module, fullgraph=True, backend="aot_eager")(torch.ones(31, 37))
    assert (y == 0).float().mean() == pytest.approx(0.3, abs=0.05)


def test_a_stock_model_keeps_its_names_and_answers():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=97, hidden_size=14, num_hidden_layers=2, num_attention_heads=2, intermediate_size=11,
        hidden_dropout_prob=0.5,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    names, tokens = list(model.state_dict()), torch.randint(97, (3, 11))
    before = model.eval()(tokens).logits
    choose_attention(model, torch.device("cpu"), "no")
    assert any(isinstance(module, SixteenBitDropout) for module in model.modules())
    assert list(model.state_dict()) == names
    assert torch.equal(model(tokens).logits, before)
    assert not torch.equal(model.train()(tokens).logits, before)
    on_cuda = BertForMaskedLM(config)
    choose_attention(on_cuda, torch.device("cuda"), "no")
    assert not any(isinstance(module, SixteenBitDropout) for module in on_cuda.modules())
