"""What a token of the target sees; the output of the encoder is computed once."""

import itertools

import pytest
import torch
from tests.models.conftest import in_pairs
from tests.models.encoder_decoder.conftest import BACKENDS, CACHES, FORMS, VARIANTS, calls_of
from torch.testing import assert_close
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from decero.models import (
    DeceroEncoderDecoderModel,
)

POSITIONS = ["sinusoidal", "sinusoidal_halves", "learned", "rotary", "relative", "none"]


def probe(hidden):
    """A fixed random mix of the outputs: a scalar whose gradient reaches every feature."""
    return (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3)).to(hidden)).mean()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_later_target_token_never_changes_an_earlier_logit(make_model, batch, variant, backend):
    model, place = make_model(backend=backend, **VARIANTS[variant]).double(), torch.arange(7)
    target = torch.randint(1, 37, (7,))
    changed = torch.where(place[None, :] > place[:, None], target % 36 + 1, target)  # row t: all that comes after t
    source = {name: value[1:2].expand(8, 7) for name, value in batch.items()}
    before, *after = model(**source, decoder_input_ids=torch.cat((target[None], changed))).logits
    for t in range(6):
        assert_close(after[t][: t + 1], before[: t + 1])
        assert not torch.allclose(after[t][t + 1], before[t + 1], atol=1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_target_tokens_see_all_of_the_source_but_not_its_padding(make_model, pairs, variant, backend):
    model = make_model(DeceroEncoderDecoderModel, backend, **VARIANTS[variant]).double()
    embeds = model.get_input_embeddings()(pairs.pop("input_ids")).detach().requires_grad_()
    outputs = model(inputs_embeds=embeds, **pairs).last_hidden_state
    real = pairs["attention_mask"].bool()
    for t in range(5):
        reached = torch.autograd.grad(probe(outputs[:, t]), embeds, retain_graph=True)[0].abs().sum(-1) > 0
        assert torch.equal(reached, real)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_padded_batch_gives_what_each_pair_gives_alone(make_model, pairs, variant, backend):
    model = make_model(backend=backend, **VARIANTS[variant]).double()
    written = (torch.arange(5) < torch.tensor([[3], [5], [2]])).long()
    together = model(**pairs, decoder_attention_mask=written).logits
    filled = pairs["input_ids"].masked_fill(pairs["attention_mask"] == 0, 31)
    assert torch.equal(model(**{**pairs, "input_ids": filled}, decoder_attention_mask=written).logits, together)
    for row, (source, target) in enumerate(((7, 3), (5, 5), (2, 2))):
        alone = model(
            pairs["input_ids"][row : row + 1, :source], None, pairs["decoder_input_ids"][row : row + 1, :target]
        )
        assert_close(together[row, :target], alone.logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("variant", "given"), [*((v, True) for v in VARIANTS), *((v, False) for v in ("t5", "t5_1_1", "modern", "blind"))]
)
def test_padding_on_the_left_of_either_changes_nothing(make_model, pairs, variant, given):
    model = make_model(**VARIANTS[variant]).double()  # relative positions need not even be given
    mask, target_mask = pairs["attention_mask"].flip(1), (torch.arange(5) > torch.tensor([[1], [-1], [2]])).long()
    moved = torch.zeros(3, 7, dtype=torch.long)
    moved[mask.bool()] = pairs["input_ids"][pairs["attention_mask"].bool()]
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    positions["decoder_position_ids"] = (target_mask.cumsum(1) - 1).clamp(min=0)
    left = model(moved, mask, pairs["decoder_input_ids"], target_mask, **(positions if given else {})).logits
    for row, (source, first) in enumerate(((7, 2), (5, 0), (2, 3))):
        alone = model(
            pairs["input_ids"][row : row + 1, :source], None, pairs["decoder_input_ids"][row : row + 1, first:]
        )
        assert_close(left[row, first:], alone.logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_source_of_only_padding_stays_finite(make_model, gradients, pairs, variant, backend):
    model = make_model(backend=backend, **VARIANTS[variant])
    pairs["attention_mask"][1] = 0
    with torch.no_grad():  # the kernels of inference are others than those of training
        assert model(**pairs).logits.isfinite().all()
    logits = model(**pairs).logits
    assert logits.isfinite().all()
    others = model(**{name: value[[0, 2]] for name, value in pairs.items()}).logits
    assert_close(logits[[0, 2]], others, atol=1e-4, rtol=1e-4)
    probe(logits).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


SLOTS = {
    "norm_placement": ["pre", "post"],
    "position_embedding_type": POSITIONS,
    "num_key_value_heads": [None, 1],
}
COMBINATIONS = [dict(zip(SLOTS, values, strict=True)) for values in itertools.product(*SLOTS.values())]


@pytest.mark.parametrize("slots", in_pairs(COMBINATIONS))
def test_eager_equals_sdpa_for_every_combination_of_slots(make_model, gradients, pairs, slots):
    odd = COMBINATIONS.index(slots) % 3 == 1  # the slots that no kernel can see alternate
    rest = {"embedding_norm": odd, "gated_mlp": not odd, "attention_bias": not odd, "lm_head_bias": odd}
    rest |= {"norm_type": "rmsnorm" if odd else "layernorm", "scale_attn_weights": odd, "scale_lm_head": odd}
    eager, sdpa = (make_model(backend=backend, **slots, **rest).double() for backend in BACKENDS)
    logits = [model(**pairs).logits for model in (eager, sdpa)]
    assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)
    for one in logits:
        probe(one).backward()
    expected = gradients(eager)
    assert expected.keys() == dict(eager.named_parameters()).keys()
    for name, gradient in gradients(sdpa).items():
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("asked", ["encoder", "decoder"])
def test_a_text_beyond_the_learned_positions_is_an_error(make_model, asked):
    model = make_model(position_embedding_type="learned")
    long, short = torch.ones(1, 19, dtype=torch.long), torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="19 tokens exceed the 17 learned positions"):
        model(long if asked == "encoder" else short, decoder_input_ids=long if asked == "decoder" else short)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given", ["output", "tuple"])
def test_an_encoding_used_again_gives_the_whole_forward(make_model, pairs, backend, given):
    model = make_model(backend=backend)
    whole = model(**pairs)
    encoding = model.get_encoder()(pairs["input_ids"], pairs["attention_mask"])
    assert torch.equal(whole.encoder_last_hidden_state, encoding.last_hidden_state)
    encoding = BaseModelOutput(encoding.last_hidden_state) if given == "output" else (encoding.last_hidden_state,)
    calls = []
    model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    pairs.pop("input_ids")
    assert torch.equal(model(encoder_outputs=encoding, **pairs).logits, whole.logits)
    assert not calls


@pytest.mark.parametrize("form", [{}, FORMS["beam"]], ids=["greedy", "beam"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("variant", ["t5", "modern"])
def test_generation_reads_the_source_once(make_model, batch, variant, cache, form):
    model, encodings = make_model(**VARIANTS[variant]), []
    model.get_encoder().register_forward_hook(lambda *_: encodings.append(1))
    counts = {name: calls_of(model, name) for name in ("cross_attn.k_proj", "cross_attn.v_proj", "self_attn.k_proj")}
    for text in range(2):  # and once more for the next text
        model.generate(**batch, **form, **CACHES[cache], max_new_tokens=5)
        each = (text + 1) * (5 if cache == "uncached" else 1)
        assert len(encodings) == text + 1
        assert all(count == each for name in ("k_proj", "v_proj") for count in counts[f"cross_attn.{name}"])
        assert all(count == 5 * (text + 1) for count in counts["self_attn.k_proj"])


def test_the_cache_remembers_target_and_source_apart(make_model, pairs):
    model = make_model(**VARIANTS["modern"])
    cache = model(**pairs).past_key_values
    assert isinstance(cache, EncoderDecoderCache)
    assert cache.get_seq_length() == 5
    assert [layer.keys.shape for layer in cache.self_attention_cache.layers] == [(3, 1, 5, 14)] * 3
    assert [layer.keys.shape for layer in cache.cross_attention_cache.layers] == [(3, 1, 7, 14)] * 3
    assert model(**pairs, use_cache=False).past_key_values is None
    model.config.use_cache = False
    assert model(**pairs).past_key_values is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_target_read_in_pieces_is_the_target_read_at_once(make_model, pairs, variant, backend):
    model = make_model(backend=backend, **VARIANTS[variant]).double()
    whole, target, cache, pieces = model(**pairs).logits, pairs.pop("decoder_input_ids"), None, []
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        out = model(**pairs, decoder_input_ids=target[:, start:stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
