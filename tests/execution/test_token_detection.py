"""Replaced token detection is ELECTRA's: the stock losses, the gradient rule, and draws that anybody can repeat."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from hypothesis import given, settings
from torch.testing import assert_close

from decero.data.collators import IGNORED, ReplacedTokens
from decero.data.order import RowIndex, Rows
from decero.data.packing import Packed
from decero.errors import UserError
from decero.execution.linear_cross_entropy import sample_ids, sampled_cross_entropy
from decero.execution.token_detection import (
    GeneratorAndDiscriminator,
    corrupted,
    detect,
    detection_loss,
    embeddings_of,
    generator_config,
    parts_of,
    replacements,
    token_detection,
)
from decero.models import DeceroEncoderConfig
from decero.planning.cost import flops

SIZES = {
    "vocab_size": 101, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 37,
    "initializer_range": 0.3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
CONFIGS = {
    "electra": lambda: hf.ElectraConfig(**SIZES, embedding_size=13, max_position_embeddings=64),
    "ours": lambda: DeceroEncoderConfig(**SIZES),
    "ours, learned positions": lambda: DeceroEncoderConfig(
        **SIZES, embedding_size=13, position_embedding_type="learned", embedding_norm=True, type_vocab_size=2
    ),
}


def pair_of(config, size=0.5):
    torch.manual_seed(3)
    generator = hf.AutoModelForMaskedLM.from_config(generator_config(config, size))
    return GeneratorAndDiscriminator(generator, hf.AutoModelForPreTraining.from_config(config))


@pytest.fixture(params=CONFIGS)
def pair(request):
    return pair_of(CONFIGS[request.param]())


@pytest.fixture
def collate(tokenizer):
    return ReplacedTokens(tokenizer, mlm_probability=0.4, seed=5)


@pytest.fixture
def batch(rows, collate):
    return collate(Rows(rows).__getitems__([RowIndex(1, index) for index in (3, 4, 9, 21, 30)]))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- draws


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), vocabulary=st.integers(1, 41))
def test_a_drawn_id_is_the_first_whose_sum_exceeds_the_draw(seed, vocabulary):
    draw = np.random.default_rng(seed)
    weights = draw.random((17, vocabulary)) * (draw.random((17, vocabulary)) < 0.7) + 1e-9
    p_NV, u_N = weights / weights.sum(axis=1, keepdims=True), draw.random(17)
    ids_N = sample_ids(torch.from_numpy(p_NV), torch.from_numpy(u_N))
    assert ids_N.tolist() == [int((np.cumsum(p) <= u * p.sum()).sum()) for p, u in zip(p_NV, u_N, strict=True)]


def test_drawn_ids_have_the_probabilities_of_the_softmax():
    p_V = torch.tensor([0.5, 0.0, 0.2, 0.3])
    u_N = (torch.arange(1000) + 0.5) / 1000
    counts = sample_ids(p_V.expand(1000, 4), u_N).bincount(minlength=4)
    assert counts.tolist() == [500, 0, 200, 300]
    assert sample_ids(p_V[None], torch.tensor([1 - 2**-24])).tolist() == [3]


@pytest.mark.parametrize("chunk", [7, 512])
def test_the_fused_loss_draws_from_its_own_logits(chunk):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(29, 13, generator=generator, requires_grad=True)
    weight = torch.randn(41, 13, generator=generator, requires_grad=True)
    bias = torch.randn(41, generator=generator, requires_grad=True)
    labels, draws = torch.randint(41, (29,), generator=generator), torch.rand(29, generator=generator)
    got, ids = sampled_cross_entropy(hidden, weight, bias, labels, draws, chunk)
    logits = F.linear(hidden, weight, bias)
    assert_close(got, F.cross_entropy(logits, labels, reduction="sum"))
    p_NV = logits.detach().double().softmax(dim=-1).numpy()
    assert ids.tolist() == [int((np.cumsum(p) <= u).sum()) for p, u in zip(p_NV, draws.numpy(), strict=True)]
    assert not ids.requires_grad
    expected = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), (hidden, weight, bias))
    for fused, unfused in zip(torch.autograd.grad(got, (hidden, weight, bias)), expected, strict=True):
        assert_close(fused, unfused, atol=2e-6, rtol=1e-5)
    with torch.no_grad():
        again, same_ids = sampled_cross_entropy(hidden, weight, bias, labels, draws, chunk)
    assert_close(again, got.detach())
    assert torch.equal(same_ids, ids)


# --- the loss


def test_the_loss_is_that_of_the_stock_classes(pair, batch):
    """ElectraForMaskedLM and ElectraForPreTraining compute it on their own, a row at a time."""
    objective, total, holes = token_detection(None, weight=50.0), 0.0, 0
    for row in range(len(batch["labels"])):
        one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        read = {name: one[name] for name in ("input_ids", "attention_mask")}
        hole_L = one["labels"][0] != IGNORED
        said = pair.generator(**read, labels=one["labels"])
        p_NV = said.logits[0, hole_L].double().softmax(dim=-1).detach().numpy()
        drawn = [int((np.cumsum(p) <= u).sum()) for p, u in zip(p_NV, one["draws"][0, hole_L].numpy(), strict=True)]
        ids = read["input_ids"].clone()
        ids[0, hole_L] = torch.tensor(drawn)
        original = torch.where(one["labels"] == IGNORED, read["input_ids"], one["labels"])
        found = pair.discriminator(ids, read["attention_mask"], labels=(ids != original).long())
        expected = said.loss.item() + 50 * found.loss.item()
        assert objective.loss(pair, one).item() / int(hole_L.sum()) == pytest.approx(expected, rel=2e-5)
        total, holes = total + expected * int(hole_L.sum()), holes + int(hole_L.sum())
    assert objective.loss(pair, batch).item() == pytest.approx(total, rel=2e-5)
    assert objective.count(batch) == holes


def test_packed_rows_give_the_same_loss_and_gradients(pair, batch, collate):
    objective, found = token_detection(None, weight=50.0), []
    packed = Packed(collate, 128).pack(batch)
    assert len(packed["input_ids"]) < len(batch["input_ids"])
    for each in (batch, packed):
        pair.zero_grad()
        loss = objective.loss(pair, each)
        loss.backward()
        found.append((loss.detach(), gradients(pair)))
    assert_close(found[1][0], found[0][0])
    for name, gradient in found[0][1].items():
        assert_close(found[1][1][name], gradient, atol=1e-3, rtol=1e-3, msg=name)


def test_a_token_that_the_generator_guesses_counts_as_original(batch):
    hole_BL = batch["labels"] != IGNORED
    drawn_N = batch["labels"][hole_BL].clone()
    drawn_N[::3] = (drawn_N[::3] + 1) % 101
    corrupt, replaced_BL = corrupted(batch, drawn_N)
    assert replaced_BL[hole_BL].tolist() == [place % 3 == 0 for place in range(len(drawn_N))]
    assert not replaced_BL[~hole_BL].any()
    assert torch.equal(corrupt["input_ids"][~hole_BL], batch["input_ids"][~hole_BL])


def test_reading_says_what_training_sees(pair, batch):
    pair.eval()
    with torch.no_grad():
        nats, drawn_N = replacements(pair.generator, batch)
        corrupt, replaced_BL = corrupted(batch, drawn_N)
        logits_BL = pair.discriminator(corrupt["input_ids"], batch["attention_mask"]).logits
    found = list(detect(pair, batch))
    assert sum(row.nats for row in found) == pytest.approx(float(nats), rel=1e-5)
    assert sum(row.holes for row in found) == len(drawn_N)
    for row, logits_L, replaced_L, real_L in zip(
        found, logits_BL, replaced_BL, batch["attention_mask"].bool(), strict=True
    ):
        assert_close(row.logits, logits_L[real_L], atol=1e-5, rtol=1e-5)
        assert torch.equal(row.replaced, replaced_L[real_L])


# --- the gradient


def test_no_gradient_passes_through_the_replacements(pair, batch):
    """The discriminator's loss reaches the shared embeddings, and nothing else of the generator; and the reverse."""
    shared = {id(p) for p in embeddings_of(pair.discriminator).values()}
    own = {id(p): f"{name}" for name, p in pair.generator.named_parameters() if id(p) not in shared}
    theirs = {id(p): name for name, p in pair.discriminator.named_parameters() if id(p) not in shared}
    assert shared <= {id(p) for p in pair.generator.parameters()}
    assert own
    assert theirs
    assert not own.keys() & theirs.keys()
    nats, drawn_N = replacements(pair.generator, batch)
    detection_loss(pair.discriminator, *corrupted(batch, drawn_N)).backward()
    reached = {id(p) for p in pair.parameters() if p.grad is not None}
    assert reached == shared | theirs.keys()
    by_detection = pair.get_input_embeddings().weight.grad.clone()
    pair.zero_grad()
    nats.backward()
    reached = {id(p) for p in pair.parameters() if p.grad is not None}
    assert reached == shared | own.keys()
    by_filling = pair.get_input_embeddings().weight.grad.clone()
    assert by_detection.abs().max() > 0
    assert by_filling.abs().max() > 0
    pair.zero_grad()
    token_detection(None, weight=3.0).loss(pair, batch).backward()
    assert_close(pair.get_input_embeddings().weight.grad, by_filling + 3 * by_detection, atol=1e-4, rtol=1e-4)


def test_a_resumed_pair_equals_an_uninterrupted_one(fit, collate, tmp_path):
    class KilledError(Exception):
        pass

    def evaluate(model):
        raise KilledError

    def model():
        return pair_of(DeceroEncoderConfig(**SIZES | {"hidden_dropout_prob": 0.1}))

    steps = {"objective": token_detection(collate, 50.0), "max_train_steps": 7, "save_steps": 3}
    whole = fit(tmp_path / "whole", model=model(), **steps)
    with pytest.raises(KilledError):
        fit(tmp_path / "cut", model=model(), eval_strategy="steps", eval_steps=4, evaluate=evaluate, **steps)
    resumed = fit(tmp_path / "cut", model=model(), resume=True, **steps)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    ended, expected = (parts_of(result.model) for result in (resumed, whole))
    for part, other in zip(ended, expected, strict=True):
        for name, tensor in other.state_dict().items():
            assert torch.equal(part.state_dict()[name], tensor), name
    assert ended[0].get_output_embeddings().weight is ended[1].get_input_embeddings().weight


# --- the generator


@pytest.mark.parametrize(
    ("discriminator", "size", "published"),
    [
        ({}, 0.25, (64, 1, 256, 128)),
        ({"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "embedding_size": 768}, 1 / 3,
         (256, 4, 1024, 768)),
    ],
    ids=["google/electra-small-generator", "google/electra-base-generator"],
)  # fmt: skip
def test_a_new_generator_has_the_published_shape(discriminator, size, published):
    made = generator_config(hf.ElectraConfig(**discriminator), size)
    fields = "hidden_size", "num_attention_heads", "intermediate_size", "embedding_size"
    assert tuple(getattr(made, name) for name in fields) == published
    assert made.num_hidden_layers == 12


@pytest.mark.parametrize("size", [0.01, 0.3, 0.5, 0.77, 1.0])
def test_a_generator_of_any_size_can_be_built(size):
    config = DeceroEncoderConfig(**SIZES | {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2})
    made = pair_of(config, size).generator.config
    assert made.hidden_size == made.head_dim * made.num_attention_heads
    assert made.head_dim % 2 == 0
    assert size < 1 or (made.hidden_size, made.embedding_size) == (24, None)


def test_both_models_count_in_the_cost(pair, batch):
    size = token_detection(None, 50.0).size(batch, 5)
    assert flops(pair, size) == pytest.approx(sum(flops(part, size) for part in parts_of(pair)))
    assert flops(pair, size) > flops(pair.discriminator, size) > 0


def test_a_generator_of_another_vocabulary_is_refused():
    config = hf.ElectraConfig(**SIZES, embedding_size=13)
    other = hf.AutoModelForMaskedLM.from_config(hf.ElectraConfig(**SIZES | {"vocab_size": 97}, embedding_size=13))
    why = r"cannot share embeddings.word_embeddings.weight: \[97, 13\], but \[101, 13\] in the discriminator"
    with pytest.raises(UserError, match=why):
        GeneratorAndDiscriminator(other, hf.AutoModelForPreTraining.from_config(config))
