"""The bias section of a card: of the same weights, whole, without markup of others."""

import hashlib
import json

import pytest

from decero.errors import UserError
from decero.hub.bias_section import bias_lines, read_bias
from decero.hub.card import model_card, plain
from decero.hub.card_words import words_in

PART = {"share": [0.625, 0.5, 0.75], "verdict": "no difference shown"}
ENTRY = {"set": "crows_pairs", "category": "age <b>", "probes": 59, "plain": PART, "corrected": PART}


@pytest.fixture
def folder(tmp_path):
    """A model folder of a run, with the record of its probes beside it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "bias").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"weights")
    record = {"categories": [ENTRY], "limits": ["It shows little."], "command": "x /home/me/secret/y.yaml"}
    record["weights"] = {weights.name: hashlib.sha256(b"weights").hexdigest()}
    (tmp_path / "bias" / "result.json").write_text(json.dumps(record))
    return tmp_path / "model"


def files(folder):
    return {"model.safetensors": folder / "model.safetensors"}


def test_the_section_says_shares_verdicts_and_limits(folder):
    record = read_bias(folder, files(folder))
    assert "/home/me" not in json.dumps(record)
    text = bias_lines(record, plain, words_in("en"))
    shown = "62.5 [50.0, 75.0] | no difference shown |"
    assert f"| crows_pairs | age &#60;b&#62; | 59 | {shown} {shown}" in text
    assert "- It shows little." in text
    card = model_card("me/x", {"model_type": "bert", "architectures": ["BertForMaskedLM"]}, None, None, bias=record)
    assert text in card
    assert card.index("## What was measured") < card.index("## Bias probes") < card.index("## Training data")
    assert "languages, bias and safety were not" not in card
    spanish = model_card("me/x", {"model_type": "bert"}, None, None, bias=record, languages=["es"])
    assert "## Pruebas de sesgo\n\nParte de las pruebas" in spanish
    assert f"| crows_pairs | age &#60;b&#62; | 59 | {shown} {shown}" in spanish
    without = model_card("me/x", {"model_type": "bert", "architectures": ["BertForMaskedLM"]}, None, None)
    assert "Bias probes" not in without
    assert "bias and safety were not measured." in without


def test_a_model_without_probes_has_no_section(folder):
    (folder.parent / "bias" / "result.json").unlink()
    assert read_bias(folder, files(folder)) is None


def test_a_record_of_other_weights_is_refused(folder):
    (folder / "model.safetensors").write_bytes(b"newer weights")
    with pytest.raises(UserError, match=r"the probes measured other weights than model\.safetensors; run"):
        read_bias(folder, files(folder))


def test_the_record_of_an_adapter_is_not_that_of_its_base(folder):
    path = folder.parent / "bias" / "result.json"
    record = json.loads(path.read_text())
    record["weights"]["adapter_model.safetensors"] = hashlib.sha256(b"adapter").hexdigest()
    path.write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"the probes measured an adapter .adapter_model.safetensors., which is not here"
    ):
        read_bias(folder, files(folder))
    (folder / "adapter_model.safetensors").write_bytes(b"adapter")
    assert read_bias(folder, files(folder) | {"adapter_model.safetensors": folder / "adapter_model.safetensors"})


def test_a_link_to_probes_elsewhere_is_refused(folder, tmp_path):
    (folder.parent / "bias").rename(tmp_path / "elsewhere")
    (folder.parent / "bias").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="this is a link, which is not followed"):
        read_bias(folder, files(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"categories": []}, {"categories": [ENTRY | {"plain": None}]}, {"limits": [7]}, {"weights": []},
        {"categories": [ENTRY | {"corrected": PART | {"share": [0.5, "x", 1]}}]},
        {"categories": [ENTRY | {"probes": True}]}, {"categories": [ENTRY | {"set": ["x"]}]}, {"weights": {"a": 7}},
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_line(folder, change):
    path = folder.parent / "bias" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="damaged: parts of the record of bias probes are missing"):
        read_bias(folder, files(folder))
