"""Decoding: each answer depends only on its source and equals that of transformers."""

import itertools

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    GPT2Config,
    LlamaConfig,
    MarianConfig,
    MistralConfig,
    T5Config,
    XLNetConfig,
)

from decero.errors import UserError
from decero.execution.weight_layout import prepacked_weights
from decero.inference.decode import decode, decode_batches
from decero.inference.decoding_plan import batches_by_length
from decero.models import DeceroDecoderConfig, DeceroEncoderDecoderConfig

pytestmark = pytest.mark.long

OURS = {"vocab_size": 101, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "head_dim": 14}
OURS |= {"intermediate_size": 41, "eos_token_id": 1, "max_position_embeddings": 61}
SIDES = {"encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3, "decoder_attention_heads": 3}
SIDES |= {"encoder_ffn_dim": 41, "decoder_ffn_dim": 41, "d_model": 33, "vocab_size": 101}
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
LLAMA = {
    "vocab_size": 101,
    "hidden_size": 42,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 41,
}
CONFIGS = {
    "ours": lambda: DeceroEncoderDecoderConfig(**OURS, decoder_layers=3),
    "ours relative": lambda: DeceroEncoderDecoderConfig(**OURS, position_embedding_type="relative"),
    "ours causal": lambda: DeceroDecoderConfig(**OURS),
    "ours causal learned": lambda: DeceroDecoderConfig(**OURS, position_embedding_type="learned"),
    "ours causal sliding": lambda: DeceroDecoderConfig(**OURS, sliding_window=7),
    "ours lstm": lambda: DeceroDecoderConfig(**OURS, mixer_type="lstm", position_embedding_type="none"),
    "t5": lambda: T5Config(
        vocab_size=101, d_model=33, d_kv=14, d_ff=41, num_layers=2, num_heads=3, dropout_rate=0.0,
        decoder_start_token_id=0,
    ),
    "t5 unequal": lambda: T5Config(
        vocab_size=101, d_model=33, d_kv=14, d_ff=41, num_layers=2, num_decoder_layers=3, num_heads=3, dropout_rate=0.0,
        decoder_start_token_id=0,
    ),
    "bart": lambda: BartConfig(**SIDES, **IDS, max_position_embeddings=61, forced_eos_token_id=1),
    "marian": lambda: MarianConfig(**SIDES, **IDS, max_position_embeddings=61, decoder_start_token_id=0),
    "gpt2": lambda: GPT2Config(vocab_size=101, n_embd=33, n_layer=2, n_head=3, n_positions=61, **IDS),
    "llama": lambda: LlamaConfig(**LLAMA, num_key_value_heads=1, **IDS),
    "mistral": lambda: MistralConfig(**LLAMA, num_key_value_heads=1, sliding_window=7, **IDS),
    "xlnet": lambda: XLNetConfig(vocab_size=101, d_model=42, n_layer=2, n_head=3, d_inner=41, **IDS),
}  # fmt: skip
QUICK = ("ours", "ours causal sliding", "ours lstm", "t5", "gpt2", "llama")  # `make test-slow` tries the others


def some(names):
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


LENGTHS = (5, 17, 2, 11, 23, 3, 19, 7)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Matrices this small are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name):
    """Build a model with large weights, so that answers and their lengths differ."""
    config, std = CONFIGS[name](), 0.8 if name == "marian" else 0.3
    torch.manual_seed(5)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() > 1 and "position" not in key:
                weight.normal_(std=std)
    return model


@pytest.fixture(scope="module")
def sources():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 101, (length,), generator=generator).tolist() for length in LENGTHS]


def alone(model, source, max_new_tokens, ends=(), **options):
    """Generate with transformers for one source; T5 without cache, as it miscounts layers."""
    model.generation_config.eos_token_id = list(ends) or None
    ids = model.generate(
        torch.tensor([source]), attention_mask=torch.ones(1, len(source), dtype=torch.long),
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=model.config.model_type != "t5", **options,
    )[0].tolist()  # fmt: skip
    return until(ids[1:] if model.config.is_encoder_decoder else ids[len(source) :], ends)


def until(written, ends):
    stop = [place for place, token in enumerate(written) if token in ends]
    return written[: stop[0] + 1] if stop else written


def ends_of(model, sources):
    """Choose two end tokens that give as many answer lengths as possible; also return the answers without an end."""
    free = [alone(model, source, 29) for source in sources]
    tokens = sorted({token for answer in free for token in answer})

    def lengths(ends):
        return {next((i for i, token in enumerate(answer) if token in ends), 29) for answer in free}

    ends = max(itertools.combinations(tokens, 2), key=lambda ends: len(lengths(ends) - {0}))
    model.generation_config.eos_token_id = list(ends)
    return ends, free


@pytest.mark.parametrize("name", some(CONFIGS))
def test_a_mixed_batch_answers_as_each_source_alone(name, sources):
    model = build(name)
    ends, free = ends_of(model, sources)
    expected = [until(answer, ends) for answer in free]
    assert len({len(answer) for answer in expected}) > 2, "every answer ends at once: nothing is tried"
    assert len({tuple(answer) for answer in expected}) > len(sources) // 2
    assert decode(model, sources, max_new_tokens=29) == expected
    assert decode(model, sources, max_new_tokens=29, tokens_per_batch=90) == expected
    assert decode(model, sources[::-1], max_new_tokens=29) == expected[::-1]


@pytest.mark.parametrize("name", some(["ours", "t5", "bart", "gpt2"]))
def test_beams_are_those_of_transformers(name, sources):
    model = build(name)
    ends, _ = ends_of(model, sources)
    expected = [alone(model, source, 13, ends, num_beams=3, length_penalty=2.0) for source in sources]
    found = decode(model, sources, max_new_tokens=13, num_beams=3, length_penalty=2.0, tokens_per_batch=200)
    assert found == expected
    assert found != decode(model, sources, max_new_tokens=13)


@pytest.mark.parametrize("name", [pytest.param("ours", marks=pytest.mark.slow), "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 9},
        {"suppress_tokens": [5, 7, 11]},
        {"forced_eos_token_id": 31},
        {"repetition_penalty": 1.7},  # knows rows by their places, so none may leave
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_the_models_own_settings_hold(name, settings, sources):
    model = build(name)
    ends, free = ends_of(model, sources)
    plain = [until(answer[:17], ends) for answer in free]
    model.generation_config.update(**settings)
    expected = [alone(model, source, 17, ends) for source in sources]
    assert decode(model, sources, max_new_tokens=17) == expected
    assert expected != plain or settings.keys() & {"suppress_tokens", "forced_eos_token_id"}


def test_a_model_that_would_sample_does_not(sources):
    model = build("gpt2")
    expected = decode(model, sources, max_new_tokens=11)
    model.generation_config.update(do_sample=True, temperature=3.0, top_k=50, max_length=20)
    assert decode(model, sources, max_new_tokens=11) == expected
    assert model.generation_config.do_sample, "the model's own settings were changed"


def test_a_model_that_fails_is_one_line_with_its_reason(sources):
    model = build("gpt2")
    model.generation_config.forced_eos_token_id = 500
    with pytest.raises(UserError, match=r"the model cannot generate \(IndexError: .*\); check its generation_config"):
        decode(model, sources, max_new_tokens=3)


def test_a_padding_id_outside_the_vocabulary_does_no_harm(sources):
    model = build("gpt2")
    expected = decode(model, sources, max_new_tokens=5)
    for pad, end in ((-1, 1), (None, 50256), (50256, 1)):
        model.generation_config.pad_token_id, model.generation_config.eos_token_id = pad, end
        found = decode(model, sources, max_new_tokens=5)
        assert found == expected or end != 1


def test_each_source_may_have_a_limit_of_its_own(sources):
    model = build("ours")
    model.generation_config.eos_token_id = None
    whole = decode(model, sources, max_new_tokens=23)
    limits = [3, 23, 1, 7, 11, 2, 5, 13]
    found = decode(model, sources, max_new_tokens=limits)
    assert found == [answer[:limit] for answer, limit in zip(whole, limits, strict=True)]
    limits = [3, 9, 3, 7, 9, 2, 5, 9]
    found = decode(model, sources, max_new_tokens=limits, num_beams=2)
    assert found == [
        decode(model, [source], max_new_tokens=limit, num_beams=2)[0]
        for source, limit in zip(sources, limits, strict=True)
    ]


def test_a_causal_model_writes_no_further_than_its_positions(sources):
    model = build("gpt2")
    model.generation_config.eos_token_id = None
    assert [len(answer) for answer in decode(model, [[7] * 55, [7] * 3], max_new_tokens=20)] == [6, 20]
    with pytest.raises(UserError, match="source 2 has 61 tokens, and the model has only 61 positions"):
        decode(model, [[7], [7] * 61], max_new_tokens=20)


@pytest.mark.parametrize("name", some(["ours causal learned", "gpt2"]))
@pytest.mark.parametrize("num_beams", [1, 2])
def test_padding_takes_no_position_that_an_answer_wants(name, num_beams):
    """Padding short sources to the longest one would leave their answers no positions."""
    model = build(name)
    model.generation_config.eos_token_id = None
    sources = [[7] * 55, *([token] * 3 for token in range(20, 35))]
    found = decode(model, sources, max_new_tokens=20, num_beams=num_beams)
    assert [len(answer) for answer in found] == [6] + [20] * 15
    expected = [decode(model, [source], max_new_tokens=20, num_beams=num_beams)[0] for source in sources]
    assert found == expected


def test_an_empty_source_is_an_error_and_no_sources_give_none():
    model = build("ours")
    with pytest.raises(UserError, match="source 2 is empty"):
        decode(model, [[7], []], max_new_tokens=3)
    with pytest.raises(UserError, match="from 1 to 10,000,000"):
        decode(model, [[7]], max_new_tokens=0)
    with pytest.raises(UserError, match="from 1 to 10,000,000"):
        decode(model, [[7]], max_new_tokens=10**20)
    with pytest.raises(UserError, match="102 beams exceed the 101 tokens of the vocabulary; use fewer beams"):
        decode(model, [[7]], max_new_tokens=3, num_beams=102)
    assert decode(model, [], max_new_tokens=3) == []


def test_progress_counts_sources_and_training_mode_is_kept(sources):
    model, seen = build("ours").train(), []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.5
    found = decode(model, sources, max_new_tokens=5, tokens_per_batch=60, progress=seen.append)
    assert sum(seen) == len(sources)
    assert len(seen) > 2
    assert model.training
    assert found == decode(model.eval(), sources, max_new_tokens=5)


def test_batches_are_limited_by_longest_source_plus_answer():
    lengths, limits = [5, 2, 9, 9, 1], [3, 3, 7, 3, 11]
    batches = batches_by_length(lengths, limits, 24)
    assert sorted(place for batch in batches for place in batch) == [0, 1, 2, 3, 4]
    assert batches == [[2], [3, 0], [1], [4]]
    for batch in batches:
        width = max(lengths[i] for i in batch) + max(limits[i] for i in batch)
        assert len(batch) == 1 or len(batch) * width <= 24
    assert batches_by_length([100], [100], 7) == [[0]]
    assert batches_by_length([8, 5, 5], [2, 5, 5], 99, positions=10) == [[0], [1, 2]]


def test_finished_rows_are_not_computed_further(sources):
    model = build("ours")
    model.generation_config.eos_token_id = None
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    limits = [1, 2, 3, 4, 5, 6, 7, 40]
    list(decode_batches(model, sources, max_new_tokens=limits, tokens_per_batch=10**6))
    assert sum(rows) == sum(limits)


def test_laid_out_weights_give_the_same_and_leave_no_trace(sources):
    model = build("t5").float()
    ids = torch.tensor([sources[1]])
    with torch.no_grad():
        before = model(input_ids=ids, decoder_input_ids=ids).logits
        with prepacked_weights(model) as layers:
            assert layers == 2 * 6 + 2 * 10 + 1  # encoder, decoder, head
            inside = model(input_ids=ids, decoder_input_ids=ids).logits
            with prepacked_weights(model) as again:
                assert again == 0
    torch.testing.assert_close(inside, before, atol=1e-4, rtol=1e-4)
    assert not any("forward" in vars(module) for module in model.modules())
    with prepacked_weights(model):
        model(input_ids=ids, decoder_input_ids=ids).logits.sum().backward()
    assert model.lm_head.weight.grad is not None
    with prepacked_weights(model.bfloat16()) as layers:
        assert layers == 0
