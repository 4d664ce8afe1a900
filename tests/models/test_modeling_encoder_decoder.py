"""The encoder-decoder: cross-attention, shared embeddings, generation, saving."""

import itertools

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from decero.models import (
    DeceroEncoderDecoderConfig,
    DeceroEncoderDecoderForConditionalGeneration,
    DeceroEncoderDecoderModel,
)

BACKENDS = ["eager", "sdpa"]
POSITIONS = ["sinusoidal", "sinusoidal_halves", "learned", "rotary", "relative", "none"]
AUTO = {AutoModel: DeceroEncoderDecoderModel, AutoModelForSeq2SeqLM: DeceroEncoderDecoderForConditionalGeneration}
BUCKETS = {"relative_attention_num_buckets": 7, "relative_attention_max_distance": 11}
LEAN = {"norm_type": "rmsnorm", "attention_bias": False, "mlp_bias": False}
VARIANTS = {
    "vaswani2017": {
        "position_embedding_type": "sinusoidal", "norm_placement": "post", "scale_embeddings": True,
        "hidden_act": "relu",
    },
    "marian": {
        "position_embedding_type": "sinusoidal_halves", "norm_placement": "post", "lm_head_bias": True,
        "decoder_layers": 1, "decoder_start_token_id": 29,
    },
    "t5": {
        "position_embedding_type": "relative", "scale_attn_weights": False, "scale_lm_head": True, "decoder_layers": 3,
        **LEAN, **BUCKETS,
    },
    "t5_1_1": {
        "position_embedding_type": "relative", "scale_attn_weights": False, "gated_mlp": True,
        "tie_word_embeddings": False, **LEAN, **BUCKETS,
    },
    "bart": {"position_embedding_type": "learned", "norm_placement": "post", "embedding_norm": True},
    "modern": {
        "position_embedding_type": "rotary", "num_key_value_heads": 1, "gated_mlp": True, "hidden_act": "silu",
        "tie_word_embeddings": False, "decoder_layers": 3, **LEAN,
    },
    "blind": {"position_embedding_type": "none", "tie_word_embeddings": False},
}  # fmt: skip
CACHES = {
    "uncached": {"use_cache": False},
    "cached": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
}
FORMS = {
    "sampling": {"do_sample": True, "top_k": 0},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "beam_sample": {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
}
LABELS = torch.tensor([[5, 9, 31, 2, 7], [11, 3, 2, -100, -100], [8, 2, -100, -100, -100]])
HEAD = DeceroEncoderDecoderForConditionalGeneration


@pytest.fixture
def make_model(make_config, randomize):
    """A model of prime sizes with large weights, in eval mode."""

    def make(model_class=HEAD, backend="sdpa", **fields):
        model = randomize(model_class(make_config(DeceroEncoderDecoderConfig, **fields))).eval()
        model.set_attn_implementation(backend)
        return model

    return make


@pytest.fixture
def pairs(batch):
    """Three sources of 7, 5 and 2 tokens, and five tokens of each target."""
    return {**batch, "decoder_input_ids": torch.randint(1, 37, (3, 5))}


def probe(hidden):
    """A fixed random mix of the outputs: a scalar whose gradient reaches every feature."""
    return (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3)).to(hidden)).mean()


def keys_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def calls_of(model, name):
    """Return a list that grows with each call of the named module in a decoder layer."""
    calls = [0] * len(model.model.decoder.layers)

    def count(i):
        def hook(*_):
            calls[i] += 1

        return hook

    for i, layer in enumerate(model.model.decoder.layers):
        layer.get_submodule(name).register_forward_hook(count(i))
    return calls


# --- what a token of the target sees


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


@pytest.mark.parametrize("slots", COMBINATIONS, ids=lambda slots: "-".join(str(value) for value in slots.values()))
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


# --- the encoder's output, computed once


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


# --- generation


@pytest.mark.parametrize(("backend", "cache"), [*(("sdpa", cache) for cache in CACHES), ("eager", "cached")])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_generation_step_equals_one_forward_of_the_target(make_model, batch, variant, backend, cache):
    model = make_model(backend=backend, **VARIANTS[variant]).double()
    asked = {"max_new_tokens": 9, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**batch, **asked, **CACHES[cache])
    assert out.sequences[:, 0].eq(VARIANTS[variant].get("decoder_start_token_id", 0)).all()
    whole = model(**batch, decoder_input_ids=out.sequences[:, :-1]).logits
    assert_close(torch.stack(out.logits, dim=1), whole.float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(out.sequences[:, 1:], whole.argmax(-1))
    assert (out.past_key_values is None) is (cache == "uncached")


@pytest.mark.parametrize(
    ("form", "variant"),
    [
        *(("beam", v) for v in VARIANTS),
        *((f, v) for f in ("sampling", "beam_sample") for v in ("vaswani2017", "t5", "modern")),
    ],
)
def test_generation_is_the_same_with_every_cache_and_with_none(make_model, batch, variant, form):
    model, sequences = make_model(**VARIANTS[variant]).double(), []
    for cache in CACHES.values():
        torch.manual_seed(5)
        sequences.append(model.generate(**batch, **FORMS[form], **cache, max_new_tokens=7))
    assert torch.equal(sequences[0], sequences[1])
    assert torch.equal(sequences[0], sequences[2])
    assert len(sequences[0].unique(dim=0)) > 1  # there is something to compare


@pytest.mark.parametrize("form", FORMS)
def test_the_seed_decides_what_is_sampled_and_nothing_else(make_model, batch, form):
    model, sequences = make_model(tie_word_embeddings=False), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        sequences.append(model.generate(**batch, **FORMS[form], max_new_tokens=7))
    assert torch.equal(sequences[0], sequences[1])
    assert torch.equal(sequences[0], sequences[2]) is (form == "beam")


@pytest.mark.parametrize("form", [{}, FORMS["beam"]], ids=["greedy", "beam"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_padded_batch_writes_what_each_source_writes_alone(make_model, batch, variant, form):
    model = make_model(**VARIANTS[variant]).double()
    together = model.generate(**batch, **form, max_new_tokens=7).view(3, -1, 8)
    for row, length in enumerate((7, 5, 2)):
        alone = model.generate(batch["input_ids"][row : row + 1, :length], **form, max_new_tokens=7)
        assert torch.equal(together[row], alone)


def test_finished_targets_are_padded_while_others_continue(make_model, batch):
    model = make_model(**VARIANTS["modern"]).double()
    free = model.generate(**batch, max_new_tokens=7)[:, 1:]
    end = free[1, 2]
    ended = free.eq(end).cumsum(1) > free.eq(end)  # what comes after the first end
    assert ended[1, 3:].all()
    assert not ended.any(dim=1).all()  # one goes on to the last
    out = model.generate(**batch, max_new_tokens=7, eos_token_id=end.item())
    assert torch.equal(out[:, 1:], free.masked_fill(ended, 0))


def test_a_target_may_be_begun_by_hand(make_model, batch):
    model, begun = make_model(**VARIANTS["marian"]).double(), torch.tensor([[29, 5, 3], [29, 7, 11], [29, 2, 13]])
    out = model.generate(**batch, decoder_input_ids=begun, max_new_tokens=4)
    assert torch.equal(out[:, :3], begun)
    assert torch.equal(out[:, 3:], model(**batch, decoder_input_ids=out[:, :-1]).logits[:, 2:].argmax(-1))


def test_source_embeddings_generate_as_source_tokens(make_model, batch):
    model = make_model(scale_embeddings=True).double()
    expected = model.generate(**batch, max_new_tokens=5)
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    assert torch.equal(model.generate(inputs_embeds=embeds, **batch, max_new_tokens=5), expected)


def test_generation_returns_all_attentions(make_model, batch):
    model = make_model(backend="eager", decoder_layers=3)
    asked = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
    out = model.generate(**batch, max_new_tokens=4, **asked)
    assert [weights.shape for weights in out.encoder_attentions] == [(3, 3, 7, 7)] * 2
    assert [[weights.shape for weights in step] for step in out.cross_attentions] == [[(3, 3, 1, 7)] * 3] * 4
    assert [step[0].shape for step in out.decoder_attentions] == [(3, 3, 1, n) for n in (1, 2, 3, 4)]
    assert [len(step) for step in out.decoder_hidden_states] == [4] * 4


def test_a_target_beyond_the_learned_positions_is_an_error(make_model):
    model, source = make_model(position_embedding_type="learned"), torch.ones(1, 3, dtype=torch.long)
    assert model.generate(source, max_new_tokens=17).shape == (1, 18)  # the last is written and not read
    with pytest.raises(ValueError, match="18 tokens exceed the 17 learned positions"):
        model.generate(source, max_new_tokens=18)


# --- labels and the loss


@pytest.mark.parametrize(("fields", "start"), [({}, 0), ({"decoder_start_token_id": 29}, 29), ({"pad_token_id": 1}, 1)])
def test_labels_are_shifted_behind_a_start_token_and_padded(make_model, batch, fields, start):
    model, seen = make_model(**fields), []
    model.model.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    pad = fields.get("pad_token_id", 0)
    by_hand = torch.tensor([[start, 5, 9, 31, 2], [start, 11, 3, 2, pad], [start, 8, 2, pad, pad]])
    labels = LABELS.clone()
    out = model(**batch, labels=labels)
    assert torch.equal(seen[0], by_hand)
    assert torch.equal(model.prepare_decoder_input_ids_from_labels(LABELS), by_hand)
    assert torch.equal(labels, LABELS)  # the caller's labels are left alone
    assert torch.equal(out.logits, model(**batch, decoder_input_ids=by_hand).logits)


def test_labels_without_a_start_token_are_an_error(make_model, batch):
    model = make_model(pad_token_id=None)
    with pytest.raises(ValueError, match="labels need decoder_start_token_id and pad_token_id"):
        model(**batch, labels=LABELS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_cross_entropy_of_each_label(make_model, batch, variant):
    model = make_model(**VARIANTS[variant])
    out = model(**batch, labels=LABELS)
    scores = out.logits.log_softmax(-1)
    terms = [scores[b, t, LABELS[b, t]] for b in range(3) for t in range(5) if LABELS[b, t] != -100]
    assert len(terms) == 5 + 3 + 2
    assert_close(out.loss, -torch.stack(terms).mean())
    assert model(**batch, decoder_input_ids=LABELS.clamp(min=0)).loss is None


@pytest.mark.parametrize("count", [97, torch.tensor(97)])
def test_the_loss_is_divided_by_a_given_num_items_in_batch(make_model, batch, count):
    model = make_model()
    mean = model(**batch, labels=LABELS).loss
    assert_close(model(**batch, labels=LABELS, num_items_in_batch=count).loss, mean * 10 / 97)


def test_micro_batch_losses_with_the_global_count_add_up(make_model, gradients, batch):
    model = make_model()
    model(**batch, labels=LABELS).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 3)):
        part = {name: value[rows] for name, value in batch.items()}
        model(**part, labels=LABELS[rows], num_items_in_batch=10).loss.backward()
    for name, gradient in gradients(model).items():
        assert_close(gradient, whole[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_the_transformers_collator_shifts_as_the_model_does(make_model, tokenizer, texts):
    model = make_model(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=64)
    rows = [{"input_ids": tokenizer(text).input_ids, "labels": tokenizer(text[::2]).input_ids} for text in texts[:5]]
    assert len({len(row["labels"]) for row in rows}) > 1
    batch = DataCollatorForSeq2Seq(tokenizer, model=model)(rows)
    assert batch["labels"].eq(-100).any()
    assert batch["decoder_input_ids"][:, 0].eq(model.config.decoder_start_token_id).all()
    loss = model(**batch).loss
    del batch["decoder_input_ids"]
    assert torch.equal(model(**batch).loss, loss)


def test_a_scaled_head_divides_by_the_root_of_the_size(make_model, pairs):
    for scale, factor in ((True, 33**-0.5), (False, 1.0)):
        model = make_model(scale_lm_head=scale)
        hidden = model.model(**pairs).last_hidden_state
        assert_close(model(**pairs).logits, hidden @ model.lm_head.weight.T * factor)


def test_dropout_acts_in_both_stacks_and_in_training_only(make_model, pairs):
    for fields in ({"hidden_dropout_prob": 0.5}, {"attention_probs_dropout_prob": 0.5}, {"activation_dropout": 0.5}):
        model = make_model(**fields)
        still, moved = model(**pairs), model.train()(**pairs)
        assert not torch.allclose(moved.encoder_last_hidden_state, still.encoder_last_hidden_state)
        encoding = (still.encoder_last_hidden_state,)
        again = model(None, pairs["attention_mask"], pairs["decoder_input_ids"], encoder_outputs=encoding).logits
        assert not torch.allclose(again, still.logits)
        assert torch.equal(model.eval()(**pairs).logits, still.logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_is_trained(make_model, batch, gradients, variant):
    model = make_model(**VARIANTS[variant])
    model(**batch, labels=LABELS).loss.backward()
    assert gradients(model).keys() == dict(model.named_parameters()).keys()


# --- one table of embeddings


def tables(model):
    body = getattr(model, "model", model)
    return body.encoder.embed_tokens, body.decoder.embed_tokens


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
@pytest.mark.parametrize("tie", [True, False])
def test_the_stacks_share_embeddings_with_and_without_the_head(make_model, pairs, tmp_path, model_class, tie):
    model = make_model(model_class, tie_word_embeddings=tie)
    model.save_pretrained(tmp_path)
    tied = {name for name in model.state_dict() if name.endswith("decoder.embed_tokens.weight")}
    assert len(tied) == 1
    assert keys_of(tmp_path) == model.state_dict().keys() - tied - ({"lm_head.weight"} if tie else set())
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for one in (model, loaded):
        encoder, decoder = tables(one)
        assert encoder.weight is decoder.weight
        assert model_class is not HEAD or (one.lm_head.weight is encoder.weight) is tie
        assert len({p.data_ptr() for p in one.parameters()}) == len(list(one.parameters()))
    assert torch.equal(loaded(**pairs)[0], model(**pairs)[0])


@pytest.mark.parametrize("size", [41, 31])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_resizing_the_vocabulary_keeps_ties_bias_and_scores(make_model, pairs, tmp_path, tie, bias, size):
    model = make_model(tie_word_embeddings=tie, lm_head_bias=bias)
    pairs = {name: value.clamp(max=30) for name, value in pairs.items()}
    before = model(**pairs).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    out = model(**pairs, labels=pairs["decoder_input_ids"])
    assert out.logits.shape == (3, 5, size)
    assert_close(out.logits[..., :31], before[..., :31])
    model.save_pretrained(tmp_path)
    loaded = HEAD.from_pretrained(tmp_path)
    assert torch.equal(loaded(**pairs).logits, out.logits)
    for one in (model, loaded):
        encoder, decoder = tables(one)
        assert encoder.weight.shape == one.lm_head.weight.shape == (size, 33)
        assert encoder.weight is decoder.weight
        assert (one.lm_head.weight is encoder.weight) is tie


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
def test_both_stacks_receive_the_embeddings_that_are_exchanged(make_model, model_class):
    model, other = make_model(model_class), torch.nn.Embedding(41, 33)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert all(table is other for table in tables(model))


@pytest.mark.parametrize("tie", [True, False])
def test_a_head_that_the_checkpoint_lacks_is_initialised(make_config, randomize, pairs, tmp_path, tie):
    slots = {"initializer_range": 0.5, "tie_word_embeddings": tie, "lm_head_bias": True}
    body = randomize(DeceroEncoderDecoderModel(make_config(DeceroEncoderDecoderConfig, **slots)), std=0.1).eval()
    body.save_pretrained(tmp_path)
    model, report = HEAD.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {"lm_head.bias", *([] if tie else ["lm_head.weight"])}
    assert model.lm_head.weight.std().item() == pytest.approx(0.1 if tie else 0.5, rel=0.1)
    assert model.lm_head.bias.eq(0).all()
    assert torch.equal(model.model(**pairs)[0], body(**pairs)[0])
    encoder, decoder = tables(model)
    assert encoder.weight is decoder.weight


# --- the contract of transformers


@pytest.mark.parametrize(("auto", "model_class"), AUTO.items(), ids=lambda c: c.__name__)
def test_every_auto_class_finds_its_model(make_config, auto, model_class, tmp_path):
    config = make_config(DeceroEncoderDecoderConfig)
    assert type(auto.from_config(config)) is model_class
    model_class(config).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DeceroEncoderDecoderConfig
    assert type(auto.from_pretrained(tmp_path)) is model_class


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_it_gives_the_same_outputs(make_model, pairs, tmp_path, variant):
    model = make_model(**VARIANTS[variant])
    model.save_pretrained(tmp_path)
    loaded, report = HEAD.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict() | {"dtype": "float32"}
    assert torch.equal(loaded(**pairs).logits, model(**pairs).logits)


@pytest.mark.parametrize(("asked", "decoder"), [(None, 2), (1, 1), (5, 5)])
def test_the_decoder_may_have_layers_of_its_own_number(make_model, asked, decoder):
    model = make_model(decoder_layers=asked)
    assert (len(model.model.encoder.layers), len(model.model.decoder.layers)) == (2, decoder)
    assert model.config.decoder_layers == decoder


def test_the_encoder_looks_both_ways_the_decoder_only_back(make_model, pairs):
    model = make_model(backend="eager", decoder_layers=3)
    out = model(**pairs, output_attentions=True, output_hidden_states=True)
    assert [weights.shape for weights in out.encoder_attentions] == [(3, 3, 7, 7)] * 2
    assert [weights.shape for weights in out.decoder_attentions] == [(3, 3, 5, 5)] * 3
    assert [weights.shape for weights in out.cross_attentions] == [(3, 3, 5, 7)] * 3
    real = pairs["attention_mask"].bool()
    for weights in (*out.encoder_attentions, *out.cross_attentions):
        assert torch.equal(weights > 0, real[:, None, None, :].expand(weights.shape))
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    for weights in out.decoder_attentions:
        assert torch.equal(weights > 0, torch.ones(5, 5).tril().bool().expand(weights.shape))
    assert [state.shape for state in out.encoder_hidden_states] == [(3, 7, 33)] * 3
    assert [state.shape for state in out.decoder_hidden_states] == [(3, 5, 33)] * 4
    assert torch.equal(out.encoder_hidden_states[-1], out.encoder_last_hidden_state)
    assert_close(out.decoder_hidden_states[-1] @ model.lm_head.weight.T, out.logits)


def test_return_dict_false_gives_a_tuple(make_model, batch):
    model = make_model()
    out, row = model(**batch, labels=LABELS), model(**batch, labels=LABELS, return_dict=False)
    assert isinstance(row, tuple)
    assert torch.equal(row[0], out.loss)
    assert torch.equal(row[1], out.logits)
    body = model.model(**batch, decoder_input_ids=LABELS.clamp(min=0), return_dict=False)
    assert isinstance(body, tuple)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("variant", ["vaswani2017", "t5", "modern"])
def test_gradient_checkpointing_recomputes_the_same_gradients(make_model, gradients, batch, reentrant, variant):
    model = make_model(**VARIANTS[variant]).train()
    crossed, encoded = calls_of(model, "cross_attn.k_proj"), []
    model.model.encoder.layers[0].mlp.register_forward_pre_hook(lambda *_: encoded.append(1))
    model(**batch, labels=LABELS).loss.backward()
    expected = gradients(model)
    assert (len(encoded), set(crossed)) == (1, {1})
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model(**batch, labels=LABELS).loss.backward()
    assert (len(encoded), set(crossed)) == (3, {3})
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_finite_and_near_fp32(make_config, pairs, backend, variant):
    # The weights of a fresh model: at std 0.3 the comparison would measure chaos instead of precision.
    model = HEAD(make_config(DeceroEncoderDecoderConfig, initializer_range=0.1, **VARIANTS[variant])).eval()
    model.set_attn_implementation(backend)
    full = model(**pairs).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(model(**pairs).logits.float(), full, atol=0.05, rtol=0.05)
    half = model.to(torch.bfloat16)(**pairs).logits
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), full, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("scaled", [True, False])
def test_weights_start_with_the_configured_std_and_norms_at_one(make_config, scaled):
    config = make_config(
        DeceroEncoderDecoderConfig, initializer_range=0.07, vocab_size=997, hidden_size=99, head_dim=34,
        intermediate_size=211, scale_attn_weights=scaled, tie_word_embeddings=False, lm_head_bias=True,
    )  # fmt: skip
    model = HEAD(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert parameter.eq(1.0 if name.endswith("weight") else 0.0).all(), name
        elif name.endswith("bias"):
            assert parameter.eq(0).all(), name
        else:
            std = 0.07 if scaled or "q_proj" not in name else 0.07 * 34**-0.5  # T5 has its 1/sqrt(head size) here
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name


@pytest.mark.parametrize("tie", [True, False])
def test_token_embeddings_start_from_a_std_of_their_own(make_config, tie):
    own = {"embedding_initializer_range": 1, "initializer_range": 0.07, "vocab_size": 997, "hidden_size": 99}
    model = HEAD(make_config(DeceroEncoderDecoderConfig, **own, head_dim=34, tie_word_embeddings=tie))
    table = model.get_input_embeddings().weight
    assert table.std().item() == pytest.approx(1, rel=0.02)
    assert table[model.config.pad_token_id].eq(0).all()
    assert model.lm_head.weight.std().item() == pytest.approx(1 if tie else 0.07, rel=0.02)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed_tokens" not in name:
            assert parameter.std().item() == pytest.approx(0.07, rel=0.05), name


def test_the_configuration_survives_dict_and_file(make_config, tmp_path):
    config = make_config(DeceroEncoderDecoderConfig, **VARIANTS["marian"], scale_lm_head=True)
    assert DeceroEncoderDecoderConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is DeceroEncoderDecoderConfig
    assert loaded.is_encoder_decoder
    assert (loaded.num_hidden_layers, loaded.decoder_layers, loaded.decoder_start_token_id) == (2, 1, 29)
    assert (loaded.lm_head_bias, loaded.scale_lm_head, loaded.position_embedding_type) == (
        True,
        True,
        "sinusoidal_halves",
    )


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["vaswani2017", "t5", "modern"])
def test_the_model_compiles_without_a_graph_break(make_model, batch, variant):
    model = make_model(**VARIANTS[variant])
    torch.compiler.reset()  # what other tests compiled counts against a limit
    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(**batch, labels=LABELS).logits, model(**batch, labels=LABELS).logits, atol=1e-4, rtol=1e-4)
