"""Plans for tensor and pipeline parallelism: their modules exist, and two processes compute what one does."""

import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from decero.models import DeceroDecoderConfig, DeceroEncoderConfig, DeceroEncoderDecoderConfig

SHAPES = {
    "llama-like": (AutoModelForCausalLM, DeceroDecoderConfig, {"gated_mlp": True, "num_key_value_heads": 1}),
    "gpt-like": (AutoModelForCausalLM, DeceroDecoderConfig, {"position_embedding_type": "learned"}),
    "bert-like": (AutoModelForMaskedLM, DeceroEncoderConfig, {"norm_placement": "post", "embedding_norm": True}),
    "lstm": (AutoModelForCausalLM, DeceroDecoderConfig, {"mixer_type": "lstm", "position_embedding_type": "none"}),
    "relative": (AutoModelForMaskedLM, DeceroEncoderConfig, {"position_embedding_type": "relative"}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_rule_of_a_plan_names_a_module(shape, make_config):
    auto, config_class, slots = SHAPES[shape]
    model = auto.from_config(make_config(config_class, **{"hidden_size": 34, **slots}))
    names = {re.sub(r"\d+", "*", name): module for name, module in model.named_modules()}
    assert model.tp_plan.keys() <= names.keys()
    cut = {name for name, how in model.tp_plan.items() if how in ("colwise", "rowwise")}
    inside = {name for name, module in names.items() if isinstance(module, nn.Linear) and "layers.*" in name}
    whole = {"lstm": "mixer", "relative": "self_attn"}.get(shape, "nothing")
    assert cut == {name for name in inside if whole not in name}
    head = {name for name, how in model.tp_plan.items() if how == "colwise_gather_output"}
    assert (len(head), model.tp_plan["model.embed_tokens"]) == (1, "embedding_rowwise")  # tied: one tensor, cut alike
    assert set(model.pp_plan or {}) <= names.keys()
    assert "base_model_tp_plan" not in model.config.to_dict()
    if shape == "llama-like":
        assert [name.split(".")[-1] for name in model.pp_plan] == ["lm_head", "embed_tokens", "layers", "norm"]


@pytest.mark.parametrize(
    ("config_class", "slots", "tensor", "pipeline"),
    [
        (DeceroDecoderConfig, {}, True, True),
        (DeceroDecoderConfig, {"position_embedding_type": "relative"}, True, False),
        (DeceroDecoderConfig, {"mixer_type": "conv", "position_embedding_type": "none"}, True, False),
        (DeceroDecoderConfig, {"position_embedding_type": "learned"}, True, False),  # a stage would add them again
        (DeceroDecoderConfig, {"scale_embeddings": True}, True, False),
        (DeceroEncoderConfig, {"type_vocab_size": 2}, True, False),
        (DeceroEncoderConfig, {"embedding_size": 23}, True, False),
        (DeceroEncoderDecoderConfig, {}, False, False),  # stock ones have none either
    ],
)
def test_only_shapes_that_can_be_cut_have_a_plan(config_class, slots, tensor, pipeline, make_config):
    config = make_config(config_class, **slots)
    assert (config.base_model_tp_plan is not None, config.base_model_pp_plan is not None) == (tensor, pipeline)


PARALLEL = """
import sys, torch, transformers
from transformers.distributed import DistributedConfig
import decero.models
auto, folder, way = getattr(transformers, sys.argv[1]), sys.argv[2], sys.argv[3]
ids = torch.arange(1, 12)[None]
with torch.no_grad():
    cut = auto.from_pretrained(folder, distributed_config=DistributedConfig(**{way: 2})).eval()(ids).logits
    whole = auto.from_pretrained(folder).eval()(ids).logits
cut = cut.full_tensor() if hasattr(cut, "full_tensor") else cut
torch.testing.assert_close(cut, whole, atol=3e-5, rtol=0)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "way"), [*((shape, "tp_size") for shape in SHAPES), ("llama-like", "pp_size")])
def test_two_processes_compute_what_one_does(shape, way, make_config, randomize, tmp_path):
    fields = pytest.importorskip("transformers.distributed").DistributedConfig.__dataclass_fields__
    if way not in fields:
        pytest.skip(f"this transformers has no {way}")
    auto, config_class, slots = SHAPES[shape]
    sizes = {"vocab_size": 38, "num_attention_heads": 2, "hidden_size": 28, "intermediate_size": 42}
    slots = {**slots, **({"num_key_value_heads": 2} if "num_key_value_heads" in slots else {})}
    randomize(auto.from_config(make_config(config_class, **sizes, **slots))).save_pretrained(tmp_path)
    (tmp_path / "run.py").write_text(PARALLEL)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += [str(tmp_path / "run.py"), auto.__name__, str(tmp_path), way]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_unknown_arguments_are_refused_inside_kwargs_too(make_config):
    model = AutoModelForCausalLM.from_config(make_config(DeceroDecoderConfig))
    ids = torch.arange(5)[None]
    torch.testing.assert_close(model(ids, kwargs={}).logits, model(ids).logits)
    with pytest.raises(TypeError, match="does not read colour"):
        model(ids, kwargs={"colour": 3})
