"""`classify` answers as transformers' pipeline does, also for pairs."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, pipeline

from decero.errors import UserError
from decero.inference import classify, load

SIZES = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TEXTS = ["the market rose", "banks and shares fell on monday", "profit"]
PAIRS = [("the market rose", "banks fell"), ("profit", "shares"), ("", "london gained")]
PROBLEMS = [None, "single_label_classification", "multi_label_classification", "regression"]
NAMES = {
    "placeholders": None,
    "names": ["no", "maybe", "yes"],
    "equal names": ["neg", "neg", "pos"],
    "all equal": ["x", "x", "x"],
}


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    def build(**fields):
        torch.manual_seed(5)
        config = BertConfig(**SIZES, max_position_embeddings=32, initializer_range=0.4, **fields)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return build


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_answers_are_those_of_the_pipeline(problem, outputs, names, checkpoint):
    if outputs == 1 and problem == "single_label_classification":
        pytest.skip("transformers refuses it")
    fields = {"num_labels": outputs}
    if NAMES[names]:
        named = NAMES[names][:outputs]
        fields = {"id2label": dict(enumerate(named)), "label2id": {name: i for i, name in enumerate(named)}}
    folder = checkpoint(problem_type=problem, **fields)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    stock = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, device="cpu")
    for theirs, ours in zip(stock(TEXTS), classify(folder, TEXTS), strict=True):
        assert len(ours) == outputs
        assert list(ours.values()) == pytest.approx([each["score"] for each in theirs], abs=1e-5)
        assert [name.partition(" (")[0] for name in ours] == [each["label"] for each in theirs]


def test_an_output_without_a_name_gets_its_number(checkpoint):
    folder = checkpoint(id2label={0: "no", 5: "yes"}, label2id={"no": 0, "yes": 5})
    assert {frozenset(found) for found in classify(folder, TEXTS)} == {frozenset(("no", "LABEL_1"))}


def test_equal_names_get_their_ids(checkpoint):
    folder = checkpoint(id2label={0: "neg", 1: "neg", 2: "pos"}, label2id={"neg": 1, "pos": 2})
    assert set(next(classify(folder, TEXTS))) == {"neg (0)", "neg (1)", "pos"}


def test_pairs_are_answered_as_by_the_pipeline(checkpoint):
    folder = checkpoint(num_labels=3)
    stock = pipeline("text-classification", model=folder, tokenizer=folder, top_k=None, device="cpu")
    for pair, ours in zip(PAIRS, classify(folder, PAIRS), strict=True):
        theirs = stock({"text": pair[0], "text_pair": pair[1]})
        theirs = theirs[0] if isinstance(theirs[0], list) else theirs
        assert ours == pytest.approx({each["label"]: each["score"] for each in theirs}, abs=1e-5)
    alone = [next(classify(folder, [pair])) for pair in PAIRS]
    assert alone == [pytest.approx(found, abs=1e-5) for found in classify(folder, PAIRS)]
    assert list(classify(folder, [("", " ")])) == [{}]


def test_a_long_pair_is_cut_with_a_warning(checkpoint):
    said = []
    found = next(classify(checkpoint(num_labels=2), [("the market " * 30, "banks fell")], warn=said.append))
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert said[0].startswith("line 1: cut; its 6")


def test_a_model_of_pairs_refuses_single_texts(checkpoint):
    loaded = load(checkpoint(num_labels=2, reads_pairs=True), "classify")
    assert len(list(classify(loaded, PAIRS))) == 3
    with pytest.raises(UserError, match="it reads pairs of texts, and line 2 is a single one"):
        list(classify(loaded, [PAIRS[0], "the market rose"]))
    with pytest.raises(UserError, match="line 1: a pair has 2 texts, not 3"):
        list(classify(loaded, [("a", "b", "c")]))


def test_a_model_of_single_texts_warns_of_pairs(checkpoint):
    said = []
    assert len(list(classify(checkpoint(num_labels=2, reads_pairs=False), PAIRS, warn=said.append))) == 3
    assert len(said) == 1
    assert said[0].endswith("was fine-tuned on single texts, not on pairs")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("abc", "texts: give a list of texts, not a str"),
        ({"a": 1}, "texts: give a list of texts, not a dict"),
        (None, "texts: give a list of texts, not a NoneType"),
        ([{"text": "good", "text_pair": "bad"}], "line 1: {.* is no text; give a text, or leave it out"),
        (["a", None], "line 2: None is no text"),
        ([("a", None)], "line 1: None is no text"),
        ([b"ab"], "line 1: b'ab' is no text"),
        ([("\ud800", "a")], "line 1: half a character"),
        (["a", ("b", "c")], "line 2: give only texts, or only pairs of texts"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(checkpoint, given, said):
    with pytest.raises(UserError, match=said):
        list(classify(checkpoint(num_labels=2), given))
