"""A recording is the model's own attention, or one line that says why not."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tokenizers.processors import ByteLevel, TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BigBirdConfig,
    BigBirdForMaskedLM,
    FNetConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
)

from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.execution.transformers_internals import attention_of
from decero.explain import record as module
from decero.explain.record import record
from decero.models import (
    DeceroEncoderConfig,
    DeceroEncoderDecoderConfig,
    DeceroEncoderDecoderForSequenceClassification,
    DeceroEncoderModel,
)

TEXT = "the market rose fell sharply on monday"
FIELDS = {"self": "encoder_attentions", "causal": "decoder_attentions", "cross": "cross_attentions"}
SHAPES = {
    "bert": {"self": (2, 3)}, "mpnet": {"self": (2, 3)}, "albert": {"self": (2, 3)}, "decero_encoder": {"self": (2, 3)},
    "llama": {"causal": (2, 4)}, "gpt2": {"causal": (2, 3)}, "gemma2": {"causal": (2, 4)},
    "decero_decoder": {"causal": (2, 4)},
    "t5": {"self": (3, 5), "causal": (2, 5), "cross": (2, 5)},
    "bart": {"self": (2, 3), "causal": (2, 3), "cross": (2, 3)},
    "decero_encoder_decoder": {"self": (2, 3), "causal": (3, 3), "cross": (3, 3)},
}  # fmt: skip


def own_attentions(model, recording):
    """What transformers gives for output_attentions under eager."""
    two = "cross" in recording.attentions
    inputs = {}
    for kind, attention in recording.attentions.items():
        name = "decoder_input_ids" if two and kind == "causal" else "input_ids"
        inputs[name] = torch.tensor([[piece.id for piece in attention.keys]])
    before = attention_of(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    model.set_attn_implementation(before)
    return {kind: getattr(outputs, FIELDS[kind] if two else "attentions") for kind in recording.attentions}, outputs


@pytest.mark.parametrize("family", SHAPES)
def test_a_recording_is_the_models_own_attention(family, tiny, sentinel_tokenizer):
    model = tiny(family)
    recording = record(model, sentinel_tokenizer, TEXT)
    own, outputs = own_attentions(model, recording)
    found = {kind: (each.num_layers, each.num_heads) for kind, each in recording.attentions.items()}
    assert found == SHAPES[family]
    for kind, attention in recording.attentions.items():
        assert sorted(attention.weights) == list(range(attention.num_layers))
        for layer, weights in attention.weights.items():
            assert weights.shape == (attention.num_heads, len(attention.queries), len(attention.keys))
            assert_allclose(weights.sum(-1), 1, atol=1e-5)
            assert_allclose(weights, own[kind][layer][0].numpy(), atol=1e-6)
    assert_allclose(recording.logits, outputs.logits[0].numpy(), atol=2e-5)


def test_all_of_a_model_is_put_back_also_after_an_error(tiny, sentinel_tokenizer, monkeypatch):
    model = tiny("t5").train().bfloat16()
    before, kernel = {name: each.clone() for name, each in model.state_dict().items()}, attention_of(model)

    def check():
        assert attention_of(model) == attention_of(model.decoder) == kernel
        assert all(each.training for each in model.modules())
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
        ids = torch.tensor([[5, 6, 7]])
        eager = deepcopy(model)
        eager.set_attn_implementation("eager")
        outputs = eager(input_ids=ids, decoder_input_ids=ids, output_attentions=True)
        assert (len(outputs.encoder_attentions), len(outputs.cross_attentions)) == (3, 2)
        for name, each in model.state_dict().items():
            assert each.dtype == torch.bfloat16
            assert torch.equal(each, before[name])

    options = {"values": True, "hidden": True, "target": "the market fell"}
    recording = record(model, sentinel_tokenizer, TEXT, **options)
    assert any("bfloat16" in note for note in recording.notes)
    check()
    monkeypatch.setattr(module, "proven", lambda *_: 1 / 0)
    with pytest.raises(UserError, match="division by zero"):
        record(model, sentinel_tokenizer, TEXT, **options)
    check()


def test_a_model_that_changes_itself_is_put_back_too(sentinel_tokenizer):
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 8}
    model = BigBirdForMaskedLM(BigBirdConfig(vocab_size=113, block_size=16, **sizes))
    sparse = model.bert.encoder.layer[0].attention.self
    first, second = (record(model, sentinel_tokenizer, TEXT).attentions["self"].weights[0] for _ in range(2))
    assert_allclose(first, second, atol=0)
    assert model.bert.encoder.layer[0].attention.self is sparse
    assert model.bert.attention_type == model.bert.encoder.attention_type == "block_sparse"


def test_a_model_that_changes_when_recorded_is_refused(tiny, tokenizer, monkeypatch):
    moves = iter((0, 0, 1e-3))
    monkeypatch.setattr(module, "answer_of", lambda outputs: outputs.logits + next(moves))
    with pytest.raises(UserError, match="this bert model computes something else while it is recorded: logits move by"):
        record(tiny("bert"), tokenizer, TEXT)


@pytest.mark.parametrize(
    "config",
    [
        FNetConfig(vocab_size=113, hidden_size=32, num_hidden_layers=1, intermediate_size=8),
        MambaConfig(vocab_size=113, hidden_size=8, num_hidden_layers=1),
    ],
)
def test_a_model_without_attention_is_refused(config, tokenizer):
    with pytest.raises(UserError, match=f"this {config.model_type} model shows no attention") as error:
        record(AutoModel.from_config(config), tokenizer, TEXT)
    assert "\n" not in str(error.value)


def test_bad_input_gets_one_line(tiny, tokenizer, sentinel_tokenizer):
    def refused(line, model, *args, **options):
        with pytest.raises(UserError, match=line) as error:
            record(model, *args, **options)
        assert "\n" not in str(error.value)

    bert = tiny("bert", max_position_embeddings=11)
    refused(r"the text has \d+ tokens, but the model reads 11; shorten it", bert, tokenizer, TEXT * 3)
    refused("no layer 2: the model has 2, counted from 0 to 1", bert, tokenizer, TEXT, layers=[0, 2])
    refused("BertForMaskedLM has no decoder beside an encoder: give no target", bert, tokenizer, TEXT, target="el")
    short = tiny("bart", max_position_embeddings=7)
    refused("the target has .* tokens, but the model reads 7", short, sentinel_tokenizer, "the", target=TEXT * 2)
    bare = deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = TemplateProcessing("$A", "$A $B", [])
    refused("the text is empty", tiny("llama"), bare, "")


def test_a_row_that_sums_to_less_than_one_is_refused(tiny, tokenizer, monkeypatch):
    capture = module.capture

    def scaled(factor):
        def changed(*args, **options):
            weights, calls, outputs = capture(*args, **options)
            return {kind: {i: w * factor for i, w in each.items()} for kind, each in weights.items()}, calls, outputs

        return changed

    for factor, line in (
        (0.5, "shows a part of its attention only: rows sum to 0.5"),
        (2, "no attention: they sum to 2"),
    ):
        monkeypatch.setattr(module, "capture", scaled(factor))
        with pytest.raises(UserError, match=line):
            record(tiny("bert"), tokenizer, TEXT)


def test_a_planted_head_is_bright_at_the_previous_token(sentinel_tokenizer):
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 31}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=113, **sizes, bos_token_id=2, eos_token_id=1)).eval()
    for each in (model.transformer.wte, model.transformer.h[0].attn.c_attn):
        each.weight.data.zero_()
    model.transformer.wpe.weight.data.copy_(torch.eye(31, 64))
    planted = model.transformer.h[0].attn.c_attn.weight.data  # (D, 3 D): q, k, v; head 0 first
    for i in range(1, 31):
        planted[i, i - 1] = 3  # the query of position i asks for i - 1
    planted[range(31), range(64, 64 + 31)] = 3  # the key of position i is i
    weights = record(model, sentinel_tokenizer, TEXT).attentions["causal"].weights[0]
    length = weights.shape[-1]
    assert length > 20
    assert weights[0].argmax(-1).tolist() == [0, *range(length - 1)]
    assert weights[0][range(1, length), range(length - 1)].min() > 0.9
    assert_allclose(weights[1], np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None], atol=1e-6)


def test_only_the_chosen_layers_are_kept(tiny, tokenizer):
    every = record(tiny("bert"), tokenizer, TEXT)
    one = record(tiny("bert"), tokenizer, TEXT, layers=[1])
    assert list(one.attentions["self"].weights) == [1]
    assert one.attentions["self"].num_layers == 2
    assert_allclose(one.attentions["self"].weights[1], every.attentions["self"].weights[1], atol=0)


def test_a_window_is_in_the_weights_and_in_the_notes(tiny, sentinel_tokenizer):
    recording = record(tiny("gemma2"), sentinel_tokenizer, TEXT)
    local, whole = recording.attentions["causal"].weights[0], recording.attentions["causal"].weights[1]
    far = np.tril(np.ones(local.shape[1:]), -5).astype(bool)
    assert far.any()
    assert local[:, far].max() == 0 < whole[:, far].min()
    assert "Layer 0 sees a window of 5 tokens only." in recording.notes


def test_a_window_in_both_directions_counts_both_sides(sentinel_tokenizer):
    sizes = {"vocab_size": 113, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = DeceroEncoderModel(DeceroEncoderConfig(**sizes, intermediate_size=31, sliding_window=2))
    recording = record(model, sentinel_tokenizer, TEXT)
    assert "Every layer sees a window of 5 tokens only." in recording.notes
    assert (recording.attentions["self"].weights[0][0] > 0).sum(-1).max() == 5


def test_hidden_states_of_a_classifier_are_those_of_each_stack(sentinel_tokenizer):
    sizes = {"vocab_size": 113, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = DeceroEncoderDecoderConfig(**sizes, intermediate_size=31, num_labels=3)
    model = DeceroEncoderDecoderForSequenceClassification(config).eval()
    recording = record(model, sentinel_tokenizer, TEXT, hidden=True)
    ids = torch.tensor([[piece.id for piece in recording.attentions["cross"].keys]])
    with torch.no_grad():
        memory = model.get_encoder()(ids).last_hidden_state[0]
        normed = model.get_encoder().norm(torch.tensor(recording.hidden["encoder"].states[-1]))
    assert set(recording.hidden) == {"encoder", "decoder"}
    assert_allclose(normed, memory, atol=1e-5)


def test_pieces_are_what_a_reader_sees(tiny, texts):
    options = {"vocab_size": 290, "model_max_length": 64, "show_progress": False}
    byte_level = train_tokenizer(texts, algorithm="byte_level_bpe", **options)
    text = "el año 🙂 <mask> rose"
    pieces = record(tiny("bert", vocab_size=291), byte_level, text).attentions["self"].queries
    assert [(p.text, p.start, p.special) for p in (pieces[0], pieces[-1])] == [
        ("<s>", None, True),
        ("</s>", None, True),
    ]
    assert all(piece.text == (text[piece.start : piece.end] or " ") for piece in pieces[1:-1])
    shown = [piece.text for piece in pieces]
    assert (shown.count("ñ"), shown.count("🙂"), shown.count("<mask>")) == (2, 4, 1)
    wide = deepcopy(byte_level)  # its offsets hold the space before a word, as those of Llama do
    wide.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)
    pieces = record(tiny("bert", vocab_size=291), wide, "el a").attentions["self"].queries
    assert wide("el a", return_offsets_mapping=True)["offset_mapping"][-1] == (2, 4)
    assert [(piece.text, piece.start) for piece in pieces] == [("e", 0), ("l", 1), ("a", 3)]
    two = record(tiny("bert", vocab_size=291), byte_level, "rose", text_b="fell").attentions["self"].queries
    assert {p.segment: "".join(q.text for q in two if q.segment == p.segment and not q.special) for p in two} == {
        0: "rose", 1: "fell"
    }  # fmt: skip


def test_a_slow_tokenizer_says_how_pieces_are_found(tiny, tokenizer, monkeypatch):
    model = tiny("bert")
    fast = record(model, tokenizer, TEXT)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    slow = record(model, tokenizer, TEXT)
    assert any("no positions of characters" in note for note in slow.notes)
    assert slow.attentions["self"].keys == fast.attentions["self"].keys


def test_a_target_is_shifted_behind_the_start_token(tiny, sentinel_tokenizer):
    recording = record(tiny("t5"), sentinel_tokenizer, TEXT, target="the banks rose")
    causal = recording.attentions["causal"]
    assert causal.queries[0].special
    assert causal.queries[0].id == 0
    assert "".join(p.text for p in causal.queries[1:]).replace(" ", "") == "thebanksrose"
    assert recording.attentions["cross"].queries == causal.queries
    assert recording.logits.shape[0] == len(causal.queries)
    written = record(tiny("t5"), sentinel_tokenizer, TEXT)
    assert any("wrote the target" in note for note in written.notes)
    assert written.target is not None


def test_a_head_that_writes_nothing_reads_the_text_twice(tiny, sentinel_tokenizer):
    model = AutoModelForSequenceClassification.from_config(tiny("bart", eos_token_id=1, bos_token_id=0).config).eval()
    recording = record(model, sentinel_tokenizer, TEXT)
    assert any("the decoder reads the same text" in note for note in recording.notes)
    ids = torch.tensor([[piece.id for piece in recording.attentions["self"].keys]])
    assert_allclose(recording.logits, model(input_ids=ids).logits.detach().numpy(), atol=1e-6)  # it shifts by itself


def test_the_residual_stream_is_what_layers_read_and_write(tiny, sentinel_tokenizer):
    for family, normed in (("bert", True), ("llama", False), ("albert", True), ("decero_decoder", False)):
        model = tiny(family)
        recording = record(model, sentinel_tokenizer, TEXT, hidden=True)
        (stack,) = recording.hidden.values()
        ids = torch.tensor([[piece.id for piece in stack.pieces]])
        own = [each[0].detach().numpy() for each in model(input_ids=ids, output_hidden_states=True).hidden_states]
        assert len(stack.states) == len(own) == 3
        for mine, theirs in zip(stack.states[:-1], own[:-1], strict=True):
            assert_allclose(mine, theirs, atol=1e-5)
        assert stack.final_normed == normed == np.allclose(stack.states[-1], own[-1], atol=1e-5)
    both = record(tiny("t5"), sentinel_tokenizer, TEXT, hidden=True).hidden
    assert {name: len(each.states) for name, each in both.items()} == {"encoder": 4, "decoder": 3}


def test_value_norms_are_those_of_the_summands_of_a_head(tiny, sentinel_tokenizer):
    for family in ("bert", "llama", "gpt2", "bart", "decero_encoder_decoder"):
        recording = record(tiny(family), sentinel_tokenizer, TEXT, values=True)
        for attention in recording.attentions.values():
            assert sorted(attention.value_norms) == sorted(attention.weights), (family, recording.notes)
    sizes = {"hidden_size": 33, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 7}
    model = BertModel(BertConfig(vocab_size=113, **sizes))
    model.encoder.layer[0].attention.output.dense.bias.data.normal_()
    recording = record(model, sentinel_tokenizer, TEXT, values=True, hidden=True)
    layer = model.encoder.layer[0].attention
    hidden = torch.tensor(recording.hidden["encoder"].states[0])
    v_HMK = layer.self.value(hidden).unflatten(-1, (3, 11)).transpose(0, 1)
    w_HKD = layer.output.dense.weight.T.unflatten(0, (3, 11))
    weights_HLM = torch.tensor(recording.attentions["self"].weights[0])
    summands = weights_HLM[..., None] * (v_HMK @ w_HKD)[:, None]
    assert_allclose(recording.attentions["self"].value_norms[0], summands.norm(dim=-1).detach().numpy(), atol=1e-6)
    hides = record(tiny("mpnet"), sentinel_tokenizer, TEXT, values=True)
    assert hides.attentions["self"].value_norms == {}
    assert "No value norms of self attention: this family does not show its values." in hides.notes
