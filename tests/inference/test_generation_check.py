"""The generation check warns of a lost cache only, and changes nothing."""

import copy

import pytest
import torch
from accelerate import Accelerator
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    LlamaConfig,
    MarianConfig,
    T5Config,
    XLNetConfig,
)

from decero.config.sections import OptimSection, TrainingSection
from decero.inference.generation_check import TOKENS, _gaps, check_generation
from decero.models import DeceroDecoderConfig, DeceroEncoderDecoderConfig
from decero.models.compatibility import NAMES
from decero.tasks.finish import warn_of_generation
from decero.training.runs import Run

SIZES = {"vocab_size": 101, "hidden_size": 42, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZES |= {"intermediate_size": 41, "max_position_embeddings": 61}
IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
SIDES = {"encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3, "decoder_attention_heads": 3}
SIDES |= {"encoder_ffn_dim": 41, "decoder_ffn_dim": 41, "d_model": 33, "vocab_size": 101}
CONFIGS = {
    "ours": lambda: DeceroDecoderConfig(**SIZES, **IDS),
    "ours learned": lambda: DeceroDecoderConfig(**SIZES, **IDS, position_embedding_type="learned"),
    "ours sliding": lambda: DeceroDecoderConfig(**SIZES, **IDS, sliding_window=3),
    "ours conv": lambda: DeceroDecoderConfig(**SIZES, **IDS, mixer_type="conv", position_embedding_type="none"),
    "ours seq2seq": lambda: DeceroEncoderDecoderConfig(**SIZES, **IDS),
    "gpt2": lambda: GPT2Config(vocab_size=101, n_embd=33, n_layer=2, n_head=3, n_positions=61, **IDS),
    "llama": lambda: LlamaConfig(**SIZES, **IDS),
    "t5": lambda: T5Config(
        vocab_size=101, d_model=33, d_kv=14, d_ff=41, num_layers=2, num_heads=3, decoder_start_token_id=0
    ),
    "marian": lambda: MarianConfig(**SIDES, **IDS, max_position_embeddings=61, decoder_start_token_id=0),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Matrices this small are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(config, std=0.3):
    torch.manual_seed(5)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "position" not in name:
                weight.normal_(std=std)
    return model


def forget(model):
    """Make a decoder ignore the cache, as if it came under an unknown name."""
    decoder = model.get_decoder() if model.config.is_encoder_decoder else model.base_model
    read = decoder.forward

    def forward(*args, **kwargs):
        return read(
            *args[:3], *(None for _ in args[3:4]), *args[4:], **{n: kwargs[n] for n in kwargs if n not in NAMES}
        )

    decoder.forward = forward
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_a_healthy_model_gives_no_warning(name):
    assert check_generation(build(CONFIGS[name]())) is None
    assert check_generation(build(CONFIGS[name](), std=0.02)) is None, "untrained"


@pytest.mark.parametrize("name", ["ours", "ours learned", "ours seq2seq", "gpt2", "llama", "t5"])
def test_a_model_that_loses_its_cache_gives_one_warning_line(name):
    said = check_generation(forget(build(CONFIGS[name]())))
    assert said is not None
    assert "the model writes different text with its cache than without" in said
    assert "\n" not in said


def test_generation_settings_do_not_change_the_check():
    model = build(CONFIGS["ours"]())
    every = list(range(101))
    for settings in ({"suppress_tokens": every[5:60]}, {"eos_token_id": every}, {"num_beams": 3, "do_sample": True}):
        whole, broken = copy.deepcopy(model), forget(copy.deepcopy(model))
        for each in (whole, broken):
            each.generation_config.update(**settings)
        assert check_generation(whole) is None, settings
        assert check_generation(broken) is not None, settings


def test_scores_equal_up_to_rounding_give_no_warning():
    model = build(CONFIGS["ours"]()).eval()
    model.generation_config.eos_token_id = None
    logits = model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    best, second = logits.topk(2).indices.tolist()
    with torch.no_grad():  # two tokens of one embedding have one score
        model.lm_head.weight[second] = model.lm_head.weight[best]
    assert _gaps(model, [5, 6, 7], [best]) == [0] == _gaps(model, [5, 6, 7], [second])
    worst = int(logits.argmin())
    assert _gaps(model, [5, 6, 7], [worst])[0] > 1


def test_a_model_that_raises_or_gives_nan_gives_a_warning():
    model = build(CONFIGS["ours"]())
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    assert "NaN" in check_generation(model)
    model.model.forward = lambda *args, **kwargs: 1 / 0
    assert "does not generate (ZeroDivisionError: division by zero)" in check_generation(model)


@pytest.mark.parametrize("make", [
    lambda: BertForMaskedLM(BertConfig(**SIZES)),
    lambda: build(XLNetConfig(vocab_size=101, d_model=42, n_layer=2, n_head=3, d_inner=41, **IDS)),
    lambda: build(DeceroDecoderConfig(**SIZES | {"max_position_embeddings": 1}, **IDS)),
], ids=["no generation", "another memory", "one position"])  # fmt: skip
def test_models_that_cannot_be_checked_are_skipped(make):
    assert check_generation(make()) is None


@pytest.mark.parametrize("limit", [2, 5, 7])
def test_few_positions_are_enough(limit):
    fields = SIZES | {"max_position_embeddings": limit}
    assert check_generation(build(DeceroDecoderConfig(**fields, **IDS, position_embedding_type="learned"))) is None


@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_no_trace(training):
    model = build(CONFIGS["ours"]()).train(training)
    settings, state = copy.deepcopy(model.generation_config), torch.get_rng_state()
    weights = copy.deepcopy(model.state_dict())
    check_generation(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training is training
    assert model.generation_config.to_dict() == settings.to_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


def test_it_takes_nine_forward_passes():
    model, passes = build(CONFIGS["ours"]()), []
    model.model.register_forward_pre_hook(lambda module, args: passes.append(1))
    check_generation(model)
    assert len(passes) == TOKENS + 1


def test_a_run_warns_on_standard_error(capsys, tmp_path):
    model, training = forget(build(CONFIGS["ours"]())), TrainingSection(max_train_steps=1)
    run = Run(Accelerator(cpu=True), training, OptimSection(), tmp_path)
    warn_of_generation(run, model)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: generation check: the model writes different text")
    warn_of_generation(run, build(CONFIGS["ours"]()))
    assert capsys.readouterr().err == ""


def test_weights_in_16_bits_have_a_larger_tolerance():
    model = build(CONFIGS["ours"]()).to(torch.bfloat16)
    assert check_generation(model) is None
    assert check_generation(forget(model)) is not None
