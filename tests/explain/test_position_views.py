"""Pictures of positions: their numbers against formulas, their words, their error."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5Model,
    XLNetConfig,
    XLNetModel,
)

from decero.errors import UserError
from decero.explain.position_views import WORDS, mean_by_distance, position_views, rotary_decay
from decero.models import DeceroEncoderConfig

TINY = {"vocab_size": 37, "hidden_size": 22, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 29}


def test_waves_depend_on_the_distance_only():
    model = AutoModel.from_config(DeceroEncoderConfig(**TINY, position_embedding_type="sinusoidal"))
    table, square, curve = position_views(model, "ours", length=17)
    assert (table.values.shape, square.values.shape, curve.values.shape) == ((17, 22), (17, 17), (1, 17))
    for distance in range(17):
        np.testing.assert_allclose(np.diagonal(square.values, distance), curve.values[0, distance], atol=1e-5)
    assert curve.values[0, 0] == pytest.approx(1)


def test_the_similarity_of_a_table_is_torchs_cosine():
    model = GPT2Model(GPT2Config(vocab_size=37, n_embd=22, n_layer=1, n_head=1, n_positions=11))
    square, _ = position_views(model, "gpt2", length=64)
    assert square.values.shape == (11, 11)  # no more than the model has
    rows = model.wpe.weight
    own = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    np.testing.assert_allclose(square.values, own.detach(), atol=1e-6)


def test_the_mean_score_of_random_vectors_is_the_decay():
    model = LlamaModel(LlamaConfig(**TINY, max_position_embeddings=64))
    angles, decay = position_views(model, "llama", length=19)
    vectors = torch.randn(4000, 1, 22, generator=torch.Generator().manual_seed(0)).repeat(1, 19, 1)
    cos, sin = model.rotary_emb(vectors, torch.arange(19)[None])
    first, second = vectors.chunk(2, dim=-1)
    turned = vectors * cos + torch.cat([-second, first], dim=-1) * sin
    scores = torch.einsum("nlk,nk->l", turned, turned[:, 0])
    np.testing.assert_allclose(decay.values[0], scores / scores[0], atol=0.02)
    np.testing.assert_allclose(angles.values[:, 1], np.cos(10000 ** -(np.arange(11) / 11)), atol=1e-6)


def test_the_bound_of_rotary_scores_falls_for_random_pairs():
    curves, angles = rotary_decay(10000.0 ** -(np.arange(64) / 64), 257)
    assert angles.shape == (64, 257)
    assert curves[1, 0] == 1
    assert curves[1, 256] < 0.5 < curves[1, 8]


def test_a_decoder_of_t5_shows_the_past_alone():
    model = T5Model(T5Config(vocab_size=37, d_model=33, d_kv=14, d_ff=41, num_layers=1, num_heads=3))
    encoder, decoder = position_views(model, "t5", length=5, language="es")
    assert (encoder.values.shape, decoder.values.shape) == ((3, 9), (3, 5))
    assert list(decoder.columns) == [-4, -3, -2, -1, 0]
    assert "decodificador" in decoder.title


def test_a_diagonal_has_its_mean():
    np.testing.assert_allclose(mean_by_distance(np.arange(9.0).reshape(3, 3)), [4, 3, 2])


def test_both_languages_have_all_words():
    assert WORDS["en"].keys() == WORDS["es"].keys()


def test_a_model_without_known_positions_is_refused_in_one_line():
    model = XLNetModel(XLNetConfig(vocab_size=37, d_model=22, n_layer=1, n_head=1, d_inner=29))
    with pytest.raises(UserError, match=r"small: this xlnet model has no positions .* choose another --view") as error:
        position_views(model, "small")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="1 positions are too few"):
        position_views(model, "small", length=1)
