"""Writing: every cache, padded batches, sampling, beams and prompts in pieces."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.models.decoder.conftest import BACKENDS, VARIANTS
from torch.testing import assert_close
from transformers import (
    DynamicCache,
    pipeline,
)

from decero.models.compatibility import CACHE

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


@pytest.mark.long
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
