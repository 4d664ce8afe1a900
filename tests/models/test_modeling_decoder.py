"""The decoder and its heads: masks, cache, generation, and the interface of transformers."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
    pipeline,
)

from decero.models import (
    DeceroDecoderConfig,
    DeceroDecoderForCausalLM,
    DeceroDecoderForQuestionAnswering,
    DeceroDecoderForSequenceClassification,
    DeceroDecoderForTokenClassification,
    DeceroDecoderModel,
)
from decero.models.compatibility import CACHE

BACKENDS = ["eager", "sdpa"]
POSITIONS = ["sinusoidal", "sinusoidal_halves", "learned", "rotary", "relative", "none"]
AUTO = {
    AutoModel: DeceroDecoderModel,
    AutoModelForCausalLM: DeceroDecoderForCausalLM,
    AutoModelForSequenceClassification: DeceroDecoderForSequenceClassification,
    AutoModelForTokenClassification: DeceroDecoderForTokenClassification,
    AutoModelForQuestionAnswering: DeceroDecoderForQuestionAnswering,
}
HEADS = [head for auto, head in AUTO.items() if auto is not AutoModel]
BUCKETS = {"relative_attention_num_buckets": 7, "relative_attention_max_distance": 11}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}
VARIANTS = {
    "gpt2": {"position_embedding_type": "learned"},
    "llama": {
        "position_embedding_type": "rotary", "norm_type": "rmsnorm", "gated_mlp": True, "hidden_act": "silu",
        "num_key_value_heads": 1, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    },
    "waves": {
        "position_embedding_type": "sinusoidal", "norm_placement": "post", "scale_embeddings": True,
        "tie_word_embeddings": False,
    },
    "halves": {"position_embedding_type": "sinusoidal_halves", "norm_placement": "post", "embedding_norm": True},
    "buckets": {"position_embedding_type": "relative", "scale_attn_weights": False, "norm_type": "rmsnorm", **BUCKETS},
    "blind": {"position_embedding_type": "none", "lm_head_bias": True, "tie_word_embeddings": False},
    "sliding": {"position_embedding_type": "rotary", "sliding_window": 4},
    "hybrid": {"position_embedding_type": "rotary", "num_key_value_heads": 1, "local_rope_theta": 50, **SLIDING},
    "hybrid_buckets": {"position_embedding_type": "relative", **BUCKETS, **SLIDING},
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
LABELS = {
    DeceroDecoderForCausalLM: {"labels": torch.full((3, 7), -100).index_fill(1, torch.tensor([0, 1, 4]), 5)},
    DeceroDecoderForSequenceClassification: {"labels": torch.tensor([1, 0, 1])},
    DeceroDecoderForTokenClassification: {"labels": torch.tensor([[1, 0, 1, -100, 0, 1, 1]] * 3)},
    DeceroDecoderForQuestionAnswering: {
        "start_positions": torch.tensor([1, 0, 2]),
        "end_positions": torch.tensor([3, 1, 2]),
    },
}


@pytest.fixture
def make_model(make_config, randomize):
    """A model of prime sizes with large weights, in eval mode."""

    def make(model_class=DeceroDecoderForCausalLM, backend="sdpa", seed=11, **fields):
        model = randomize(model_class(make_config(DeceroDecoderConfig, **fields)), seed=seed).eval()
        model.set_attn_implementation(backend)
        return model

    return make


@pytest.fixture
def left(batch):
    """The batch padded on the left, and the positions that its texts have alone."""
    mask = batch["attention_mask"].flip(1)
    input_ids = torch.zeros(3, 7, dtype=torch.long)
    input_ids[mask.bool()] = batch["input_ids"][batch["attention_mask"].bool()]
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@pytest.fixture
def prompt(left):
    """Return the arguments for `generate`."""
    return {name: left[name] for name in ("input_ids", "attention_mask")}


def probe(hidden):
    """A fixed random mix of the outputs: a scalar whose gradient reaches every feature."""
    return (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3)).to(hidden)).mean()


def keys_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


# --- what a token sees


@pytest.mark.parametrize("padding", ["no", "left", "right"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_later_token_never_changes_an_earlier_logit(make_model, variant, backend, padding):
    model, place = make_model(backend=backend, **VARIANTS[variant]).double(), torch.arange(11)
    text = torch.randint(1, 37, (11,))
    changed = torch.where(place[None, :] > place[:, None], text % 36 + 1, text)  # row t: all that comes after t
    mask = {"no": None, "left": (place > 2).expand(12, 11), "right": (place < 8).expand(12, 11)}[padding]
    before, *after = model(torch.cat((text[None], changed)), attention_mask=mask).logits
    for t in range(2 if padding == "left" else 0, 7 if padding == "right" else 10):
        assert_close(after[t][: t + 1], before[: t + 1])
        assert not torch.allclose(after[t][t + 1], before[t + 1], atol=1e-2)


def gradient_reaches(model, length=11):
    """(length, length) truth table: whether the output at one place depends on the input at another."""
    embeds = model.embed_tokens(torch.randint(1, 37, (1, length))).detach().requires_grad_()
    outputs = model(inputs_embeds=embeds).last_hidden_state[0]
    rows = [torch.autograd.grad(probe(row), embeds, retain_graph=True)[0][0] for row in outputs]
    return torch.stack(rows).abs().sum(-1) > 0


@pytest.mark.parametrize("positions", ["learned", "rotary", "relative"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("layers", "window"), [(1, 1), (1, 2), (1, 5), (2, 3)])
def test_a_sliding_layer_sees_exactly_its_window(make_model, positions, backend, layers, window):
    slots = {"position_embedding_type": positions, "num_hidden_layers": layers, "sliding_window": window}
    model = make_model(DeceroDecoderModel, backend, **slots).double()
    behind = torch.arange(11)[:, None] - torch.arange(11)[None, :]
    assert torch.equal(gradient_reaches(model), (behind >= 0) & (behind <= layers * (window - 1)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_full_layer_sees_all_that_came_before(make_model, positions, backend):
    model = make_model(DeceroDecoderModel, backend, position_embedding_type=positions, num_hidden_layers=1).double()
    assert torch.equal(gradient_reaches(model), torch.ones(11, 11).tril().bool())


def test_each_layer_has_its_configured_kind(make_model):
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    model = make_model(backend="eager", num_hidden_layers=3, layer_types=kinds, sliding_window=2)
    weights = model(torch.randint(1, 37, (1, 7)), output_attentions=True).attentions
    behind = torch.arange(7)[:, None] - torch.arange(7)[None, :]
    for kind, one in zip(kinds, weights, strict=True):
        seen = (behind >= 0) & ((behind < 2) | torch.tensor(kind == "full_attention"))
        assert torch.equal(one[0] > 0, seen.expand(3, 7, 7))
        assert_close(one.sum(-1), torch.ones(1, 3, 7))


def test_sliding_layers_rotate_by_their_own_theta(make_model, batch):
    def output(**fields):
        return make_model(DeceroDecoderModel, **{**SLIDING, **fields})(**batch).last_hidden_state

    def angles(model):
        seen = []
        for layer in model.layers:
            layer.register_forward_pre_hook(lambda module, args: seen.append(args[2][0]))
        model(**batch)
        return seen

    plain, local, wide = ({}, {"local_rope_theta": 50.0}, {"rope_theta": 50.0})
    first, second = angles(make_model(DeceroDecoderModel, **SLIDING, **local))
    assert_close(first, angles(make_model(DeceroDecoderModel, **SLIDING, **wide))[1])
    assert_close(second, angles(make_model(DeceroDecoderModel, **SLIDING, **plain))[1])
    assert not torch.allclose(first, second, atol=1e-2)
    assert not torch.allclose(output(**local), output(**plain), atol=1e-2)
    full = {"sliding_window": None, "layer_types": ["full_attention"] * 2}
    assert torch.equal(output(**full, **local), output(**full))


# --- backends, padding, packing

SLOTS = {
    "norm_placement": ["pre", "post"],
    "position_embedding_type": POSITIONS,
    "num_key_value_heads": [None, 1],
    "sliding_window": [None, 3],
}
COMBINATIONS = [dict(zip(SLOTS, values, strict=True)) for values in itertools.product(*SLOTS.values())]


@pytest.mark.parametrize("slots", COMBINATIONS, ids=lambda slots: "-".join(str(value) for value in slots.values()))
def test_eager_equals_sdpa_for_every_combination_of_slots(make_model, gradients, left, slots):
    odd = COMBINATIONS.index(slots) % 3 == 1  # the slots that no kernel can see alternate
    rest = {"embedding_norm": odd, "gated_mlp": not odd, "attention_bias": not odd, "lm_head_bias": odd}
    rest |= {"norm_type": "rmsnorm" if odd else "layernorm", "scale_attn_weights": odd, "final_norm": odd}
    if slots["sliding_window"]:
        rest["layer_types"] = SLIDING["layer_types"]
    eager, sdpa = (make_model(backend=backend, **slots, **rest).double() for backend in BACKENDS)
    text = left["attention_mask"].bool()
    logits = [model(**left).logits[text] for model in (eager, sdpa)]
    assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)
    for one in logits:
        probe(one).backward()
    expected = gradients(eager)
    assert expected.keys() == dict(eager.named_parameters()).keys()
    for name, gradient in gradients(sdpa).items():
        assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_padded_batch_gives_what_each_text_gives_alone(make_model, batch, left, variant, backend):
    model = make_model(backend=backend, **VARIANTS[variant]).double()
    for padded in (batch, left):
        together, text = model(**padded).logits, padded["attention_mask"].bool()
        for row in range(3):
            alone = model(padded["input_ids"][row : row + 1, text[row]]).logits[0]
            assert_close(together[row, text[row]], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["llama", "buckets", "blind", "hybrid", "hybrid_buckets"])
def test_relative_positions_need_no_ids_with_left_padding(make_model, prompt, variant, backend):
    model = make_model(backend=backend, **VARIANTS[variant]).double()
    together, text = model(**prompt).logits, prompt["attention_mask"].bool()
    for row in range(3):
        alone = model(prompt["input_ids"][row : row + 1, text[row]]).logits[0]
        assert_close(together[row, text[row]], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_positions_that_see_nothing_stay_finite(make_model, gradients, left, variant, backend):
    model = make_model(backend=backend, **VARIANTS[variant])
    left["attention_mask"][1] = 0  # and one text is nothing but padding
    with torch.no_grad():  # the kernels of inference are others than those of training
        assert model(**left).logits.isfinite().all()
    logits = model(**left).logits
    assert logits.isfinite().all()
    probe(logits).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize("use_cache", [None, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_texts_do_not_see_each_other(make_model, variant, backend, use_cache):
    model = make_model(backend=backend, **VARIANTS[variant]).double()
    lengths, input_ids = (3, 6, 2), torch.randint(1, 37, (1, 11))
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(input_ids, position_ids=position_ids, use_cache=use_cache).logits.split(lengths, dim=1)
    for one, text in zip(packed, input_ids.split(lengths, dim=1), strict=True):
        assert_close(one, model(text).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("slots", [{}, SLIDING], ids=["full", "sliding"])
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_ready_made_mask_tells_packed_texts_apart(make_model, positions, backend, additive, slots):
    model = make_model(backend=backend, position_embedding_type=positions, **slots).double()
    input_ids = torch.randint(1, 37, (11,))
    text = torch.tensor([0] * 4 + [1] * 7)
    mask = (text[:, None] == text[None, :]) & torch.ones(11, 11).tril().bool()
    if additive:
        mask = torch.zeros(11, 11).double().masked_fill(~mask, torch.finfo(torch.float64).min)
    packed = model(input_ids[None], mask[None, None], position_ids=torch.tensor([[*range(4), *range(7)]])).logits[0]
    for part in (slice(0, 4), slice(4, 11)):
        assert_close(packed[part], model(input_ids[None, part]).logits[0], atol=1e-5, rtol=1e-5)


def test_relative_positions_need_a_backend_with_bias(make_model, batch):
    model = make_model(position_embedding_type="relative")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2 does not support relative positions; use sdpa or eager"):
        model(**batch)


# --- positions


@pytest.mark.parametrize(
    ("positions", "blind"),
    [("rotary", True), ("relative", True), ("none", True), ("learned", False), ("sinusoidal", False)],
)
def test_only_relative_positions_ignore_where_a_text_starts(make_model, positions, blind):
    model, input_ids = make_model(position_embedding_type=positions), torch.arange(3, 10)[None]
    shifted = model(input_ids, position_ids=torch.arange(5, 12)[None]).logits
    assert torch.allclose(shifted, model(input_ids).logits, atol=2e-5) is blind


@pytest.mark.parametrize("past", [0, 16])
def test_a_text_beyond_the_learned_positions_is_an_error(make_model, past):
    model = make_model(position_embedding_type="learned")
    cache = model(torch.ones(1, past, dtype=torch.long)).past_key_values if past else None
    with pytest.raises(ValueError, match="19 tokens exceed the 17 learned positions"):
        model(torch.ones(1, 19 - past, dtype=torch.long), past_key_values=cache)


def test_generating_beyond_the_learned_positions_is_an_error(make_model):
    model = make_model(position_embedding_type="learned")
    assert model.generate(torch.ones(1, 11, dtype=torch.long), max_new_tokens=7).shape == (
        1,
        18,
    )  # the 18th is not read
    with pytest.raises(ValueError, match="exceed the 17 learned positions"):
        model.generate(torch.ones(1, 11, dtype=torch.long), max_new_tokens=8)


@pytest.mark.parametrize("positions", [kind for kind in POSITIONS if kind != "learned"])
def test_other_positions_have_no_limit(make_model, positions):
    model = make_model(position_embedding_type=positions)
    assert model(torch.ones(1, 101, dtype=torch.long)).logits.isfinite().all()


# --- generation


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_generation_step_equals_one_full_forward(make_model, prompt, variant, backend, cache):
    model = make_model(backend=backend, **VARIANTS[variant]).double()
    asked = {"max_new_tokens": 9, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**prompt, **asked, **CACHES[cache])
    mask = F.pad(prompt["attention_mask"], (0, 9), value=1)
    whole = model(out.sequences, mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, 6:-1]
    assert_close(torch.stack(out.logits, dim=1), whole.float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(out.sequences[:, 7:], whole.argmax(-1))
    assert (out.past_key_values is None) is (cache == "uncached")


@pytest.mark.parametrize(
    ("form", "variant"),
    [
        *(("beam", v) for v in VARIANTS),
        *((f, v) for f in ("sampling", "beam_sample") for v in ("gpt2", "llama", "buckets", "hybrid")),
    ],
)
def test_generation_is_the_same_with_every_cache_and_with_none(make_model, prompt, variant, form):
    model, sequences = make_model(**VARIANTS[variant]).double(), []
    for cache in CACHES.values():
        torch.manual_seed(5)
        sequences.append(model.generate(**prompt, **FORMS[form], **cache, max_new_tokens=7))
    assert torch.equal(sequences[0], sequences[1])
    assert torch.equal(sequences[0], sequences[2])
    assert len(sequences[0][:, 7:].unique(dim=0)) > 2  # there is something to compare


@pytest.mark.parametrize("form", FORMS)
def test_the_seed_decides_what_is_sampled_and_nothing_else(make_model, prompt, form):
    model, sequences = make_model(tie_word_embeddings=False), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        sequences.append(model.generate(**prompt, **FORMS[form], max_new_tokens=7))
    assert torch.equal(sequences[0], sequences[1])
    assert torch.equal(sequences[0], sequences[2]) is (form == "beam")


@pytest.mark.parametrize("form", [{}, FORMS["beam"]], ids=["greedy", "beam"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_left_padded_batch_generates_as_each_text_alone(make_model, prompt, variant, form):
    model = make_model(**VARIANTS[variant]).double()
    together = model.generate(**prompt, **form, max_new_tokens=7).view(3, -1, 14)
    for row, length in enumerate((7, 5, 2)):
        alone = model.generate(prompt["input_ids"][row : row + 1, 7 - length :], **form, max_new_tokens=7)
        assert torch.equal(together[row, :, 7:], alone[:, length:])


def test_finished_texts_are_padded_while_others_continue(make_model, prompt):
    model = make_model().double()
    free = model.generate(**prompt, max_new_tokens=7)[:, 7:]
    end = free[0, 2]
    ended = free.eq(end).cumsum(1) > free.eq(end)  # what comes after the first end
    assert ended[0, 3:].all()
    assert not ended.any(dim=1).all()  # one goes on to the last
    out = model.generate(**prompt, max_new_tokens=7, eos_token_id=end.item())
    assert torch.equal(out[:, 7:], free.masked_fill(ended, 0))


@pytest.mark.parametrize("helper", ["assistant", "prompt_lookup"])
@pytest.mark.parametrize("variant", ["gpt2", "llama", "waves", "buckets"])
def test_assisted_decoding_writes_what_greedy_decoding_writes(make_model, variant, helper):
    model, input_ids = make_model(**VARIANTS[variant]).double(), torch.randint(1, 37, (1, 7))
    # An assistant that is the model itself but for a little noise: some of its drafts are taken and some are not.
    assistant = make_model(**VARIANTS[variant]).double()
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    greedy = model.generate(input_ids, max_new_tokens=10)
    steps = len(calls)
    assert steps == 10
    how = {"assistant_model": assistant} if helper == "assistant" else {"prompt_lookup_num_tokens": 2}
    assert torch.equal(model.generate(input_ids, max_new_tokens=10, **how), greedy)
    assert len(calls) - steps < (10 if helper == "assistant" else 11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_continues_from_a_cache(make_model, variant):
    model, input_ids = make_model(**VARIANTS[variant]).double(), torch.randint(1, 37, (1, 5))
    at_once = model.generate(input_ids, max_new_tokens=10)
    first = model.generate(input_ids, max_new_tokens=4, return_dict_in_generate=True)
    lengths = []
    model.model.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    then = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=6)
    assert torch.equal(then, at_once)
    assert lengths == [1] * 6  # nothing is read twice


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_text_read_in_pieces_is_the_text_read_at_once(make_model, left, variant, backend):
    model = make_model(backend=backend, **VARIANTS[variant]).double()
    text, whole, cache, pieces = left["attention_mask"].bool(), model(**left).logits, None, []
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        new = {name: left[name][:, start:stop] for name in ("input_ids", "position_ids")}
        out = model(**new, attention_mask=left["attention_mask"][:, :stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    assert_close(torch.cat(pieces, dim=1)[text], whole[text], atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == 7


@pytest.mark.parametrize("variant", ["gpt2", "llama", "buckets"])
def test_a_prompt_may_be_read_in_chunks(make_model, prompt, variant):
    model = make_model(**VARIANTS[variant]).double()
    expected = model.generate(**prompt, max_new_tokens=5)
    assert torch.equal(model.generate(**prompt, max_new_tokens=5, prefill_chunk_size=3), expected)


@pytest.mark.parametrize("cache", CACHES)
def test_writing_from_embeddings_is_writing_from_their_tokens(make_model, prompt, cache):
    model = make_model(scale_embeddings=True).double()
    embeds = model.get_input_embeddings()(prompt["input_ids"])
    mask, asked = prompt["attention_mask"], {"max_new_tokens": 7, **CACHES[cache]}
    expected = model.generate(**prompt, **asked)[:, 7:]
    assert torch.equal(model.generate(inputs_embeds=embeds, attention_mask=mask, **asked), expected)


def test_the_cache_is_returned_when_it_is_used(make_model, batch):
    model = make_model(**VARIANTS["hybrid"])
    cache = model(**batch).past_key_values
    assert isinstance(cache, DynamicCache)
    assert cache.get_seq_length() == 7
    assert [layer.keys.shape for layer in cache.layers] == [(3, 1, 2, 14), (3, 1, 7, 14)]  # a window of 3 keeps 2
    given = []
    layer = model.model.layers[0]
    layer.register_forward_pre_hook(lambda m, a, kwargs: given.append(kwargs[CACHE]), with_kwargs=True)
    assert model(**batch, use_cache=False).past_key_values is None
    model.config.use_cache = False
    assert model(**batch).past_key_values is None
    assert given == [None, None]  # nothing is remembered behind the caller's back
    assert model(**batch, past_key_values=DynamicCache(), use_cache=False).past_key_values is None


@pytest.mark.parametrize(("kept", "places"), [(1, [6]), (3, [4, 5, 6]), (torch.tensor([0, 5]), [0, 5]), (0, range(7))])
def test_only_the_positions_to_keep_are_projected(make_model, batch, kept, places):
    model, seen = make_model(), []
    expected = model(**batch).logits[:, list(places)]
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    assert_close(model(**batch, logits_to_keep=kept).logits, expected)
    assert seen == [len(places)]


def test_generation_projects_only_the_last_prompt_position(make_model, prompt):
    model, seen = make_model(), []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    model.generate(**prompt, max_new_tokens=3)
    assert seen == [1, 1, 1]


def test_the_text_generation_pipeline_writes_with_it(make_model, tokenizer, texts):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "left"
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id)
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    asked = {"max_new_tokens": 7, "do_sample": False, "return_full_text": False}
    alone = [write(text, **asked)[0]["generated_text"] for text in texts[:3]]
    by_hand = tokenizer(texts[0], return_tensors="pt").input_ids
    tokens = model.generate(by_hand, max_new_tokens=7)[0, by_hand.shape[1] :]
    assert alone[0].strip() == tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert len(set(alone)) == 3
    assert [row[0]["generated_text"] for row in write(texts[:3], batch_size=3, **asked)] == alone


# --- heads and losses


def test_the_loss_is_cross_entropy_of_each_next_token(make_model, batch):
    model = make_model()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    out = model(**batch, labels=labels)
    scores = out.logits.log_softmax(-1)
    terms = [scores[b, t, labels[b, t + 1]] for b in range(3) for t in range(6) if labels[b, t + 1] != -100]
    assert len(terms) == 6 + 4 + 1
    assert_close(out.loss, -torch.stack(terms).mean())
    assert model(**batch).loss is None


@pytest.mark.parametrize("count", [97, torch.tensor(97)])
def test_the_loss_is_divided_by_a_given_num_items_in_batch(make_model, batch, count):
    model, labels = make_model(), LABELS[DeceroDecoderForCausalLM]["labels"]
    mean = model(**batch, labels=labels).loss
    assert_close(model(**batch, labels=labels, num_items_in_batch=count).loss, mean * 6 / 97)  # of 9, 3 are first


def test_micro_batch_losses_with_the_global_count_add_up(make_model, gradients, batch):
    model = make_model()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model(**batch, labels=labels).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 3)):
        part = {name: value[rows] for name, value in batch.items()}
        model(**part, labels=labels[rows], num_items_in_batch=11).loss.backward()
    for name, gradient in gradients(model).items():
        assert_close(gradient, whole[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


CLASSIFIER = DeceroDecoderForSequenceClassification


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("told", ["by the mask", "by the padding token"])
def test_the_classifier_reads_the_last_token_of_each_text(make_model, batch, left, side, told):
    model = make_model(CLASSIFIER, num_labels=5)
    padded = left if side == "left" else batch
    hidden = model.model(**padded).last_hidden_state
    last = hidden[:, -1] if side == "left" else hidden[torch.arange(3), torch.tensor([6, 4, 1])]
    if told == "by the padding token":
        if side == "left":  # padding is not hidden without a mask; the last place is still the last
            last = model.model(padded["input_ids"]).last_hidden_state[:, -1]
        padded = {"input_ids": padded["input_ids"]}
    logits = model(**padded).logits
    assert logits.shape == (3, 5)
    assert_close(logits, last @ model.score.weight.T)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_classifier_ignores_padding(make_model, batch, left, side):
    model = make_model(CLASSIFIER, num_labels=5)
    padded = left if side == "left" else batch
    together = model(**padded).logits
    for row, length in enumerate((7, 5, 2)):
        assert_close(together[row], model(batch["input_ids"][row : row + 1, :length]).logits[0], atol=1e-5, rtol=1e-5)


def test_a_batch_without_known_text_ends_is_an_error(make_model, batch):
    model = make_model(CLASSIFIER, pad_token_id=None)
    with pytest.raises(ValueError, match="give attention_mask or set pad_token_id"):
        model(batch["input_ids"])
    assert model(**batch).logits.shape == (3, 2)
    hidden = model.model(batch["input_ids"][:1]).last_hidden_state  # one text alone ends at its end
    assert_close(model(batch["input_ids"][:1]).logits, hidden[:, -1] @ model.score.weight.T)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_classifier_reads_embeddings_with_a_mask(make_model, batch, left, side):
    model, padded = make_model(CLASSIFIER), dict(left if side == "left" else batch)
    expected = model(**padded).logits
    embeds = model.get_input_embeddings()(padded.pop("input_ids"))
    assert_close(model(inputs_embeds=embeds, **padded).logits, expected)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "by_hand"),
    [
        ("single_label_classification", 5, torch.tensor([3, 0, 4]), F.cross_entropy),
        (
            "multi_label_classification",
            3,
            torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 1, 1]]),
            lambda z, y: -(y * z.sigmoid().log() + (1 - y) * (-z).sigmoid().log()).mean(),
        ),
        ("regression", 1, torch.tensor([0.5, -2.0, 1.0]), lambda z, y: (z[:, 0] - y).square().mean()),
    ],
)
def test_each_problem_type_has_its_loss(make_model, batch, problem_type, num_labels, labels, by_hand):
    model = make_model(CLASSIFIER, num_labels=num_labels)
    out = model(**batch, labels=labels)
    assert_close(out.loss, by_hand(out.logits, labels))
    assert model.config.problem_type == problem_type  # guessed from the labels


def test_classifier_dropout_acts_on_the_classifier_input(make_model, batch):
    model = make_model(CLASSIFIER, classifier_dropout=1.0)
    assert model.train()(**batch).logits.eq(0).all()
    assert not model.eval()(**batch).logits.eq(0).any()


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_is_trained(make_model, batch, gradients, head):
    for slots in VARIANTS.values():
        model = make_model(head, **slots)
        model(**batch, **LABELS[head]).loss.backward()
        assert gradients(model).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
def test_inputs_embeds_equal_the_input_ids_they_come_from(make_model, batch, model_class):
    model = make_model(model_class, scale_embeddings=True)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    mask = batch["attention_mask"]
    assert_close(model(inputs_embeds=embeds, attention_mask=mask)[0], model(**batch)[0], atol=0, rtol=0)


def test_ids_and_embeds_together_or_missing_are_an_error(make_model, batch):
    model = make_model()
    for wrong in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": torch.randn(3, 7, 33)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**wrong)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_final_norm_is_a_slot(make_model, batch, placement):
    for asked, there in ((None, placement == "pre"), (True, True), (False, False)):
        model = make_model(DeceroDecoderModel, norm_placement=placement, final_norm=asked)
        seen = {}
        model.layers[-1].register_forward_hook(lambda module, args, output, seen=seen: seen.update(last=output))
        out = model(**batch).last_hidden_state
        assert ("norm.weight" in model.state_dict()) is there
        expected = (
            F.layer_norm(seen["last"], (33,), model.norm.weight, model.norm.bias, 1e-6) if there else seen["last"]
        )
        assert_close(out, expected)


# --- the contract of transformers


@pytest.mark.parametrize(("auto", "model_class"), AUTO.items(), ids=lambda c: c.__name__)
def test_every_auto_class_finds_its_model(make_config, auto, model_class, tmp_path):
    config = make_config(DeceroDecoderConfig)
    assert type(auto.from_config(config)) is model_class
    model_class(config).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DeceroDecoderConfig
    assert type(auto.from_pretrained(tmp_path)) is model_class


@pytest.mark.parametrize(
    ("model_class", "variant"),
    [*((DeceroDecoderForCausalLM, v) for v in VARIANTS), *((c, "gpt2") for c in AUTO.values())],
)
def test_saved_and_loaded_it_gives_the_same_outputs(make_model, batch, tmp_path, model_class, variant):
    model = make_model(model_class, **VARIANTS[variant])
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict() | {"dtype": "float32"}
    assert torch.equal(loaded(**batch)[0], model(**batch)[0])


@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_stay_one_tensor_after_saving_untied_two(make_model, tmp_path, tie):
    model = make_model(tie_word_embeddings=tie)
    model.save_pretrained(tmp_path)
    assert keys_of(tmp_path) == model.state_dict().keys() - ({"lm_head.weight"} if tie else set())
    for one in (model, DeceroDecoderForCausalLM.from_pretrained(tmp_path)):
        assert (one.lm_head.weight is one.model.embed_tokens.weight) is tie
        assert torch.equal(one.lm_head.weight, model.lm_head.weight)
        assert torch.equal(one.lm_head.weight, one.model.embed_tokens.weight) is tie


@pytest.mark.parametrize("size", [41, 31])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_resizing_the_vocabulary_keeps_tie_bias_and_scores(make_model, tmp_path, tie, bias, size):
    model = make_model(tie_word_embeddings=tie, lm_head_bias=bias)
    input_ids = torch.arange(1, 12)[None]
    before = model(input_ids).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == model.model.config.vocab_size == size
    assert model.model.embed_tokens.weight.shape == model.lm_head.weight.shape == (size, 33)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tie
    out = model(input_ids, labels=input_ids)
    assert out.logits.shape == (1, 11, size)
    assert_close(out.logits[..., :31], before[..., :31])
    assert out.loss.isfinite()
    model.save_pretrained(tmp_path)
    assert torch.equal(DeceroDecoderForCausalLM.from_pretrained(tmp_path)(input_ids).logits, out.logits)


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
def test_the_input_embeddings_can_be_exchanged(make_model, model_class):
    model, other = make_model(model_class), torch.nn.Embedding(41, 33)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    assert getattr(model, "model", model).embed_tokens is other


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("tie", [True, False])
def test_a_head_that_the_checkpoint_lacks_is_initialised(make_config, randomize, batch, tmp_path, head, tie):
    slots = {"initializer_range": 0.5, "tie_word_embeddings": tie, "lm_head_bias": True}
    body = randomize(DeceroDecoderModel(make_config(DeceroDecoderConfig, **slots)), std=0.1).eval()
    body.save_pretrained(tmp_path)
    model, report = head.from_pretrained(tmp_path, output_loading_info=True, num_labels=29)
    tied = head is DeceroDecoderForCausalLM and tie
    names = {DeceroDecoderForCausalLM: "lm_head", DeceroDecoderForQuestionAnswering: "qa_outputs"}
    name = names.get(head, "score")
    layer = getattr(model, name)
    expected = {f"{name}.{part}" for part, _ in layer.named_parameters()} - ({"lm_head.weight"} if tied else set())
    assert report["missing_keys"] == expected
    assert layer.weight.std().item() == pytest.approx(0.1 if tied else 0.5, rel=0.2 if name == "qa_outputs" else 0.1)
    assert layer.bias is None or layer.bias.eq(0).all()
    assert torch.equal(model.model(**batch)[0], body(**batch)[0])


def test_a_classifier_takes_its_body_from_a_language_model(make_model, batch, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert classifier(**batch).logits.shape == (3, 5)
    assert torch.equal(classifier.model(**batch)[0], model.model(**batch)[0])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("variant", ["llama", "hybrid_buckets"])
def test_gradient_checkpointing_recomputes_the_same_gradients(make_model, gradients, batch, head, reentrant, variant):
    model, calls = make_model(head, **VARIANTS[variant]).train(), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model(**batch, **LABELS[head]).loss.backward()
    expected = gradients(model)
    assert len(calls) == 1
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model(**batch, **LABELS[head]).loss.backward()
    assert len(calls) == 3
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
def test_hidden_states_and_attentions_are_complete(make_model, batch, model_class):
    model = make_model(model_class, "eager", num_hidden_layers=3, num_key_value_heads=1)
    embeddings = {}
    body = getattr(model, "model", model)
    body.layers[0].register_forward_pre_hook(lambda module, args: embeddings.update(first=args[0]))
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in out.hidden_states] == [(3, 7, 33)] * 4
    assert [weights.shape for weights in out.attentions] == [(3, 3, 7, 7)] * 3
    assert torch.equal(out.hidden_states[0], embeddings["first"])
    assert torch.equal(out.hidden_states[-1], body(**batch).last_hidden_state)
    assert not out.get("cross_attentions")
    plain = model(**batch)
    assert plain.hidden_states is None
    assert plain.attentions is None


@pytest.mark.parametrize("head", HEADS)
def test_return_dict_false_gives_a_tuple(make_model, batch, head):
    model = make_model(head)
    out, row = model(**batch, **LABELS[head]), model(**batch, **LABELS[head], return_dict=False)
    assert isinstance(row, tuple)
    assert torch.equal(row[0], out.loss)
    assert torch.equal(row[1], out["logits" if "logits" in out else "start_logits"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_finite_and_near_fp32(make_config, left, backend, variant):
    # The weights of a fresh model: at std 0.3 the comparison would measure chaos instead of precision.
    model = DeceroDecoderForCausalLM(make_config(DeceroDecoderConfig, initializer_range=0.1, **VARIANTS[variant]))
    model.eval().set_attn_implementation(backend)
    text, full = left["attention_mask"].bool(), model(**left).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(model(**left).logits[text].float(), full[text], atol=0.05, rtol=0.05)
    half = model.to(torch.bfloat16)(**left).logits
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    assert_close(half[text].float(), full[text], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("scaled", [True, False])
def test_weights_start_with_the_configured_std_and_norms_at_one(make_config, scaled):
    config = make_config(
        DeceroDecoderConfig, initializer_range=0.07, vocab_size=997, hidden_size=99, head_dim=34, intermediate_size=211,
        position_embedding_type="relative", relative_attention_num_buckets=1009, relative_attention_max_distance=2003,
        embedding_norm=True, scale_attn_weights=scaled, tie_word_embeddings=False, lm_head_bias=True,
    )  # fmt: skip
    model = DeceroDecoderForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert parameter.eq(1.0 if name.endswith("weight") else 0.0).all(), name
        elif name.endswith("bias"):
            assert parameter.eq(0).all(), name
        else:
            std = 0.07 if scaled or "q_proj" not in name else 0.07 * 34**-0.5  # T5 has its 1/sqrt(head size) here
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
    assert model.model.embed_tokens.weight[0].eq(0).all()  # the padding token


def test_the_configuration_survives_dict_and_file(make_config, tmp_path):
    config = make_config(DeceroDecoderConfig, **VARIANTS["hybrid"], lm_head_bias=True, classifier_dropout=0.25)
    assert DeceroDecoderConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is DeceroDecoderConfig
    assert (loaded.layer_types, loaded.sliding_window) == (SLIDING["layer_types"], 3)
    assert (loaded.local_rope_theta, loaded.lm_head_bias, loaded.classifier_dropout) == (50, True, 0.25)


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({}, ["full_attention"] * 2),
        ({"sliding_window": 3}, ["sliding_attention"] * 2),
        (SLIDING, ["sliding_attention", "full_attention"]),
    ],
)
def test_a_window_alone_makes_every_layer_slide(make_config, fields, kinds):
    assert make_config(DeceroDecoderConfig, **fields).layer_types == kinds


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["gpt2", "llama", "buckets", "hybrid"])
def test_the_model_compiles_without_a_graph_break(make_model, batch, variant):
    model = make_model(**VARIANTS[variant])
    torch.compiler.reset()  # what other tests compiled counts against a limit
    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(**batch, use_cache=False).logits, model(**batch).logits, atol=1e-4, rtol=1e-4)
