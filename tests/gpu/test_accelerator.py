"""What a run computes on a GPU: the CPU's numbers, exact resuming, compiled layers, a forecast that holds.

Marked `gpu`, so `make gpu-check` runs them. Those with a `cpu` variant run there in `make test`, as a rehearsal.
"""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    set_seed,
)

from decero.benchmark.batches import Padded
from decero.benchmark.kernels import packed_kernels
from decero.config.benchmark import Workload
from decero.config.sections import OptimSection, TrainingSection
from decero.execution.attention_kernels import choose_attention
from decero.execution.objective import classification, masked_lm
from decero.execution.optimize import compile_layers, pack_if_proven
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig, DeceroEncoderDecoderConfig
from decero.planning.cost import logits_bytes, static_memory
from decero.planning.forecast import saved_activations
from decero.training.data_loader import step_loader
from decero.training.loop import train
from decero.training.runs import Run

SIZES = {"vocab_size": 211, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZES |= {"intermediate_size": 67, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS = {
    "mlm": (AutoModelForMaskedLM, DeceroEncoderConfig, {"position_embedding_type": "learned"}),
    "causal": (AutoModelForCausalLM, DeceroDecoderConfig, {"hidden_act": "gelu_new"}),
    "seq2seq": (
        AutoModelForSeq2SeqLM,
        DeceroEncoderDecoderConfig,
        {"decoder_start_token_id": 0, "position_embedding_type": "relative", "norm_type": "rmsnorm"},
    ),
    "classification": (AutoModelForSequenceClassification, DeceroEncoderConfig, {"num_labels": 2}),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def _exact():
    """Multiply in fp32, not TF32, and leave accelerate's state as it was."""
    AcceleratorState._reset_state(reset_partial_state=True)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
    AcceleratorState._reset_state(reset_partial_state=True)


def built(kind, **fields):
    set_seed(0)
    head, config, special = KINDS[kind]
    return head.from_config(config(**(SIZES | ENDS | special | fields))).train()


def task(kind, config, texts=11):
    work = Workload(kind=kind, model={"config": "unread"}, stock="bert", length=61, mlm_probability=0.3)
    collate = Padded(work, config, seed=5)
    draw = torch.Generator().manual_seed(7)
    lengths = torch.randint(4, 61, (texts,), generator=draw).tolist()
    rows = Dataset.from_list([{"input_ids": torch.randint(3, 211, (n,), generator=draw).tolist()} for n in lengths])
    if kind == "classification":
        return classification(collate, "single_label_classification"), rows
    return masked_lm(collate), rows


def on(device, objective, rows):
    batch = objective.collate([row | {"epoch": 0, "index": i} for i, row in enumerate(rows)])
    return {name: tensor.to(device) for name, tensor in batch.items()}


def loss_and_gradient(kind, device, bf16=False, packed=False, compiled=False):
    """Return the mean loss and all gradients, in fp32 on the CPU."""
    model = built(kind).to(device)
    objective, rows = task(kind, model.config)
    if packed:
        objective, line = pack_if_proven(objective, model, rows, 128, "on")
        assert "attention stays within each text" in line
    if compiled:
        assert compile_layers(model).startswith("compile: ")
    batch = on(device, objective, rows)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
        loss = objective.loss(model, batch) / objective.count(batch)
    loss.backward()
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    return loss.item(), gradient


def assert_near(got, expected, tolerance):
    assert got[0] == pytest.approx(expected[0], rel=tolerance)
    assert float((got[1] - expected[1]).norm() / expected[1].norm()) < tolerance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_cpu(kind, device):
    expected = loss_and_gradient(kind, "cpu")
    assert_near(loss_and_gradient(kind, device, packed=True), expected, 2e-5)
    assert_near(loss_and_gradient(kind, device, bf16=True, packed=True), expected, 0.03)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["mlm", "seq2seq"])
def test_compiled_layers_give_the_same_gradient(kind):
    assert_near(loss_and_gradient(kind, "cuda", packed=True, compiled=True), loss_and_gradient(kind, "cpu"), 2e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_packed_kernels_agree_with_sdpa(device):
    shapes = ((256, 3, False), (256, 3, True))
    records = packed_kernels(torch.device(device), shapes, tokens=512, repeats=1)
    names = {"sdpa", "matmul"} if device == "cpu" else {"sdpa", "flex", "varlen"}
    assert {r["kernel"] for r in records} == names | {"unmasked"}
    for record in records:
        assert "failed" not in record, record
        assert record.get("error", 0) < 0.02, record


@pytest.mark.gpu
def test_a_run_that_flex_attention_serves_takes_it():
    model = built("causal", max_position_embeddings=1024).cuda()
    line = choose_attention(model, torch.device("cuda"), "bf16", row=1024)
    assert line.startswith("attention: flex"), line


@pytest.fixture
def fit_on(tmp_path):
    """Train a tiny model with dropout on a device; return its weights."""

    def fit(device, folder, resume=False, **settings):
        AcceleratorState._reset_state(reset_partial_state=True)
        model = built("mlm", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
        objective, rows = task("mlm", model.config, texts=40)
        chosen = {"max_train_steps": 6, "global_batch_size": 8, "per_device_batch_size": 3, "mixed_precision": "bf16"}
        training = TrainingSection(**(chosen | {"save_steps": 3} | settings))
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16")
        optim = OptimSection(learning_rate=1e-3, schedule="constant")
        run = Run(accelerator, training, optim, tmp_path / folder, seed=4, resume=resume, progress=False)
        result = train(run, model, rows, objective)
        return torch.cat([p.detach().float().cpu().flatten() for p in result.model.parameters()])

    return fit


@pytest.mark.parametrize("device", DEVICES)
def test_a_resumed_run_ends_where_it_would_have(device, fit_on):
    whole = fit_on(device, "whole")
    fit_on(device, "cut", max_train_steps=3)
    assert torch.equal(fit_on(device, "cut", resume=True), whole)


@pytest.mark.gpu
def test_worker_processes_prepare_batches_by_default():
    training = TrainingSection(max_train_steps=3, global_batch_size=4)
    objective, rows = task("mlm", built("mlm").config)
    loader = step_loader(Accelerator(), rows, objective, training, seed=0)
    assert loader.workers == 2
    assert loader.at(0)[0].batch["input_ids"].device.type == "cpu"
    loader.close()


@pytest.mark.gpu
def test_peak_memory_is_near_the_forecast():
    """A model large enough that what libraries keep (a few dozen MB) does not count."""
    fields = {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = DeceroEncoderConfig(**(SIZES | fields | {"intermediate_size": 2048}), **ENDS)
    model = AutoModelForMaskedLM.from_config(config).cuda()
    work = Workload(kind="mlm", model={"config": "unread"}, stock="bert", length=128)
    objective = masked_lm(Padded(work, config, seed=5))
    rows = Dataset.from_list([{"input_ids": [3 + (i + j) % 8000 for j in range(128)]} for i in range(128)])
    batch = on("cuda", objective, rows)
    load = objective.size(batch, len(rows))
    accelerator = Accelerator(mixed_precision="bf16")
    predicted = static_memory(model, OptimSection(name="adamw")).total + logits_bytes(model, load, 4096)
    predicted += saved_activations(accelerator, model, objective, rows, load)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    torch.cuda.empty_cache()
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = objective.loss(model, batch) / load.scored
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert predicted == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.25)
