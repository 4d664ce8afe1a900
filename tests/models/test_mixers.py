"""Mixers in place of attention: equal to torch and stock modules, to themselves with a cache, and blind to padding."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close
from transformers import DynamicCache, Lfm2Config, StaticCache
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from decero.models import (
    DeceroDecoderConfig,
    DeceroDecoderForCausalLM,
    DeceroDecoderForMaskedLM,
    DeceroDecoderModel,
    DeceroEncoderConfig,
    DeceroEncoderForMaskedLM,
    DeceroEncoderModel,
)
from decero.models.compatibility import CACHE
from decero.models.mixers import GatedConvMixer, MinGRU, RecurrentMixer, text_mask
from decero.models.recurrent_state import StateLayer, hold_states, new_states

MIXERS = ["lstm", "gru", "rnn", "min_gru", "conv"]
TORCH = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
# Real tokens of each row: padded on the left, on the right, with a hole, and whole.
TEXT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


@pytest.fixture
def make_model(make_config, randomize):
    """Make a model with a mixer and large weights, in eval mode."""

    def make(model_class, mixer, **fields):
        size = {"hidden_size": 34, "position_embedding_type": "none", "mixer_type": mixer, "conv_kernel_size": 3}
        return randomize(model_class(make_config(model_class.config_class, **(size | fields)))).eval()

    return make


@pytest.fixture
def ids():
    return torch.randint(1, 37, TEXT.shape)


def copy_cell(source, target, reverse=False):
    """Copy the weights of one direction of a torch module into a module with one direction."""
    ending = "_l0_reverse" if reverse else "_l0"
    with torch.no_grad():
        for name, tensor in target.named_parameters():
            tensor.copy_(getattr(source, name.removesuffix("_l0") + ending))


# --- equal to independent implementations


@pytest.mark.parametrize("mixer", list(TORCH))
def test_two_directions_equal_torch_with_packed_sequences(make_config, mixer):
    theirs = TORCH[mixer](34, 17, batch_first=True, bidirectional=True)
    ours = RecurrentMixer(make_config(hidden_size=34, mixer_type=mixer, position_embedding_type="none"), 0)
    copy_cell(theirs, ours.forwards)
    copy_cell(theirs, ours.backwards, reverse=True)
    hidden, lengths = torch.randn(3, 7, 34), torch.tensor([7, 2, 5])
    packed = pack_padded_sequence(hidden, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True)
    text = torch.arange(7) < lengths[:, None]
    assert_close(ours(hidden, text)[0][text], expected[text])
    assert_close(ours(hidden)[0], theirs(hidden)[0])


@pytest.mark.parametrize("mixer", list(TORCH))
def test_one_direction_equals_torch(make_config, mixer):
    config = make_config(DeceroDecoderConfig, hidden_size=34, mixer_type=mixer, position_embedding_type="none")
    ours, theirs = RecurrentMixer(config, 0, is_causal=True), TORCH[mixer](34, 34, batch_first=True)
    copy_cell(theirs, ours.forwards)
    hidden = torch.randn(3, 7, 34)
    assert_close(ours(hidden)[0], theirs(hidden)[0])


@pytest.mark.parametrize("start", [None, 0.7])
def test_the_scan_of_a_min_gru_is_its_loop(start):
    cell, x = MinGRU(5, 3), 3 * torch.randn(2, 11, 5)
    h = torch.zeros(2, 3) if start is None else torch.full((2, 3), start)
    given, steps = None if start is None else h[None], []
    for t in range(11):  # section 3.1 as it is written, with the activation of appendix B
        gate, candidate = cell.gates(x[:, t]).chunk(2, dim=-1)
        z = gate.sigmoid()
        h = (1 - z) * h + z * torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
        steps.append(h)
    scanned, end = cell(x, given)
    assert_close(scanned, torch.stack(steps, dim=1))
    assert_close(end[0], h)
    assert_close(cell(x[:, -1:], torch.stack(steps, dim=1)[:, -2][None])[0][:, 0], h)  # one step of generation
    loops, scans = (torch.autograd.grad(e.square().sum(), cell.gates.weight)[0] for e in (torch.stack(steps), scanned))
    assert_close(scans, loops, atol=1e-4, rtol=1e-4)


def test_a_long_scan_neither_overflows_nor_drifts():
    cell, x = MinGRU(5, 3), 5 * torch.randn(1, 2048, 5)
    x.requires_grad_()
    scanned = cell(x)[0]
    gate, candidate = cell.gates(x.double().float()).double().chunk(2, dim=-1)
    h, z = torch.zeros(1, 3, dtype=torch.double), gate.sigmoid()
    new = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
    for t in range(2048):
        h = (1 - z[:, t]) * h + z[:, t] * new[:, t]
    assert_close(scanned[:, -1].double(), h, atol=1e-3, rtol=1e-3)
    assert torch.autograd.grad(scanned.sum(), x)[0].isfinite().all()


def test_the_causal_convolution_is_that_of_stock_lfm2(make_config, randomize):
    fields = {"hidden_size": 34, "mixer_type": "conv", "position_embedding_type": "none", "conv_kernel_size": 4}
    fields["attention_bias"] = False  # with biases, padding reaches text in the stock class
    ours = randomize(GatedConvMixer(make_config(DeceroDecoderConfig, **fields), 0, is_causal=True))
    stock = Lfm2Config(hidden_size=34, conv_L_cache=4, conv_bias=False, num_hidden_layers=1, layer_types=["conv"])
    theirs = Lfm2ShortConv(stock, 0)
    theirs.load_state_dict(ours.state_dict())
    hidden = torch.randn(2, 7, 34)
    assert_close(ours(hidden)[0], theirs(hidden))
    text = torch.arange(7) >= torch.tensor([[0], [3]])
    assert_close(ours(hidden, text)[0][text], theirs(hidden, attention_mask=text.long())[text])


@pytest.mark.parametrize(("causal", "seen"), [(True, [2, 3, 4]), (False, [3, 4, 5])])
def test_a_filter_sees_before_or_both_sides(make_config, causal, seen):
    fields = {"hidden_size": 34, "mixer_type": "conv", "position_embedding_type": "none", "conv_kernel_size": 3}
    mixer, hidden = GatedConvMixer(make_config(**fields), 0, causal), torch.randn(1, 7, 34, requires_grad=True)
    reach = torch.autograd.grad(mixer(hidden)[0][0, 4].sum(), hidden)[0][0].abs().sum(-1)
    assert reach.nonzero().flatten().tolist() == seen


# --- padding, cache, generation


@pytest.mark.parametrize("model_class", [DeceroEncoderModel, DeceroDecoderModel])
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_row_is_read_as_if_it_were_alone(make_model, ids, mixer, model_class):
    model = make_model(model_class, mixer)
    together = model(ids, attention_mask=TEXT).last_hidden_state
    for row, text, hidden in zip(ids, TEXT.bool(), together, strict=True):
        assert_close(hidden[text], model(row[None, text]).last_hidden_state[0], atol=1e-5, rtol=1e-5)
    changed = ids.clone()
    changed[3, 3] += 1  # a decoder reads to the left only, an encoder reads both sides
    moved = (model(changed).last_hidden_state - model(ids).last_hidden_state)[3].abs().amax(-1) > 1e-4
    assert moved.tolist() == [model_class is DeceroEncoderModel] * 3 + [True] * 4 or mixer == "conv"
    assert moved[2] == (model_class is DeceroEncoderModel)


@pytest.mark.parametrize("mixer", MIXERS)
def test_states_give_the_logits_of_one_pass(make_model, ids, mixer):
    model, cache, parts = make_model(DeceroDecoderForCausalLM, mixer), None, []
    whole = model(ids, attention_mask=TEXT).logits
    for start, end in ((0, 2), (2, 5), (5, 6), (6, 7)):
        out = model(ids[:, start:end], attention_mask=TEXT[:, :end], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        assert cache.get_seq_length() == end
        parts.append(out.logits)
    text = TEXT.bool()
    assert_close(torch.cat(parts, dim=1)[text], whole[text], atol=1e-5, rtol=1e-5)
    cache.reset()
    assert_close(model(ids[3:], past_key_values=cache, use_cache=True).logits, whole[3:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mixer", MIXERS)
def test_beams_and_samples_are_the_same_with_states(make_model, ids, mixer):
    model = make_model(DeceroDecoderForCausalLM, mixer)
    left = {"input_ids": ids[[0, 3]], "attention_mask": TEXT[[0, 3]]}
    for form in ({"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_k": 0}):
        written = []
        for use_cache in (True, False):
            torch.manual_seed(5)
            written.append(model.generate(**left, max_new_tokens=6, use_cache=use_cache, pad_token_id=0, **form))
        assert torch.equal(*written)
    alone = model.generate(ids[:1, 3:], max_new_tokens=5, pad_token_id=0, num_beams=3)
    assert torch.equal(model.generate(**left, max_new_tokens=5, pad_token_id=0, num_beams=3)[0, 3:], alone[0])


# --- training


@pytest.mark.parametrize("mixer", MIXERS)
def test_recomputed_layers_have_the_same_gradients(make_model, ids, gradients, mixer):
    found = []
    for recomputed in (False, True):
        model = make_model(DeceroDecoderForCausalLM, mixer).train()
        if recomputed:
            model.gradient_checkpointing_enable()
        model(ids, attention_mask=TEXT, labels=ids).loss.backward()
        found.append(gradients(model))
    assert_close(*found)


@pytest.mark.parametrize("mixer", MIXERS)
def test_16_bits_move_the_loss_little(make_model, ids, mixer):
    model = make_model(DeceroEncoderForMaskedLM, mixer)
    loss = model(ids, attention_mask=TEXT, labels=ids).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.train()(ids, attention_mask=TEXT, labels=ids).loss
    rounded.backward()
    assert abs(rounded.item() / loss.item() - 1) < 0.05
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_selected_positions_have_the_values_of_all(make_model, ids):
    for mixer in MIXERS:
        model, selected = make_model(DeceroEncoderModel, mixer), torch.tensor([[4, 6], [0, 3], [1, 5], [2, 2]])
        some = model(ids, attention_mask=TEXT, selected_positions=selected).last_hidden_state
        every = model(ids, attention_mask=TEXT).last_hidden_state
        assert_close(some, every.gather(1, selected[:, :, None].expand(-1, -1, 34)))


def test_an_lstm_starts_with_open_forget_gates(make_config):
    fields = {"hidden_size": 34, "position_embedding_type": "none"}
    lstm = DeceroDecoderModel(make_config(DeceroDecoderConfig, mixer_type="lstm", **fields)).layers[0].lstm.forwards
    assert lstm.bias_ih_l0.view(4, 34)[1].eq(1).all()
    assert lstm.bias_ih_l0.sum() == 34
    assert lstm.bias_hh_l0.eq(0).all()
    assert 0.9 * 34**-0.5 < lstm.weight_hh_l0.abs().max() <= 34**-0.5
    conv = DeceroDecoderModel(make_config(DeceroDecoderConfig, mixer_type="conv", **fields)).layers[0].conv.conv
    assert conv.weight.std().item() == pytest.approx(1 / 3, rel=0.2)  # nine weights


# --- refused


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (
            DeceroDecoderConfig,
            {"position_embedding_type": "rotary"},
            "no scores for rotary positions; set",
        ),
        (DeceroDecoderConfig, {"sliding_window": 3}, "layer_types has sliding_attention, but mixer_type is lstm"),
        (DeceroEncoderConfig, {"hidden_size": 33}, "hidden_size 33 must be even"),
        (DeceroEncoderConfig, {"mixer_type": "conv", "conv_kernel_size": 4}, "conv_kernel_size 4 must be odd"),
        (DeceroDecoderConfig, {"mixer_type": "conv", "conv_kernel_size": 0}, "conv_kernel_size 0 must be at least 1"),
        (DeceroDecoderConfig, {"mixer_type": "ltsm"}, "ltsm"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(make_config, config_class, fields, message):
    sizes = {"hidden_size": 34, "position_embedding_type": "none", "mixer_type": "lstm"}
    with pytest.raises(Exception, match=message):
        make_config(config_class, **(sizes | fields))


def test_what_needs_attention_is_refused_in_one_line(make_model, ids):
    decoder, encoder = make_model(DeceroDecoderForCausalLM, "gru"), make_model(DeceroEncoderModel, "conv")
    for model in (decoder, encoder):
        with pytest.raises(ValueError, match="has no attention to show: output_attentions needs attention"):
            model(ids, output_attentions=True)
        with pytest.raises(ValueError, match="mask of padding"):
            model(ids, attention_mask=torch.ones(4, 1, 7, 7).bool())
    with pytest.raises(ValueError, match="mask of padding"):
        DeceroDecoderForMaskedLM(decoder.config)(ids)
    with pytest.raises(ValueError, match="pad, do not pack"):
        decoder(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))
    with pytest.raises(ValueError, match="set cache_implementation to dynamic"):
        decoder.generate(ids, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ValueError, match="not supported with stateful models"):
        decoder.generate(ids[:1], assistant_model=make_model(DeceroDecoderForCausalLM, "gru"), max_new_tokens=2)


def test_a_cache_of_keys_and_values_is_not_taken_for_states(make_config):
    cache = DynamicCache()
    assert [type(layer) for layer in hold_states(cache, 2).layers] == [StateLayer] * 2
    keys = torch.zeros(1, 1, 3, 5)
    full = DynamicCache()
    full.update(keys, keys, 0)
    with pytest.raises(ValueError, match="holds keys and values of attention"):
        hold_states(full, 2)
    with pytest.raises(ValueError, match="no static cache"):
        hold_states(StaticCache(config=make_config(DeceroDecoderConfig), max_cache_len=5), 2)
    states = new_states(2)
    states.update(keys, keys, 0, 3)
    with pytest.raises(ValueError, match="cannot take back tokens"):
        states.crop(-1)


def test_all_text_needs_no_mask():
    hidden = torch.zeros(2, 3, 5)
    assert text_mask(None, None, hidden) is None
    assert text_mask(torch.ones(2, 7), None, hidden) is None
    padded = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert text_mask(padded, None, hidden) is None  # the padding is in the past
    assert text_mask(padded.flip(1), None, hidden).tolist() == [[True, True, False], [True, True, True]]
    assert CACHE in ("cache", "past_key_values")
