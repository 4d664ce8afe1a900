"""One test a way in which a family holds its positions: each equals what the family's own module computes."""

import inspect
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from decero.execution.position_modules import find_positions, is_waves
from decero.models import DeceroEncoderConfig, DeceroEncoderDecoderConfig
from decero.models.embeddings import rotary_positions, sinusoidal_positions

L = 13
TINY = {
    "vocab_size": 37, "hidden_size": 22, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 29,
    "max_position_embeddings": 23,
}  # fmt: skip
T5 = {"vocab_size": 37, "d_model": 33, "d_kv": 14, "d_ff": 41, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 3}
SEQ2SEQ = {
    "vocab_size": 37, "d_model": 22, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1,
    "decoder_attention_heads": 1, "encoder_ffn_dim": 29, "decoder_ffn_dim": 29, "max_position_embeddings": 23,
    "pad_token_id": 1,
}  # fmt: skip


def build(family, **fields):
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(family, **fields)).eval()


def ours(**fields):
    torch.manual_seed(0)
    return AutoModel.from_config(DeceroEncoderConfig(**(TINY | fields))).eval()


def only(model, kind):
    found = find_positions(model, L)
    assert [source.kind for source in found] == [kind]
    return found[0].values


def close(values, tensor):
    np.testing.assert_allclose(values, tensor.detach().float().numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", ["sinusoidal", "sinusoidal_halves"])
def test_our_waves_are_the_formula(layout):
    values = only(ours(position_embedding_type=layout), "waves")
    close(values, sinusoidal_positions(torch.arange(L)[None], 22, interleaved=layout == "sinusoidal")[0])
    assert is_waves(values)


def test_our_learned_positions_begin_after_the_offset():
    model = ours(position_embedding_type="learned", position_offset=2)
    close(only(model, "learned"), model.embed_positions(torch.arange(L)[None])[0])


def test_our_rotations_have_the_angles_of_the_forward_pass():
    values = only(ours(), "rotary")
    cos, sin = (part[0, 0, :, :11] for part in rotary_positions(torch.arange(L)[None], 22))
    close(np.cos(values * np.arange(L)[:, None]), cos)
    close(np.sin(values * np.arange(L)[:, None]), sin)


def test_two_rotary_bases_are_two_sources():
    model = ours(num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"], sliding_window=3,
                 local_rope_theta=100.0)  # fmt: skip
    assert len(find_positions(model, L)) == 2


def test_our_buckets_are_the_bias_of_each_stack():
    torch.manual_seed(0)
    fields = TINY | {"position_embedding_type": "relative", "num_attention_heads": 2}
    model = AutoModel.from_config(DeceroEncoderDecoderConfig(**fields)).eval()
    encoder, decoder = find_positions(model, L)
    ahead = torch.arange(L)[None] - torch.arange(L)[:, None]
    for source, stack in ((encoder, model.encoder), (decoder, model.decoder)):
        bias = stack.relative_attention_bias(ahead)[0]
        for column, distance in enumerate(source.distances):
            close(np.repeat(source.values[:, column], L - abs(distance)), bias.diagonal(distance, 1, 2).reshape(-1))
    assert (encoder.stack, decoder.stack) == ("encoder", "decoder")
    assert (encoder.distances.max(), decoder.distances.max()) == (L - 1, 0)


def test_a_model_without_positions_has_none():
    assert find_positions(ours(position_embedding_type="none"), L) == []


@pytest.mark.parametrize(
    ("family", "table"),
    [
        ("bert", lambda model: model.embeddings.position_embeddings(torch.arange(L))),
        ("roberta", lambda model: model.embeddings.position_embeddings(torch.arange(L) + 2)),
        ("gpt2", lambda model: model.wpe(torch.arange(L))),
        ("opt", lambda model: model.decoder.embed_positions(torch.ones(1, L, dtype=torch.long), 0)[0]),
    ],
)
def test_a_learned_table_is_what_its_module_looks_up(family, table):
    model = build(family, **TINY, pad_token_id=1, ffn_dim=29, word_embed_proj_dim=22)
    close(only(model, "learned"), table(model))


def test_bart_has_a_table_a_stack():
    encoder, decoder = find_positions(build("bart", **SEQ2SEQ), L)
    assert (encoder.kind, encoder.stack, decoder.stack) == ("learned", "encoder", "decoder")
    assert encoder.values.shape == (L, 22)


def test_the_first_token_of_a_vit_has_a_row_too():
    model = build("vit", hidden_size=22, num_hidden_layers=1, num_attention_heads=1, intermediate_size=29, image_size=8,
                  patch_size=2)  # fmt: skip
    close(only(model, "learned"), model.embeddings.position_embeddings[0, :L])


def test_marian_has_one_table_of_waves_for_both_stacks():
    model = build("marian", **SEQ2SEQ)
    close(only(model, "waves"), model.encoder.embed_positions(torch.Size([1, L])))
    assert find_positions(model, L)[0].stack is None


def test_m2m_100_waves_start_after_the_padding():
    model = build("m2m_100", **SEQ2SEQ)
    ids = torch.full((1, L), 5)
    close(only(model, "waves"), model.encoder.embed_positions(ids, ids)[0])


@pytest.mark.parametrize("family", ["llama", "modernbert", "gpt_neox"])
def test_stock_rotations_are_those_of_the_rotary_module(family):
    model = build(family, **TINY, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
                  rotary_pct=1.0)  # fmt: skip
    source = find_positions(model, L)[0]
    module = model.get_submodule(source.path.rpartition(".")[0])
    kind = {"layer_type": "full_attention"} if "layer_type" in inspect.signature(module.forward).parameters else {}
    cos, sin = module(torch.zeros(1, L, 22), torch.arange(L)[None], **kind)
    angles = source.values * np.arange(L)[:, None]
    close(np.cos(angles), cos[0, :, : angles.shape[1]])
    close(np.sin(angles), sin[0, :, : angles.shape[1]])


def test_a_table_narrower_than_the_states_rotates():
    gptj = build("gptj", vocab_size=37, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, n_positions=23)
    close(only(gptj, "rotary"), 10000 ** -(torch.arange(0, 8, 2) / 8))
    roformer = build("roformer", **(TINY | {"num_attention_heads": 2, "hidden_size": 24}))
    close(only(roformer, "rotary"), 10000 ** -(torch.arange(0, 12, 2) / 12))


@pytest.mark.parametrize("family", ["t5", "umt5", "longt5"])
def test_t5_buckets_are_its_own_bias(family):
    model = build(family, **T5, decoder_start_token_id=0, encoder_attention_type="local")
    encoder, decoder = find_positions(model, L)
    assert encoder.values.shape == (3, 2 * L - 1)
    bias = model.get_submodule(decoder.path).compute_bias(L, L)[0]
    for source, own in ((decoder, bias),) if family == "longt5" else (
        (decoder, bias), (encoder, model.get_submodule(encoder.path).compute_bias(L, L)[0])
    ):  # fmt: skip
        for column, distance in enumerate(source.distances):
            close(np.repeat(source.values[:, column], L - abs(distance)), own.diagonal(distance, 1, 2).reshape(-1))
    if family == "longt5":  # block 13, query 12: key j of the three blocks is j - 13 - 12 away
        own = model.get_submodule(encoder.path).compute_bias(L)[0, 0, :, 12]
        close(encoder.values, own[:, 25 - (L - 1) : 25 + L])


def test_mpnet_has_a_table_and_buckets():
    learned, buckets = find_positions(build("mpnet", **TINY, pad_token_id=1), L)
    assert (learned.kind, buckets.kind, buckets.values.shape) == ("learned", "buckets", (1, 2 * L - 1))


def test_alibi_slopes_are_what_the_families_build():
    bloom = build("bloom", vocab_size=37, hidden_size=24, n_layer=1, n_head=6)
    own = bloom.build_alibi_tensor(torch.ones(1, L), 6, torch.float32)[:, 0]
    close(only(bloom, "slopes")[:, None] * np.arange(L), own)
    mpt = build("mpt", vocab_size=37, d_model=24, n_layers=1, n_heads=6)
    own = mpt.build_mpt_alibi_tensor(6, L)[:, 0]
    close(only(mpt, "slopes")[:, None] * np.arange(1 - L, 1), own)
    falcon = build("falcon", vocab_size=37, hidden_size=24, num_hidden_layers=1, num_attention_heads=6, alibi=True)
    own = sys.modules[type(falcon).__module__].build_alibi_tensor(torch.ones(1, 2), 6, torch.float32)[:, 0]
    close(only(falcon, "slopes"), own[:, 1] / 2)  # the head size is 4


def test_falcon_without_alibi_rotates():
    assert only(
        build("falcon", vocab_size=37, hidden_size=24, num_hidden_layers=1, num_attention_heads=6), "rotary"
    ).size
