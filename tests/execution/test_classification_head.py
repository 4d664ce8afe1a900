"""The labels of a checkpoint, a head for other labels, and padding of decoders."""

import json

import pytest
import torch
from transformers import BertConfig, GPT2Config, GPT2ForSequenceClassification, RobertaConfig
from transformers import BertForSequenceClassification as Bert
from transformers import RobertaForSequenceClassification as Roberta

from decero.config.sections import ModelSection
from decero.execution.classification_head import checkpoint_config, label_names, pad_as, redraw_head
from decero.models import DeceroDetectionConfig, DeceroDetectionForObjectDetection

SIZES = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
HEAD = {"architectures": ["BertForSequenceClassification"]}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, **HEAD}, ["no", "yes"]),
        ({"id2label": {0: "no", 1: "yes"}, "architectures": ["BertForMaskedLM"]}, []),
        ({"num_labels": 2}, []),
        ({"num_labels": 2, **HEAD}, ["LABEL_0", "LABEL_1"]),
        ({"id2label": {0: "no", 2: "yes"}, **HEAD}, ["no", "LABEL_1"]),
    ],
)
def test_the_rows_of_a_head_have_names(fields, names):
    assert label_names(BertConfig(**SIZES, **fields)) == names


def test_random_weights_have_no_labels():
    assert checkpoint_config(ModelSection(config="preset.yaml")) is None
    assert label_names(None) == []
    assert label_names(BertConfig(**SIZES, architectures=None)) == []


def test_a_checkpoint_may_only_have_the_table_of_ids(tmp_path):
    BertConfig(**SIZES, **HEAD).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text()) | {"label2id": {"no": 2, "maybe": 0, "yes": 1}}
    saved.pop("id2label", None)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert label_names(checkpoint_config(ModelSection(name_or_path=str(tmp_path)))) == ["maybe", "yes", "no"]


@pytest.mark.parametrize(("kind", "config"), [(Bert, BertConfig), (Roberta, RobertaConfig)])
def test_a_new_head_depends_on_the_seed_and_spares_the_rest(kind, config):
    model = kind(config(**SIZES, num_labels=3))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    drawn = []
    for seed in (1, 1, 2):
        redraw_head(model, seed)
        drawn.append({name: weight.clone() for name, weight in model.named_parameters()})
    changed = [name for name in before if not torch.equal(before[name], drawn[0][name])]
    assert [name.split(".")[0] for name in changed] == ["classifier"]
    assert drawn[0][changed[0]].shape == (3, 24)
    assert torch.equal(drawn[0][changed[0]], drawn[1][changed[0]])
    assert not torch.equal(drawn[0][changed[0]], drawn[2][changed[0]])


def test_a_new_head_of_a_detector_has_a_row_for_no_object():
    fields = {"hidden_size": 34, "num_attention_heads": 2, "num_queries": 7, "num_hidden_layers": 1}
    model = DeceroDetectionForObjectDetection(DeceroDetectionConfig(**fields, num_labels=3, proposals=True))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    redraw_head(model, 1)
    changed = [name for name, weight in model.named_parameters() if not torch.equal(before[name], weight)]
    drawn = {"class_labels_classifier.weight", "embed_classes.weight", "classifier.weight"}  # the last: of proposals
    assert {".".join(name.split(".")[-2:]) for name in changed if "bias" not in name} == drawn


@pytest.mark.parametrize("own", [None, 5, 0])
def test_a_decoder_pads_as_its_tokenizer(own, tokenizer):
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=97, n_embd=24, n_layer=1, n_head=2, pad_token_id=own))
    pad_as(model, tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0


def test_positions_that_count_from_padding_stay(tokenizer):
    model = Roberta(RobertaConfig(**SIZES, pad_token_id=1))
    pad_as(model, tokenizer)
    assert model.config.pad_token_id == 1
