"""Writing: every cache, padded batches, sampling and beams."""

import pytest
import torch
from tests.models.encoder_decoder.conftest import CACHES, FORMS, VARIANTS
from torch.testing import assert_close


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


@pytest.mark.long
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
