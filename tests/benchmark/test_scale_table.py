"""Forecasts of runs on accelerators: against hand counts, whole models and published runs."""

import math

import pytest
import torch
from transformers import AutoModelForMaskedLM, SegformerConfig, T5Config

from decero.benchmark.scale_table import activations, computed, load_of, scale_table
from decero.config.benchmark import Benchmark
from decero.config.devices import HALF, find_device
from decero.config.scale import ScaleRun
from decero.config.sections import OptimSection
from decero.errors import UserError
from decero.execution.build import read_preset
from decero.planning.cost import FusedAttention, SavedActivations, static_memory, width_of

TINY = {"hidden_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024}
TINY |= {"vocab_size": 211, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def run_of(preset, **changes):
    model = {"config": f"configs/model/{preset}.yaml", "overrides": changes.pop("overrides", TINY)}
    settings = {"kind": "mlm", "model": model, "device": "a100", "rows": 14, "micro_rows": 7, "length": 128}
    return ScaleRun.model_validate(settings | {"scored": 0.15} | changes)


def test_time_of_a_step_by_hand():
    row = computed("it", run_of("bert_base", devices=2), 0)
    config = read_preset("configs/model/bert_base.yaml", TINY)
    model = AutoModelForMaskedLM.from_config(config)
    embeddings = (211 + 512 + 2) * 512
    weights, places = model.num_parameters() - embeddings, 14 * 128
    products = 6 * (weights * places + 211 * 512 * 0.15 * places + 2 * 3 * 512 * places * 128)
    assert row["flops"] == pytest.approx(products, rel=1e-9)
    reached = 312e12 * 0.7 * 512 / (512 + HALF)
    seconds = products / 2 / reached + 2 * 16 * model.num_parameters() / 2.039e12
    assert row["step_s"] == pytest.approx(seconds, rel=1e-6)
    assert row["tokens_per_s"] == pytest.approx(places / 2 / seconds, rel=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_of_narrow_models_are_those_of_the_whole(checkpointing):
    work = run_of("bert_base", gradient_checkpointing=checkpointing)
    config = read_preset("configs/model/bert_base.yaml", TINY)
    counted = []
    for rows in (1, 3):
        model = AutoModelForMaskedLM.from_config(config).base_model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        ids = torch.randint(5, 211, (rows, 128))
        with torch.autocast("cpu", torch.bfloat16), FusedAttention(), SavedActivations(model) as saved:
            model(input_ids=ids)
        counted.append(saved.bytes)
    whole = (counted[1] - counted[0]) / 2
    found = activations("it", work, load_of(work, work.micro_rows), 0) / 7
    if checkpointing:  # plus one layer that is whole while its backward pass runs
        layer = activations("it", run_of("bert_base"), load_of(work, work.micro_rows), 0) / 7 / 3
        assert 0.7 * layer < found - whole < 1.3 * layer
    else:
        assert found == pytest.approx(whole, rel=0.03)


def test_a_stock_preset_is_computed_as_ours_of_the_same_shape():
    stock, ours = (computed("it", run_of(name), 0) for name in ("stock_bert_tiny", "bert_base"))
    assert stock["parameters"] == pytest.approx(ours["parameters"], rel=0.01)
    assert stock["flops"] == pytest.approx(ours["flops"], rel=0.01)
    assert stock["memory"] == pytest.approx(ours["memory"], rel=0.2)


def test_an_accelerator_saves_no_pairs_of_tokens():
    """On a CPU, dropout of attention saves all of them."""
    q = torch.randn(1, 2, 64, 8, requires_grad=True)
    saved = []
    for mode in (None, FusedAttention()):
        with SavedActivations(torch.nn.Module()) as counted:
            if mode is None:
                torch.nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
            else:
                with mode:
                    torch.nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
        saved.append(counted.bytes)
    assert saved[0] > 2 * 64 * 64 * 4 > saved[1]


def test_shards_share_the_state_and_keep_one_whole_copy():
    alone, shared = (computed("it", run_of("bert_base", devices=7, sharded=s), 0) for s in (False, True))
    model = AutoModelForMaskedLM.from_config(read_preset("configs/model/bert_base.yaml", TINY))
    static = static_memory(model, OptimSection())
    assert alone["memory"] - shared["memory"] == pytest.approx(static.total - static.sharded(7).total)
    assert shared["step_s"] < alone["step_s"]


def test_a_wide_model_uses_more_of_the_peak():
    device = find_device("h100")
    assert device.share(HALF) == device.reached / 2
    assert device.flops("bf16", 4096) == pytest.approx(989e12 * 0.52 * 4096 / (4096 + 700))
    assert device.flops("no", 4096) == pytest.approx(device.flops("bf16", 4096) * 494 / 989)


def test_the_width_of_any_family():
    class Wrapped(torch.nn.Linear):
        config = None

    for config, width in ((T5Config(d_model=44), 44), (SegformerConfig(hidden_sizes=[8, 16, 40]), 40)):
        model = Wrapped(3, 3)
        model.config = config
        assert width_of(model) == width


@pytest.mark.long
def test_published_runs_are_within_a_quarter():
    config = Benchmark.load("configs/benchmark/scale.yaml")
    rows = {name: computed(name, work, 0) for name, work in config.scale.items() if work.tokens_per_s and work.fitted}
    assert len(rows) == 15
    ratios = {name: row["ratio"] for name, row in rows.items()}
    assert all(1 / 1.25 <= ratio <= 1.25 for ratio in ratios.values()), ratios
    held_out = {name: computed(name, config.scale[name], 0) for name in ("bert_base_eager", "gpt2_eager")}
    for row in held_out.values():
        assert abs(math.log(row["memory"] / row["published_memory"])) < math.log(1.25)
    assert "15 of 15 within a factor of 1.25" in scale_table(rows)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"scale.plan_7b_8.device": "h10"}, "unknown accelerator h10; did you mean h100?"),
        ({"scale.plan_7b_8.model.config": "configs/model/gtp2.yaml"}, "gtp2.yaml"),
        ({"only": "[plan_7b_9]"}, "unknown run plan_7b_9; did you mean plan_7b_8?"),
        ({"works.x.kind": "mlm"}, "works"),
    ],
)
def test_a_mistake_in_scale_is_one_line(changes, line):
    words = [f"{key}={value}" for key, value in changes.items()]
    with pytest.raises(UserError) as refused:
        loaded(words)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def loaded(words):
    runs = Benchmark.load("configs/benchmark/scale.yaml", words).forecasts()
    return computed("plan_7b_8", runs["plan_7b_8"], 0)
