"""`extract` finds entities in characters, whoever trained the model, and refuses what it cannot answer from."""

import json

import pytest
import torch
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    TokenClassificationPipeline,
)

from decero.errors import UserError
from decero.inference import extract, load
from decero.models import DeceroDecoderConfig

SIZES = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
NAMES = ["O", "B-X", "I-X", "B-Y", "I-Y"]
TEXTS = [
    "The market, (London) rose!",
    "",
    "banks and shares fell on monday 👩\u200d👧 in Tokyo's",
    "rose " * 60,
    "\x00 \u200b",
]


@pytest.fixture
def folder(tmp_path, tokenizer):
    def build(names=NAMES, config=BertConfig, **fields):
        torch.manual_seed(5)
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        made = config(**SIZES, **labels, max_position_embeddings=32, initializer_range=0.7, **fields)
        AutoModelForTokenClassification.from_config(made).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return build


def test_a_stock_models_entities_are_those_of_its_pipeline(folder):
    """Where words are what both split at: the pipeline labels words by their first token, too."""
    path = folder()
    texts = ["the market rose on monday", "banks gained after news from london and tokyo"]
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    pipeline = TokenClassificationPipeline(model=model, tokenizer=tokenizer, aggregation_strategy="first", device="cpu")
    for text, found in zip(texts, extract(path, texts), strict=True):
        theirs = [(e["start"], e["end"], e["entity_group"]) for e in pipeline(text)]
        assert [(e["start"], e["end"], e["label"]) for e in found] == theirs
        assert theirs


def test_tags_of_bilou_are_read_as_those_of_bioes(folder):
    found = []
    for names in (["O", "B-X", "I-X", "L-X", "U-X"], ["O", "B-X", "I-X", "E-X", "S-X"]):
        found.append(list(extract(folder(names), TEXTS)))
    assert found[0] == found[1]
    assert sum(map(len, found[0])) > 5


@pytest.mark.parametrize("config", [BertConfig, DeceroDecoderConfig])
def test_each_text_gets_its_entities_in_characters(folder, config):
    loaded = load(folder(config=config), "extract")
    found = list(extract(loaded, TEXTS, batch_tokens=40))
    assert len(found) == len(TEXTS)
    assert found[1] == []
    assert sum(map(len, found)) > 9
    for text, entities in zip(TEXTS, found, strict=True):
        for each in entities:
            assert text[each["start"] : each["end"]] == each["text"] != ""
            assert each["label"] in ("X", "Y")
            assert 0 < each["score"] <= 1
    again = [entities for text in TEXTS for entities in extract(loaded, [text], batch_tokens=9999)]
    for one, other in zip(found, again, strict=True):
        assert one == [{**each, "score": pytest.approx(each["score"], abs=1e-5)} for each in other]


def test_a_model_of_classes_gives_every_word(folder):
    found = next(extract(folder(["NOUN", "VERB", "PUNCT"]), ["The market, (London) rose!"]))
    assert [each["text"] for each in found] == ["The", "market", ",", "(", "London", ")", "rose", "!"]
    assert {each["label"] for each in found} <= {"NOUN", "VERB", "PUNCT"}


@pytest.mark.parametrize(
    "record", [7, {"scheme": "BIO"}, {"scheme": "X", "words": "text", "max_length": 9, "stride": 1},
               {"scheme": "BIO", "words": "text", "max_length": "9", "stride": 1}],
)  # fmt: skip
def test_a_damaged_record_is_one_line(folder, record):
    path = folder()
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"tagging": record}))
    with pytest.raises(UserError, match=r"config.json: the entry tagging is damaged; remove it"):
        next(extract(path, ["the market"]))


def test_models_that_cannot_answer_are_refused(folder):
    loaded = load(folder(), "extract")
    with torch.no_grad():
        loaded.model.classifier.bias[2] = float("nan")
    with pytest.raises(UserError, match="the model computes NaN or infinity"):
        next(extract(loaded, ["the market rose"]))
    with pytest.raises(UserError, match="this bert model labels words; use decero extract"):
        load(loaded, "classify")
