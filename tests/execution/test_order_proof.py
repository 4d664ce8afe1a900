"""Permutation language modelling in one pass: 10 of 10 dependencies, no leak, and equal to two streams by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch.testing import assert_close

import decero.models as ours
from decero.data.packing import Packed
from decero.data.permutation import add_queries, stack_ordered, two_streams
from decero.execution.objective import masked_lm, token_loss
from decero.execution.order_proof import prove_order
from decero.execution.packed_forward import ORDER, logits_of, prove

V = 37
S = {"vocab_size": V, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41}
STOCK = S | {
    "max_position_embeddings": 32, "pad_token_id": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0
}  # fmt: skip
WINDOW = {"sliding_window": 6, "layer_types": ["full_attention", "sliding_attention"]}


def encoder(**fields):
    return ours.DeceroEncoderForMaskedLM(ours.DeceroEncoderConfig(**S, pad_token_id=1, **fields))


def xlnet(**fields):
    return hf.XLNetLMHeadModel(hf.XLNetConfig(
        vocab_size=V, d_model=36, n_layer=2, n_head=3, d_inner=41, pad_token_id=1, dropout=0.0, **fields))  # fmt: skip


MODELS = {
    "ours, rotary": encoder,
    "ours, learned": lambda: encoder(position_embedding_type="learned", norm_placement="post", type_vocab_size=2),
    "ours, relative": lambda: encoder(position_embedding_type="relative"),
    "ours, windows": lambda: encoder(**WINDOW),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**STOCK)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**STOCK)),
    "electra": lambda: hf.ElectraForMaskedLM(hf.ElectraConfig(**STOCK, embedding_size=24)),
    "distilbert": lambda: hf.DistilBertForMaskedLM(hf.DistilBertConfig(
        vocab_size=V, dim=36, n_layers=2, n_heads=3, hidden_dim=41, max_position_embeddings=32, pad_token_id=1,
        dropout=0.0, attention_dropout=0.0)),
    "modernbert": lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(
        **S, max_position_embeddings=32, pad_token_id=1, local_attention=12, bos_token_id=0, eos_token_id=2,
        cls_token_id=0, sep_token_id=2)),
    "xlnet": xlnet,
}  # fmt: skip
REFUSED = {
    "mpnet": (lambda: hf.MPNetForMaskedLM(hf.MPNetConfig(**STOCK)), "does not take positions from position_ids"),
    "xlnet, causal": (lambda: xlnet(attn_type="uni"), "does not accept such rows"),
    "t5": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(
        vocab_size=V, d_model=36, d_kv=12, num_layers=1, num_heads=3, d_ff=41)), "does not accept such rows"),
    "xlm": (lambda: hf.XLMWithLMHeadModel(hf.XLMConfig(vocab_size=V, emb_dim=36, n_layers=2, n_heads=3)),
        "does not accept such rows"),
    "ours, no positions": (lambda: encoder(position_embedding_type="none"), "it has no positions"),
    "ours, narrow": (lambda: encoder(sliding_window=1), "does not see"),
}  # fmt: skip
TEXT, TARGETS = np.random.default_rng(5).integers(3, V, 11), np.array([7, 2, 9, 3, 5])


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def redraw(model):
    """Draw large weights, so that the residual stream hides no error."""
    generator = torch.Generator().manual_seed(11)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def rows():
    """Texts of several lengths and their targets."""
    draw = np.random.default_rng(8)
    pairs = [(draw.integers(3, V, n), draw.permutation(n)[: n // 3]) for n in (5, 11, 7, 4)]
    return [(TEXT, TARGETS), *pairs]


def batch_of(pairs):
    return stack_ordered([add_queries(ids, targets, query_id=2) for ids, targets in pairs], pad_id=1)


@pytest.mark.parametrize("name", MODELS)
def test_ten_dependencies_and_no_leak_by_gradient(name):
    """The prediction at each target has a gradient at exactly the tokens that it may use."""
    model = redraw(MODELS[name]())
    streams = name == "xlnet"
    batch = two_streams([(TEXT, TARGETS)], pad_id=1) if streams else batch_of([(TEXT, TARGETS)])
    embedded = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, inputs, out: embedded.append(out))
    logits_QV = logits_of(model, batch)[0]
    hook.remove()
    logits_QV = logits_QV if streams else logits_QV[len(TEXT) :]
    found = 0
    for place, logits_V in zip(np.sort(TARGETS), logits_QV, strict=True):
        (gradient,) = torch.autograd.grad(logits_V.square().sum(), embedded[0], retain_graph=True)
        gradient = gradient.squeeze(1 if streams else 0)[: len(TEXT)].abs().amax(dim=-1)
        rank = list(TARGETS).index(place)
        seen = [p for p in range(len(TEXT)) if p not in TARGETS[rank:]]
        assert (gradient > 0).nonzero().flatten().tolist() == seen
        found += rank
    assert found == 10
    assert prove_order(model) is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_breaks_the_order_is_refused(name):
    build, why = REFUSED[name]
    assert why in prove_order(redraw(build()))


def test_the_proof_notices_a_leak_and_a_missing_dependency(monkeypatch):
    model = redraw(encoder())
    from decero.execution import order_proof

    def changed(name, change):
        def batch(*given, **named):
            made = stack_ordered(*given, **named)
            return made | {name: change(made)}

        return batch

    for name, change, why in (
        ("horizons", lambda made: made["horizons"] + 1, "sees itself"),
        ("horizons", lambda made: made["horizons"].clamp(max=0), "does not see the targets"),
    ):
        monkeypatch.setattr(order_proof, "stack_ordered", changed(name, change))
        assert why in prove_order(model)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "xlnet"])
def test_packed_rows_have_the_padded_loss_and_gradients(name):
    model, pairs = redraw(MODELS[name]()), rows()
    padded = batch_of(pairs)
    packed = Packed(lambda rows: dict(padded), 24)([])
    assert len(packed["input_ids"]) < len(pairs)
    assert prove(model, padded, packed) is None
    found = []
    one_by_one = [batch_of([pair]) for pair in pairs]
    for batches in (one_by_one, [padded], [packed]):
        loss = sum(masked_lm(None).loss(model, batch) for batch in batches)
        found.append((loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad],
                                                 allow_unused=True)))  # fmt: skip
    for other in found[1:]:
        for expected, got in zip(found[0], other, strict=True):
            if expected is not None:
                assert_close(got, expected, atol=2e-4, rtol=1e-4)


def test_padding_is_hidden_from_xlnet():
    model = redraw(xlnet())
    batches = [two_streams([pair], pad_id=1) for pair in rows()]
    alone = sum(token_loss(model, batch) for batch in batches)
    assert_close(token_loss(model, two_streams(rows(), pad_id=1)), alone, atol=1e-4, rtol=1e-5)


# --- two streams by hand (Yang et al. 2019, section 2.3)


def two_stream_masks():
    """Who sees whom: content (length, length) and query (length, length), a query for each position."""
    rank = np.full(len(TEXT), -1)
    rank[TARGETS] = np.arange(len(TARGETS))
    later = torch.tensor((rank[None] >= rank[:, None]) & (rank[None] >= 0))
    content = ~later | torch.eye(len(TEXT), dtype=torch.bool)
    return content, ~later


def attend(q, k, v, sees):
    """Heads are the first axis."""
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~sees, -torch.inf).softmax(dim=-1) @ v


def by_hand_bert(model):
    bert, (content, query) = model.bert, two_stream_masks()
    table = bert.embeddings
    here = table.position_embeddings.weight[: len(TEXT)] + table.token_type_embeddings.weight[0]
    h = table.LayerNorm(table.word_embeddings.weight[torch.tensor(TEXT)] + here)
    g = table.LayerNorm(table.word_embeddings.weight[2] + here)
    split = lambda x: x.unflatten(-1, (3, 12)).transpose(0, 1)  # noqa: E731
    for layer in bert.encoder.layer:
        own = layer.attention.self
        k, v = split(own.key(h)), split(own.value(h))

        def step(x, sees, layer=layer, k=k, v=v):
            mix = attend(split(layer.attention.self.query(x)), k, v, sees).transpose(0, 1).flatten(1)
            x = layer.attention.output.LayerNorm(x + layer.attention.output.dense(mix))
            return layer.output.LayerNorm(x + layer.output.dense(F.gelu(layer.intermediate.dense(x))))

        h, g = step(h, content), step(g, query)
    return model.cls(g)


def by_hand_rotary(model):
    stack, (content, query) = model.model, two_stream_masks()
    angle = torch.arange(len(TEXT))[:, None] * 10000.0 ** -(torch.arange(6) / 6)
    turn = torch.polar(torch.ones_like(angle), angle)

    def rotated(x):
        """Turn pairs (i, i + 6) as complex numbers."""
        turned = torch.complex(*x.chunk(2, dim=-1)) * turn
        return torch.cat((turned.real, turned.imag), dim=-1)

    split = lambda x: x.unflatten(-1, (3, 12)).transpose(0, 1)  # noqa: E731
    h, g = stack.embed_tokens.weight[torch.tensor(TEXT)], stack.embed_tokens.weight[2].expand(len(TEXT), -1)
    for layer in stack.layers:
        own, read = layer.self_attn, layer.pre_attn_norm(h)
        k, v = rotated(split(own.k_proj(read))), split(own.v_proj(read))

        def step(x, sees, layer=layer, k=k, v=v):
            q = rotated(split(layer.self_attn.q_proj(layer.pre_attn_norm(x))))
            x = x + layer.self_attn.o_proj(attend(q, k, v, sees).transpose(0, 1).flatten(1))
            read = layer.pre_mlp_norm(x)
            return x + layer.mlp.down_proj(F.gelu(layer.mlp.up_proj(read)))

        h, g = step(h, content), step(g, query)
    return model.lm_head(stack.norm(g))


@pytest.mark.parametrize(("name", "by_hand"), [("bert", by_hand_bert), ("ours, rotary", by_hand_rotary)])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_one_pass_equals_two_streams_by_hand(name, by_hand, kernel):
    model = redraw(MODELS[name]())
    model.set_attn_implementation(kernel)
    with torch.no_grad():
        one_pass = logits_of(model, batch_of([(TEXT, TARGETS)]))[0, len(TEXT) :]
        expected = by_hand(model)[np.sort(TARGETS)]
    assert (one_pass - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_the_fields_of_an_order_never_reach_a_model():
    batch = batch_of([(TEXT, TARGETS)])
    assert set(ORDER) <= set(batch)
    seen = {}
    model = encoder()
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    logits_of(model, batch)
    assert not {*ORDER, "text_ids", "labels"} & set(seen)
