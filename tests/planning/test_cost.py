"""Calculated costs of a step, compared with hand counts, torch's FLOP counter and real optimizers."""

import pytest
import torch
import transformers as hf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    MarianConfig,
    T5Config,
)

from decero.config.sections import ModelSection, OptimSection
from decero.config.training_run import PeftSection
from decero.data.sizes import BatchSize
from decero.execution.adapters import add_adapter
from decero.execution.distillation import distilled_masked_lm
from decero.execution.objective import Objective, classification, token_loss
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig, DeceroEncoderDecoderConfig
from decero.planning.cost import SavedActivations, flops, logits_bytes, static_memory
from decero.training.optimizer import build_optimizer

SIZES = {"vocab_size": 211, "hidden_size": 44, "num_hidden_layers": 3, "num_attention_heads": 2}
OURS = SIZES | {"intermediate_size": 92}
T5 = {
    "vocab_size": 211,
    "d_model": 44,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "d_ff": 92,
    "d_kv": 26,
}
MARIAN = {"vocab_size": 211, "d_model": 44, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2}
MARIAN |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 92, "decoder_ffn_dim": 92, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def _one_projection(monkeypatch):
    """torch's own chunks project once more, which saves memory traffic; a forecast counts the useful products."""
    monkeypatch.setattr("decero.execution.linear_cross_entropy._torch_is_faster", lambda hidden, weight: False)


def test_flops_of_a_tiny_encoder_by_hand():
    config = DeceroEncoderConfig(
        vocab_size=11, hidden_size=6, num_hidden_layers=2, num_attention_heads=1, intermediate_size=10,
        attention_bias=False, mlp_bias=False, norm_bias=False, lm_head_transform=False, norm_type="rmsnorm",
    )  # fmt: skip
    model = AutoModelForMaskedLM.from_config(config)
    layer = 4 * 6 * 6 + 2 * 6 * 10 + 2 * 6  # attention, feed-forward, two norms
    rest = model.num_parameters() - 11 * 6 - 2 * layer
    assert rest == 6 + 11  # the last norm, the bias of the scores
    load = BatchSize(examples=2, tokens=13, scored=3, places=14, pairs=2 * 7**2)
    assert flops(model, load) == 6 * (2 * layer + rest) * 14 + 6 * 11 * 6 * 3 + 12 * 2 * 6 * 2 * 7**2
    assert flops(model, load.times(3)) == pytest.approx(3 * flops(model, load))


def batch_of(kind):
    ids_BL = torch.randint(5, 200, (3, 19))
    batch = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
    if kind == "classes":
        return batch | {"labels": torch.tensor([0, 1, 1])}
    labels_BL = torch.where(torch.rand(3, 19) < 0.3, ids_BL, -100)
    if kind == "seq2seq":
        written_BL = torch.randint(5, 200, (3, 7))
        return batch | {"labels": written_BL, "decoder_input_ids": written_BL}
    return batch | {"labels": labels_BL}


def tokens_scored(batch):
    return int((batch["labels"] != -100).sum())


@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "auto_class", "kind"),
    [
        (DeceroEncoderConfig(**OURS), AutoModelForMaskedLM, "tokens"),
        (DeceroEncoderConfig(**OURS, gated_mlp=True, tie_word_embeddings=False), AutoModelForMaskedLM, "tokens"),
        (DeceroEncoderConfig(**OURS, pooling_layer=True), AutoModelForSequenceClassification, "classes"),
        (DeceroDecoderConfig(**OURS), AutoModelForCausalLM, "tokens"),
        (DeceroEncoderDecoderConfig(**OURS, decoder_layers=2), AutoModelForSeq2SeqLM, "seq2seq"),
        (
            DeceroDecoderConfig(**OURS, mixer_type="min_gru", position_embedding_type="none", gated_mlp=True),
            AutoModelForCausalLM,
            "tokens",
        ),
        (BertConfig(**OURS), AutoModelForMaskedLM, "tokens"),
        (T5Config(**T5, decoder_start_token_id=0), AutoModelForSeq2SeqLM, "seq2seq"),
        (MarianConfig(**MARIAN, decoder_start_token_id=0), AutoModelForSeq2SeqLM, "seq2seq"),
    ],
    ids=["encoder", "untied", "classifier", "decoder", "encoder-decoder", "min-gru", "bert", "t5", "marian"],
)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_the_flops_formula_agrees_with_torch(config, auto_class, kind, checkpointing):
    """Within 4 %: the formula counts biases and norms like matrices, torch counts only matrix products.

    With checkpointing within 10 %: torch skips the last product of each layer in the second pass.
    """
    model = auto_class.from_config(config, attn_implementation="eager").train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    objective = Objective(lambda rows: {}, token_loss, tokens_scored)
    if kind == "classes":
        objective = classification(lambda rows: {}, "single_label_classification")
    batch = batch_of(kind)
    objective.loss(model, batch)  # the first call also checks the projection
    load = objective.size(batch, 3)
    with FlopCounterMode(display=False) as counted:
        objective.loss(model, batch).backward()
    assert flops(model, load, per_text=kind == "classes") == pytest.approx(
        counted.get_total_flops(), rel=0.1 if checkpointing else 0.04
    )


MIXTURE = OURS | {"num_key_value_heads": 2, "max_position_embeddings": 64}
SWITCH = {name: T5[name] for name in ("vocab_size", "d_model", "num_layers", "num_decoder_layers", "num_heads", "d_kv")}
SWITCH |= {"d_ff": 92, "num_experts": 5, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
UNLIKE = {
    "mixtral": (hf.MixtralConfig(**MIXTURE, num_local_experts=5, num_experts_per_tok=2), AutoModelForCausalLM),
    "qwen3-moe": (hf.Qwen3MoeConfig(**MIXTURE, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=92,
        head_dim=26), AutoModelForCausalLM),
    "gemma4": (hf.Gemma4TextConfig(**MIXTURE, head_dim=26, global_head_dim=52, hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"], sliding_window=512,
        ) if hasattr(hf, "Gemma4TextConfig") else None, AutoModelForCausalLM),
    "bart": (hf.BartConfig(**MARIAN | {"decoder_start_token_id": 0}), AutoModelForSequenceClassification),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_experts_head_sizes_and_a_decoder_that_reads(name):
    """Mixtures use some experts, Gemma 4 has a head size a layer, Bart's classifier reads the text twice."""
    config, auto_class = UNLIKE[name]
    if config is None:
        pytest.skip("this transformers has no Gemma 4")
    config._experts_implementation = "eager"  # torch does not count the products of its grouped kernel
    model = auto_class.from_config(config, attn_implementation="eager").train()
    batch = batch_of("classes" if name == "bart" else "tokens")
    batch["input_ids"][:, -1] = config.eos_token_id = 2  # Bart pools there
    objective = Objective(lambda rows: {}, token_loss, tokens_scored)
    if name == "bart":
        objective = classification(lambda rows: {}, "single_label_classification")
    objective.loss(model, batch)
    with FlopCounterMode(display=False) as counted:
        objective.loss(model, batch).backward()
    found = flops(model, objective.size(batch, 3), per_text=name == "bart")
    assert found == pytest.approx(counted.get_total_flops(), rel=0.05)


def test_a_teacher_counts_forward_only():
    sizes = OURS | {"intermediate_size": 184}
    student, teacher = (
        AutoModelForMaskedLM.from_config(DeceroEncoderConfig(**each), attn_implementation="eager")
        for each in (OURS, sizes)
    )
    plain = Objective(lambda rows: {}, token_loss, tokens_scored)
    objective = distilled_masked_lm(plain, teacher.requires_grad_(False), 0.5, 2.0, scored_queries=False)
    batch = batch_of("tokens")
    objective.loss(student, batch)
    with FlopCounterMode(display=False) as counted:
        objective.loss(student, batch).backward()
    load = objective.size(batch, 3)
    found = flops(student, load, teacher=objective.teacher)
    assert found == pytest.approx(counted.get_total_flops(), rel=0.04)
    assert found > 1.2 * flops(student, load)


@pytest.mark.parametrize("kind", ["tokens", "classes"])
def test_frozen_weights_have_no_gradient_to_compute(kind):
    """Within 10 %: the first of three layers needs no gradient of its input, which the formula counts."""
    auto = AutoModelForCausalLM if kind == "tokens" else AutoModelForSequenceClassification
    config = DeceroDecoderConfig(**OURS) if kind == "tokens" else DeceroEncoderConfig(**OURS)
    model = auto.from_config(config, attn_implementation="eager").train()
    whole = batch_of(kind)
    objective = Objective(lambda rows: {}, token_loss, tokens_scored)
    if kind == "classes":
        objective = classification(lambda rows: {}, "single_label_classification")
    load = objective.size(whole, 3)
    full = flops(model, load, per_text=kind == "classes")
    add_adapter(model, PeftSection(r=2), ModelSection(name_or_path="some/base"), auto, seed=0)
    objective.loss(model, whole)
    with FlopCounterMode(display=False) as counted:
        objective.loss(model, whole).backward()
    found = flops(model, load, per_text=kind == "classes")
    assert found == pytest.approx(counted.get_total_flops(), rel=0.1)
    assert found < 0.85 * full


def test_a_batch_size_counts_tokens_and_padding():
    batch = batch_of("seq2seq")
    batch["attention_mask"][0, 10:] = 0
    load = Objective(lambda rows: {}, token_loss, tokens_scored).size(batch, 3).times(2)
    assert (load.examples, load.tokens, load.scored, load.places) == (6, 2 * (10 + 19 + 19) + 42, 42, 114)
    assert (load.pairs, load.written_places, load.written_pairs) == (114 * 19, 42, 42 * 7)
    assert load.crossed_pairs == 42 * 19
    assert load.plus(load) == load.times(2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("adamw", {}), ("adamw", {"amsgrad": True}), ("adam", {}), ("sgd", {}), ("sgd", {"momentum": 0.9}),
        ("rmsprop", {}), ("rmsprop", {"momentum": 0.9, "centered": True}), ("adafactor", {}),
        ("momentum", {}), ("muon", {}), ("schedule_free_adamw", {}),
    ],
)  # fmt: skip
def test_optimizer_memory_is_as_forecast(tiny_model, name, arguments):
    model = tiny_model()
    optim = OptimSection(name=name, arguments=arguments)
    optimizer = build_optimizer(model, optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.dim()]
    held = static_memory(model, optim)
    assert held.optimizer == sum(t.numel() * t.element_size() for t in kept)
    assert held.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert held.weights == held.gradients + sum(b.nbytes for b in model.buffers())
    assert held.total == held.weights + held.gradients + held.optimizer


def test_saved_activations_by_hand():
    layer = nn.Linear(5, 11)
    with SavedActivations(layer) as kept:
        layer(torch.randn(7, 5)).tanh().sum()
    assert kept.bytes == 4 * (7 * 5 + 7 * 11)  # the input of the layer and the output of tanh, no weight


def test_logits_bytes_are_those_of_one_chunk(tiny_model):
    load = BatchSize(examples=3, tokens=9, scored=7, places=9, pairs=27)
    assert logits_bytes(tiny_model(), load, 512) == 2 * 4 * 7 * 101
    assert logits_bytes(tiny_model(), load.times(1000), 512) == 2 * 4 * 512 * 101
