"""Scaled rotary positions: equal to stock Llama and ModernBERT, within and beyond the trained length."""

import pytest
import torch
import transformers as hf
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from decero.config.sections import ModelSection
from decero.data.packing import Packed
from decero.errors import UserError
from decero.execution.build import config_of
from decero.execution.packed_forward import prove
from decero.execution.positions import positions_of
from decero.hub.stock import from_stock, to_stock
from decero.models import DeceroDecoderConfig

TRAINED = 17
SCALED = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 5, "beta_fast": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 11, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}  # fmt: skip
SHAPE = {
    "vocab_size": 37, "hidden_size": 42, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41,
    "max_position_embeddings": TRAINED,
}  # fmt: skip


@pytest.fixture
def llama(randomize):
    def build(rope):
        rope = {**rope, "rope_theta": 500.0}
        config = hf.LlamaConfig(**SHAPE, head_dim=10, num_key_value_heads=1, rope_parameters=rope, pad_token_id=0)
        return randomize(hf.LlamaForCausalLM(config)).eval()

    return build


@pytest.mark.parametrize("kind", SCALED)
def test_scores_and_gradients_are_those_of_stock_llama(kind, llama):
    stock = llama(SCALED[kind])
    ours, plain = from_stock(stock), from_stock(llama({"rope_type": "default"}))
    for length in (7, TRAINED, 3 * TRAINED + 2):
        ids, moved = torch.randint(1, 37, (3, length)), kind != "dynamic" or length > TRAINED
        theirs, mine = stock(ids).logits, ours(ids).logits
        assert_close(mine, theirs, atol=3e-5, rtol=0)
        assert ((plain(ids).logits - mine).abs().max() > 1e-3) == moved
        (theirs * torch.linspace(-1, 1, 37)).sum().backward()
        (mine * torch.linspace(-1, 1, 37)).sum().backward()
        wanted, got = stock.model.embed_tokens.weight.grad, ours.model.embed_tokens.weight.grad
        assert_close(got / wanted.abs().max(), wanted / wanted.abs().max(), atol=3e-5, rtol=0)


@pytest.mark.parametrize("kind", ["dynamic", "yarn"])
def test_texts_written_past_the_trained_length_are_the_same(kind, llama):
    stock = llama(SCALED[kind])
    ours, ids = from_stock(stock), torch.randint(1, 37, (2, TRAINED - 4))
    wanted = {"max_new_tokens": 13, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(ours.generate(ids, **wanted), stock.generate(ids, **wanted))


@pytest.mark.parametrize("kind", SCALED)
def test_stock_models_keep_their_scaling_in_and_out(kind, llama, tmp_path):
    stock = llama(SCALED[kind])
    ours = from_stock(stock)
    assert ours.config.rope_parameters == SCALED[kind]
    assert to_stock(ours, "llama").config.rope_parameters == stock.config.rope_parameters
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.rope_parameters == SCALED[kind]
    assert again.config.rope_theta == 500.0
    assert positions_of(again) == (3 * TRAINED if kind == "dynamic" else TRAINED)


@pytest.mark.parametrize("local", [None, 50.0], ids=["one base", "two bases"])
def test_a_modern_bert_scales_the_layers_that_see_all(local, randomize):
    full = {**SCALED["linear"], "rope_theta": 700.0}
    window = full if local is None else {"rope_type": "default", "rope_theta": local}
    config = hf.ModernBertConfig(
        **SHAPE, local_attention=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        rope_parameters={"full_attention": full, "sliding_attention": window},
    )  # fmt: skip
    stock = randomize(hf.ModernBertModel(config)).eval()
    ours, ids = from_stock(stock), torch.randint(3, 37, (2, 29))
    assert (ours.config.rope_theta, ours.config.local_rope_theta) == (700.0, local)
    assert_close(ours(ids).last_hidden_state, stock(ids).last_hidden_state, atol=3e-5, rtol=0)
    assert to_stock(ours, "modernbert").config.rope_parameters == stock.config.rope_parameters


def test_packed_texts_have_the_positions_of_texts_alone(llama):
    model = from_stock(llama(SCALED["yarn"]))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [2], [7]])).long()
    batch = {"input_ids": torch.randint(1, 37, (4, 9)) * mask, "attention_mask": mask}
    assert prove(model, batch, Packed(lambda rows: dict(batch), 16)([])) is None


def test_an_unscaled_model_has_one_place_for_its_base():
    config = DeceroDecoderConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 70})
    assert (config.rope_theta, config.rope_parameters) == (70, None)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ("{rope_type: yan, factor: 2}", "unknown rope_type yan; did you mean yarn?"),
        ("{rope_type: longrope, factor: 2}", "unknown rope_type longrope; it is one of linear, dynamic, yarn, llama3"),
        ("{factor: 2}", "rope_type default does not read factor; set it to linear or dynamic or yarn or llama3"),
        ("{rope_type: linear}", "rope_type linear needs factor; add it"),
        ("{rope_type: linear, factor: 0.5}", "factor is 0.5; give a number from 1"),
        ("{rope_type: linear, factor: x}", "factor is 'x'; give a number from 1"),
        ("{rope_type: linear, factor: 2, fctor: 3}", "does not read fctor; did you mean factor?"),
        ("{rope_type: yarn, factor: 2, beta_fast: 1, beta_slow: 3}", "beta_fast 1 must be larger than beta_slow 3"),
        ("{rope_type: yarn, factor: 2, beta_fast: 0}", "beta_fast is 0; give a number above 0"),
        ("{rope_type: yarn, factor: 2, truncate: 3}", "truncate is 3; give true or false"),
        ("{rope_type: linear, factor: 2, rope_theta: 5}", "rope_theta 500 and rope_parameters.rope_theta 5 differ"),
        ("{rope_type: linear, factor: 2}\nposition_embedding_type: none", "position_embedding_type is none; set it"),
        ("{rope_type: dynamic, factor: 2}\nhead_dim: 2", "rope_type dynamic needs a head_dim above 2, and it is 2"),
    ],
)
def test_a_bad_scaling_gets_one_line(rope, said, tmp_path):
    path = tmp_path / "preset.yaml"
    path.write_text(f"model_type: decero_decoder\nhidden_size: 40\nrope_theta: 500\nrope_parameters: {rope}\n")
    with pytest.raises(UserError) as refusal:
        config_of(ModelSection(config=str(path)))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_bad_scaling_of_a_checkpoint_is_noticed(llama, tmp_path):
    from_stock(llama({"rope_type": "default"})).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, rope_parameters={"rope_type": "linear", "factor": 2})
    assert model.config.rope_parameters["factor"] == 2
    with pytest.raises(ValueError, match="unknown rope_type liner"):
        AutoModelForCausalLM.from_pretrained(tmp_path, rope_parameters={"rope_type": "liner", "factor": 2})
