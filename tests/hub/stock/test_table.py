"""Reading the lines of a table in both directions, and the errors."""

import pytest
import torch

from decero.errors import UserError
from decero.hub.stock import from_stock, to_stock
from decero.hub.table import Family, Head

FAMILY = Family(
    name="gpt2",
    ours="DeceroDecoder",
    fields="",
    fixed={},
    tensors="""
        embed_tokens            wte
        layers.{i}.{q,k,v}      h.{i}.qkv       transposed
        layers.{i}.up           h.{i}.fc
        layers.{i}.up           h.{i}.fc_gated
        layers.{i}.gate         h.{i}.gate
    """,
    heads={"Model": Head("GPT2Model"), "ForCausalLM": Head("GPT2LMHeadModel", "base.", "head.bias logits_bias row")},
)


def numbers(*shape):
    return torch.randn(*shape)


def test_names_layers_leaves_slices_and_forms_in_both_directions():
    ours = {
        "model.embed_tokens.weight": numbers(5, 3),
        "head.bias": numbers(5),
        **{f"model.layers.{i}.{name}.weight": numbers(2, 3) for i in (0, 11) for name in "qkv"},
        **{f"model.layers.{i}.{name}.bias": numbers(2) for i in (0, 11) for name in "qkv"},
    }
    stock = {
        "base.wte.weight": ours["model.embed_tokens.weight"],
        "logits_bias": ours["head.bias"][None],
        **{
            f"base.h.{i}.qkv.{leaf}": torch.cat([ours[f"model.layers.{i}.{name}.{leaf}"] for name in "qkv"]).T
            for i in (0, 11)
            for leaf in ("weight",)
        },
        **{f"base.h.{i}.qkv.bias": torch.cat([ours[f"model.layers.{i}.{n}.bias"] for n in "qkv"]) for i in (0, 11)},
    }
    for source, target, to_stock_names in ((ours, stock, True), (stock, ours, False)):
        out = FAMILY.translate(source, target, "ForCausalLM", to_stock=to_stock_names)
        assert out.keys() == target.keys()
        assert all(torch.equal(out[name], target[name]) for name in out)


@pytest.mark.parametrize("gated", [False, True])
def test_a_line_for_other_models_of_the_family_is_skipped(gated):
    ours = {"layers.0.up.weight": numbers(2, 3)} | ({"layers.0.gate.weight": numbers(2, 3)} if gated else {})
    stock = {"h.0.fc_gated.weight": numbers(2, 3), "h.0.gate.weight": numbers(2, 3)}
    stock = stock if gated else {"h.0.fc.weight": numbers(2, 3)}
    out = FAMILY.translate(ours, stock, "Model", to_stock=True)
    assert out.keys() == stock.keys()
    assert FAMILY.translate(out, ours, "Model", to_stock=False).keys() == ours.keys()


@pytest.mark.parametrize(
    ("source", "wanted", "said"),
    [
        (
            {"wte.weight": (5, 3), "wpe.weight": (2, 3)},
            {"embed_tokens.weight": (5, 3)},
            "wpe.weight has no counterpart in decero",
        ),
        ({"wte.weight": (5, 3)}, {"embed_tokens.weight": (5, 3), "norm.weight": (3,)}, "norm.weight is missing"),
        ({"wte.weight": (5, 3)}, {"embed_tokens.weight": (5, 7)}, r"embed_tokens.weight has shape \[5, 3\] instead of"),
        (
            {"h.0.fc.weight": (2, 3), "h.0.fc_gated.weight": (2, 3)},
            {"layers.0.up.weight": (2, 3)},
            "layers.0.up.weight has two values; one is that of h.0.fc_gated.weight",
        ),
    ],
)
def test_tensors_extra_missing_or_misshapen_are_named(source, wanted, said):
    source, wanted = ({name: numbers(*shape) for name, shape in tensors.items()} for tensors in (source, wanted))
    with pytest.raises(UserError, match=f"tensor {said}"):
        FAMILY.translate(source, wanted, "Model", to_stock=False)


def test_one_name_is_enough_for_tensors_that_share_memory():
    shared = numbers(5, 3)
    stock = {"wte.weight": shared, "decoder.wte.weight": shared}  # no line has the second name
    ours = {"embed_tokens.weight": numbers(5, 3)}
    ours["decoder.embed_tokens.weight"] = ours["embed_tokens.weight"]
    assert FAMILY.translate(stock, ours, "Model", to_stock=False).keys() == {"embed_tokens.weight"}
    stock["decoder.wte.weight"] = shared.clone()
    with pytest.raises(UserError, match=r"decoder\.wte\.weight has no counterpart in decero"):
        FAMILY.translate(stock, ours, "Model", to_stock=False)


def test_two_values_for_one_shared_tensor_are_refused():
    ours = {"embed_tokens.weight": numbers(5, 3), "layers.0.up.weight": numbers(5, 3)}
    stock = {"wte.weight": numbers(5, 3)}
    stock["h.0.fc.weight"] = stock["wte.weight"]
    with pytest.raises(UserError, match=r"tensors h\.0\.fc\.weight, wte\.weight are shared in the target model"):
        FAMILY.translate(ours, stock, "Model", to_stock=True)


def test_position_tables_that_are_not_sinusoids_are_refused(find_case):
    stock = find_case("marian", "ForConditionalGeneration").stock()
    with torch.no_grad():
        stock.model.decoder.embed_positions.weight[3, 5] += 0.01
    with pytest.raises(UserError, match=r"decoder\.embed_positions\.weight differs from the formula of marian"):
        from_stock(stock)


def test_an_untied_head_of_ours_is_untied_in_bert_too(find_case, batch):
    case = find_case("bert", "ForMaskedLM")
    config = case.family.our_config(case.config(tie_word_embeddings=False), case.head)
    torch.manual_seed(1)
    ours = case.family.our_class(case.head)(config).eval()
    stock = to_stock(ours, "bert").eval()
    inputs, _ = batch(case)
    assert not torch.equal(stock.get_output_embeddings().weight, stock.get_input_embeddings().weight)
    torch.testing.assert_close(ours(**inputs).logits, stock(**inputs).logits, atol=3e-5, rtol=0)
