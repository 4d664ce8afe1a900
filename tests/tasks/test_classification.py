"""A classifier keeps what its checkpoint knows: labels, head, padding; and it says what it guesses."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from decero.config.finetuning import FinetuneClassification
from decero.errors import UserError
from decero.inference import classify, load
from decero.tasks.classification import Classification
from decero.tasks.label_predictions import renumbered

SIZES = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
STEPS = {"max_train_steps": 1, "global_batch_size": 2, "per_device_batch_size": 2}
NLI = ["contradiction", "neutral", "entailment"]


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    def build(names, **fields):
        set_seed(3)
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        model = BertForSequenceClassification(BertConfig(**SIZES, **labels, initializer_range=0.5, **fields))
        model.save_pretrained(tmp_path / "checkpoint")
        tokenizer.save_pretrained(tmp_path / "checkpoint")
        return tmp_path / "checkpoint"

    return build


@pytest.fixture
def task(tmp_path):
    def build(folder, labels, texts=None, **settings):
        texts = texts or [f"the market rose {'sharply ' * i}on monday" for i in range(len(labels))]
        path = tmp_path / "train.jsonl"
        rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"files": {"train": str(path), "test": str(path)}, "max_length": 48} | settings.pop("data", {})
        given = {
            "output": str(tmp_path / "out"),
            "model": {"name_or_path": str(folder)},
            "data": data,
            "training": STEPS,
        } | settings
        return Classification(FinetuneClassification.parse(given, "test"))

    return build


def head(model):
    return model.classifier.weight.detach()


def kept_head(folder, built):
    return torch.equal(head(AutoModelForSequenceClassification.from_pretrained(folder)), head(built))


@pytest.mark.parametrize("labels", [["entailment", "contradiction", "neutral"], ["Neutral", "Entailment"]])
def test_labels_keep_the_ids_of_the_checkpoint(labels, checkpoint, task):
    folder = checkpoint(NLI)
    tuned = task(folder, labels)
    model = tuned.build_model()
    assert [name.lower() for name in tuned.corpus.label_names] == NLI
    assert [NLI[i] for i in tuned.corpus.splits["train"][""]["labels"]] == [label.lower() for label in labels]
    assert {i: name.lower() for i, name in model.config.id2label.items()} == dict(enumerate(NLI))
    assert kept_head(folder, model)
    assert "the classification head is kept, and its labels keep their ids" in tuned.corpus.notes[0]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (NLI, ["no", "maybe", "yes"]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["no", "maybe", "yes"]),
        (["neg", "neg", "pos"], ["neg", "pos", "neu"]),
        (NLI, ["contradiction", "neutral", "entailment", "other"]),
    ],
)
def test_a_head_for_other_labels_is_new_and_a_line_says_so(names, labels, checkpoint, task):
    folder = checkpoint(names)
    tuned = task(folder, labels)
    model = tuned.build_model()
    assert tuned.corpus.label_names == tuple(sorted(labels))
    assert head(model).shape == (len(labels), 24)
    assert not kept_head(folder, model)
    assert "the classification head is new, because its labels are others" in tuned.corpus.notes[0]
    assert torch.equal(head(model), head(tuned.build_model()))  # a function of the seed


def test_a_model_of_other_labels_is_not_scored_alone(checkpoint, task):
    tuned = task(checkpoint(NLI), ["no", "yes"])
    tuned.config.call.eval_only = True
    with pytest.raises(
        UserError, match=r"--eval-only: .* has the labels contradiction, neutral, entailment, and the data"
    ):
        tuned.build_model()


def test_numbers_are_the_ids_of_a_head_without_names(checkpoint, task):
    folder = checkpoint(["LABEL_0", "LABEL_1"])
    tuned = task(folder, [1, 0, 1])
    assert kept_head(folder, tuned.build_model())
    assert list(tuned.corpus.splits["train"][""]["labels"]) == [1, 0, 1]


def test_a_comparison_numbers_all_runs_alike():
    theirs, names = ["c", "extra", "a"], ("a", "b", "c")
    assert renumbered(np.array([0, 2, 1]), theirs, names).tolist() == [2, 0, 3]
    for kind in (np.int64, np.float64):  # labels come as floats from a file, predictions as integers
        flags = renumbered(np.array([[1, 0, 1], [0, 1, 0]], dtype=kind), theirs, names)
        assert flags.tolist() == [[1, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("pairs", [True, False])
def test_the_checkpoint_records_whether_it_reads_pairs(pairs, checkpoint, task, tmp_path):
    folder = checkpoint(NLI)
    tuned = task(folder, NLI, data={"text_pair_column": "label"} if pairs else {})
    model = tuned.build_model()
    tuned.prepare_to_save(model)
    model.save_pretrained(folder)
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.reads_pairs is pairs


@pytest.mark.parametrize("choice", ["balanced", {"yes": 2.0}])
def test_class_weights_act_in_training_and_not_in_reports(choice, checkpoint, task):
    tuned = task(checkpoint(NLI), ["no", "no", "no", "yes"], objective={"class_weights": choice})
    model = tuned.build_model().eval()
    rows = [dict(row) for row in tuned.tokenize(tuned.corpus.splits["train"], "train")[""]]
    plain = tuned.reported_objective(model)
    batch = plain.collate(rows)
    weights = torch.tensor({"balanced": [2 / 3, 2.0]}.get(str(choice), [1.0, 2.0]))
    logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    trained = tuned.objective(model)
    mean = trained.loss(model, batch) / trained.count(batch)
    torch.testing.assert_close(mean, torch.nn.functional.cross_entropy(logits, batch["labels"], weights))
    assert plain.count(batch) == 4
    torch.testing.assert_close(plain.loss(model, batch) / 4, torch.nn.functional.cross_entropy(logits, batch["labels"]))


def test_class_weights_without_classes_to_weigh_are_refused(checkpoint, task):
    folder = checkpoint(NLI)
    with pytest.raises(UserError, match=r"objective.class_weights: a regression has no classes"):
        task(folder, [1, 2], objective={"class_weights": "balanced", "problem_type": "regression"})
    tuned = task(folder, ["no", "yes"], objective={"class_weights": {"yess": 2.0}})
    with pytest.raises(UserError, match=r"label 'yess' is not in train; did you mean yes\?"):
        tuned.objective(tuned.build_model())


# --- padding and special tokens


def byte_level(specials, **named):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the soup was warm"] * 9, trainer)
    if "pad_token" not in named and "<s>" in specials:
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


GPT2 = ["<|endoftext|>", "<unused>"]
PADDING = {  # padding of the tokenizer and of the configuration -> the one that is used
    "nowhere": (None, None, 0),
    "in the tokenizer": ("<unused>", None, 1),
    "in the configuration": (None, 1, 1),
    "as the end token": ("<|endoftext|>", 0, 0),
    "two different ones": ("<unused>", 0, 1),
    "outside the tokenizer": (None, 400, 0),
}


@pytest.mark.parametrize("where", PADDING)
def test_a_decoder_classifies_whatever_its_padding(where, task, tmp_path):
    own, configured, used = PADDING[where]
    side = "right" if where == "nowhere" else "left"
    tokenizer = byte_level(
        GPT2, eos_token=GPT2[0], bos_token=GPT2[0], padding_side=side, **({"pad_token": own} if own else {})
    )
    config = GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=2)
    config.pad_token_id = configured
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    texts = ["the soup was warm", "", "the soup", "warm <|endoftext|>", "it was the warm soup"]
    tuned = task(tmp_path / "gpt2", [0, 1, 0, 1, 0], texts)
    model = tuned.build_model().eval()
    assert (tuned.tokenizer.pad_token_id, model.config.pad_token_id) == (used, used)
    rows = [dict(row) for row in tuned.tokenize(tuned.corpus.splits["train"], "train")[""]]
    collate = tuned.objective(model).collate

    def logits(rows):
        batch = {name: tensor for name, tensor in collate(rows).items() if name != "labels"}
        with torch.no_grad():
            return model(**batch).logits

    torch.testing.assert_close(logits(rows), torch.cat([logits([row]) for row in rows]), atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "gpt2")
    tuned.tokenizer.save_pretrained(tmp_path / "gpt2")
    assert AutoTokenizer.from_pretrained(tmp_path / "gpt2").pad_token_id == used
    answers = list(classify(load(tmp_path / "gpt2", "classify"), texts))
    expected = logits(rows).softmax(dim=-1)
    for found, row, text in zip(answers, expected, texts, strict=True):
        assert not text or [found["0"], found["1"]] == pytest.approx(row.tolist(), abs=1e-5)


def test_an_end_token_in_a_text_is_text_for_bart(task, tmp_path):
    tokenizer = byte_level(["<s>", "<pad>", "</s>"], bos_token="<s>", eos_token="</s>")
    tokenizer.pad_token = "<pad>"
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 16))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=512, d_model=16, max_position_embeddings=64, num_labels=2, **sizes, **heads)
    BartForSequenceClassification(config).save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    texts = ["</s> the soup </s>", "the soup was warm", "a <pad> and <s>"]
    tuned = task(tmp_path / "bart", [0, 1, 1], texts)
    model = tuned.build_model()
    rows = [dict(row) for row in tuned.tokenize(tuned.corpus.splits["train"], "train")[""]]
    objective = tuned.objective(model)
    assert torch.isfinite(objective.loss(model, objective.collate(rows)))
    assert [row["input_ids"].count(2) for row in rows] == [1, 1, 1]
    model.save_pretrained(tmp_path / "bart")
    assert all(answer for answer in classify(tmp_path / "bart", texts))
