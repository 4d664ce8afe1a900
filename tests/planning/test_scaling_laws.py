"""The family of shapes, the choice among them, and the scaling laws at hand-computed points."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from decero.config.sections import ModelSection
from decero.execution.build import read_preset
from decero.planning.scaling_laws import choose, family, plan

PRESETS = Path(__file__).parents[2] / "configs" / "model"


def parameters(name, auto_class, fields):
    with torch.device("meta"):
        return auto_class.from_config(read_preset(str(PRESETS / f"{name}.yaml"), fields)).num_parameters()


@pytest.mark.parametrize(
    ("name", "auto_class"),
    [
        ("modern_encoder_tiny", AutoModelForMaskedLM),
        ("modernbert_base", AutoModelForMaskedLM),
        ("stock_bert_tiny", AutoModelForMaskedLM),
        ("smollm2_135m", AutoModelForCausalLM),
        ("modern_encoder_decoder_tiny", AutoModelForSeq2SeqLM),
    ],
)
def test_scaling_a_preset_changes_only_its_sizes(name, auto_class):
    fields = family(ModelSection(config=str(PRESETS / f"{name}.yaml")))
    sample = [fields[0], fields[len(fields) // 2], fields[-1]]
    counts = [parameters(name, auto_class, each) for each in sample]
    assert counts == sorted(counts)
    base, largest = (
        read_preset(str(PRESETS / f"{name}.yaml"), {}),
        read_preset(str(PRESETS / f"{name}.yaml"), sample[2]),
    )
    same = {"hidden_act", "norm_placement", "norm_type", "position_embedding_type", "gated_mlp", "vocab_size"}
    assert {n: getattr(base, n, None) for n in same} == {n: getattr(largest, n, None) for n in same}
    ratio = base.intermediate_size / base.hidden_size
    assert largest.intermediate_size / largest.hidden_size == pytest.approx(ratio, rel=0.01)
    assert (fields[0]["hidden_size"], fields[-1]["hidden_size"], fields[-1]["num_hidden_layers"]) == (128, 768, 24)
    assert all(each["hidden_size"] == 64 * each["num_attention_heads"] for each in fields)


def test_stated_key_value_heads_follow_the_heads(tmp_path):
    """As many as query heads is no grouping, and yet they are stated: transformers refuses two that do not fit."""
    preset = tmp_path / "llama.yaml"
    preset.write_text(
        "model_type: llama\nvocab_size: 101\nhidden_size: 96\nnum_hidden_layers: 2\nnum_attention_heads: 3\n"
        "num_key_value_heads: 3\nintermediate_size: 200\n"
    )
    for fields in family(ModelSection(config=str(preset))):
        config = read_preset(str(preset), fields)
        assert config.num_key_value_heads == config.num_attention_heads == config.hidden_size // 64


def test_shapes_of_a_family_grow_in_small_steps():
    fields = family(ModelSection(config=str(PRESETS / "modern_encoder_tiny.yaml")))
    layers = [each["num_hidden_layers"] * each["hidden_size"] ** 2 for each in fields]
    steps = [b / a for a, b in itertools.pairwise(layers)]
    assert min(steps) > 1
    assert max(steps) < 1.8


def test_checkpoints_and_other_size_names_have_no_family():
    assert family(ModelSection(name_or_path="some/model")) == []
    assert family(ModelSection(config=str(PRESETS / "stock_gpt2_tiny.yaml"))) == []


def test_the_choice_by_hand():
    """Chinchilla: 70 M parameters need 1.4 G tokens."""
    counts, speeds = [1e6, 10e6, 70e6], [2e6, 1e6, 0.5e6]
    assert choose(1.0, counts, speeds, math.inf) == (0, 2e6)  # too little for any shape: the smallest, until the end
    assert choose(150.0, counts, speeds, math.inf) == (0, 200e6)  # 300 M would fit; the next shape needs 200 M
    assert choose(200.0, counts, speeds, math.inf) == (1, 200e6)
    assert choose(2800.0, counts, speeds, math.inf) == (2, 1.4e9)
    assert choose(1e9, counts, speeds, math.inf) == (2, 5e14)
    assert choose(1e9, counts, speeds, 300e6) == (1, 300e6)  # the limit of the corpus


@given(
    shapes=st.lists(st.tuples(st.floats(1.01, 9), st.floats(1e2, 1e9)), min_size=1, max_size=8),
    seconds=st.tuples(st.floats(0.01, 1e7), st.floats(0.01, 1e7)),
    most_tokens=st.floats(1e4, 1e13),
)
def test_more_time_never_gives_a_smaller_shape_or_fewer_tokens(shapes, seconds, most_tokens):
    """For any speeds, even if a larger shape is faster."""
    counts = [1e5 * math.prod(ratio for ratio, _ in shapes[: i + 1]) for i in range(len(shapes))]
    speeds = [speed for _, speed in shapes]
    less, more = (choose(time, counts, speeds, most_tokens) for time in sorted(seconds))
    assert less[0] <= more[0]
    assert less[1] <= more[1]


@given(
    tokens=st.tuples(st.floats(1e4, 1e11), st.floats(1e4, 1e11)), batch=st.integers(1, 4096),
    compute=st.floats(1e-3, 1e6), growth=st.floats(1, 1e4),
)  # fmt: skip
def test_more_tokens_and_compute_never_give_fewer_tokens(tokens, batch, compute, growth):
    less, more = sorted(tokens)
    plans = plan(less, batch, 120.5, compute), plan(more, batch, 120.5, compute * growth)
    assert plans[0].steps * plans[0].batch <= plans[1].steps * plans[1].batch
    assert plans[0].steps * plans[0].batch * 120.5 >= less * (1 - 1e-12)


def test_the_plan_by_hand():
    assert plan(1e6, 10, 100, 1.0) == (1000, 10, 1.0)
    larger = plan(64e6, 10, 100, 64.0)  # 64 ** 0.3271 = 3.9, 64 ** -0.125 = 0.59
    assert (larger.steps, larger.batch) == (16000, 40)
    assert larger.rate == pytest.approx(0.5946, abs=1e-4)
    assert plan(64e6, 10, 100, 64.0, fixed=True) == (64000, 10, larger.rate)
    assert plan(6e5, 12, 100, 1 / 64) == (2000, 3, 1.0)  # a quarter of the batch; the rate is not raised
    assert plan(6e5, 6, 100, 1 / 64) == (2000, 3, 1.0)  # 3 is odd
    assert plan(6e5, 12, 100, 1 / 64, least=4) == (1000, 6, 1.0)
    assert plan(10, 10, 100, 1e-9).steps == 1
