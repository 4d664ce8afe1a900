"""training.compile: equal losses, equal names in checkpoints, few compilations."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers as hf
from accelerate import Accelerator
from safetensors import safe_open
from torch import nn

from decero.config.sections import TrainingSection
from decero.data.packing import Packed
from decero.errors import UserError
from decero.execution.objective import classification, token_loss
from decero.execution.optimize import compile_layers, optimize
from decero.models import DeceroEncoderConfig, DeceroEncoderForSequenceClassification
from decero.training.evaluation import mean_loss

SGD = {"name": "sgd", "learning_rate": 0.5}


@pytest.fixture
def traced(request, monkeypatch):
    """Capture graphs, but compile no kernels: seconds instead of a minute. Return the counters of the compiler."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backend = getattr(request, "param", "eager")  # which does not trace the backward pass
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()


def losses(result, name="loss"):
    return [row[name] for row in result.history if name in row]


def names(folder):
    with safe_open(next(folder.glob("checkpoints/step-*")) / "model.safetensors", framework="pt") as file:
        return sorted(file.keys())


def test_without_a_compiler_training_is_not_compiled(monkeypatch):
    def broken(forward, **settings):
        def called(*inputs):
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found\nmany more lines")

        return called

    monkeypatch.setattr(torch, "compile", broken)
    model = hf.BertModel(hf.BertConfig(hidden_size=6, num_hidden_layers=1, num_attention_heads=1, intermediate_size=5))
    line = compile_layers(model)
    assert line == "compile: off, this machine cannot compile: InvalidCxxCompiler: no working C++ compiler found"
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.long
@pytest.mark.parametrize(
    ("traced", "settings"),
    [
        pytest.param("eager", {}, id="captured"),
        pytest.param("aot_eager", {}, id="stored", marks=pytest.mark.slow),
        pytest.param("aot_eager", {"gradient_checkpointing": True}, id="recomputed", marks=pytest.mark.slow),
    ],
    indirect=["traced"],
)
def test_compiled_layers_train_alike_and_save_the_same_names(fit, traced, rows, objective, tmp_path, settings):
    graphs = []

    def evaluate(model):
        """Evaluate on padded rows, whose shapes vary most."""
        graphs.append(traced["unique_graphs"])
        return mean_loss(Accelerator(cpu=True), model, rows, objective, 7)

    packed = replace(objective, collate=Packed(objective.collate, 64, full=True))
    same = {"objective": packed, "optim": SGD, "save_steps": 6, "eval_strategy": "steps", "eval_steps": 3} | settings
    expected = fit(tmp_path / "eager", evaluate=evaluate, **same)
    compiled = fit(tmp_path / "compiled", evaluate=evaluate, compile=True, **same)
    for loss in ("loss", "eval_loss"):
        assert losses(compiled, loss) == pytest.approx(losses(expected, loss), abs=1e-5)
    assert names(tmp_path / "compiled") == names(tmp_path / "eager")
    assert graphs[:2] == [0, 0]
    assert 1 < graphs[2] <= 4, "a trial, one graph for all layers, one shape for any number of rows"
    assert traced["unique_graphs"] <= 9, "evaluation adds its own graphs once"


@pytest.mark.long
def test_hooks_of_an_objective_act_on_compiled_layers(traced):
    """A classifier of packed texts unpacks the output of the last layer, differently for each batch."""
    sizes = {"vocab_size": 37, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = DeceroEncoderConfig(**sizes, intermediate_size=31, pad_token_id=1, num_labels=5)
    model = DeceroEncoderForSequenceClassification(config).eval()

    def batch_of(lengths):
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        ids = torch.where(real, torch.arange(real.numel()).view(real.shape) % 30 + 3, 1)
        return {"input_ids": ids, "attention_mask": real.long(), "labels": torch.arange(len(lengths)) % 5}

    objective = classification(lambda lengths: batch_of(lengths), "single_label_classification")
    packed = replace(objective, collate=Packed(objective.collate, 16, per_text=("labels",), full=True))
    batches = [[7, 5, 2, 11], [3, 9], [16, 1, 4, 4, 4, 8]]
    expected = [objective.loss(model, objective.collate(lengths)).item() for lengths in batches]
    compile_layers(model)
    assert [packed.loss(model, packed.collate(b)).item() for b in batches] == pytest.approx(expected, abs=1e-5)
    assert traced["unique_graphs"] > 1


@pytest.mark.parametrize(
    "stock", [hf.BertForMaskedLM, pytest.param(hf.T5ForConditionalGeneration, marks=pytest.mark.slow)]
)
def test_stock_layers_are_compiled_too(traced, stock):
    """T5 passes a position bias from layer to layer, and has two kinds of layers."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 31}
    model = stock(stock.config_class(vocab_size=37, decoder_start_token_id=0, **sizes)).eval()
    ids = torch.arange(3, 33).view(3, 10)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    batch |= {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    expected = token_loss(model, batch)
    compile_layers(model)
    torch.testing.assert_close(token_loss(model, batch), expected, rtol=0, atol=1e-4)
    assert traced["unique_graphs"] > 1


def test_packed_rows_have_full_length_only_when_compiled(rows, objective, tiny_model):
    def columns(**settings):
        training = TrainingSection(max_train_steps=1, **settings)
        chosen = optimize(Accelerator(cpu=True), tiny_model(), objective, rows, 48, training, quiet=True)
        short = [row | {"epoch": 0, "index": i} for i, row in enumerate(rows.select([0, 1]))]
        return chosen.collate(short)["input_ids"].shape[1]

    assert columns(compile=True) == 128
    assert columns() < 128


def test_compiling_without_known_layers_is_refused():
    with pytest.raises(UserError, match=r"training\.compile: cannot find the layers of Linear"):
        compile_layers(nn.Linear(2, 2))


@pytest.mark.slow
def test_compiled_kernels_train_like_eager_ones(fit, objective, tmp_path):
    packed = replace(objective, collate=Packed(objective.collate, 64, full=True))
    expected = fit(tmp_path / "eager", objective=packed, optim=SGD)
    assert losses(fit(tmp_path / "compiled", objective=packed, optim=SGD, compile=True)) == pytest.approx(
        losses(expected), abs=1e-5
    )


@pytest.mark.slow
def test_a_resumed_run_compiles_again(fit, tiny_model, tmp_path):
    steps = {"save_steps": 3, "optim": {"schedule": "constant"}, "compile": True}
    whole = fit(tmp_path / "whole", model=tiny_model(0.1), **steps)
    fit(tmp_path / "cut", model=tiny_model(0.1), max_train_steps=3, **steps)
    assert losses(fit(tmp_path / "cut", model=tiny_model(0.1), resume=True, **steps)) == losses(whole)
