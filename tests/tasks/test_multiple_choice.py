"""Multiple choice: what is read, and scores that equal those of stock models whatever the batch and the packing."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from transformers import BertConfig, BertForMultipleChoice, GPT2Config, GPT2LMHeadModel, set_seed

from decero.config.finetune_choice import FinetuneMultipleChoice
from decero.config.sections import OptimSection, TrainingSection
from decero.data.choices import read_choices
from decero.data.packing import Packed
from decero.errors import UserError
from decero.models import DeceroEncoderConfig, DeceroEncoderForMultipleChoice
from decero.tasks.base import TaskData
from decero.tasks.multiple_choice import MultipleChoice
from decero.training.evaluation import predict_logits
from decero.training.runs import Run

SIZES = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = {
    "bert": lambda: BertForMultipleChoice(BertConfig(**SIZES, **NO_DROPOUT, initializer_range=0.5)),
    "decero": lambda: DeceroEncoderForMultipleChoice(
        DeceroEncoderConfig(**SIZES, **NO_DROPOUT, initializer_range=0.5, classifier_pooling="mean")
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_embd=24, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5)
    ),
}
WORDS = ["market", "bank", "shares fell", "profit news from tokyo", "the banks"]


@pytest.fixture(scope="module")
def rows():
    """23 rows of two to four choices of other lengths."""
    return [
        {
            "context": "banks in london " * (n % 4), "question": f"what rose {'sharply ' * (n % 3)}on monday",
            "choices": [WORDS[(n + i) % 5] for i in range(2 + n % 3)], "label": n % 2,
        }
        for n in range(23)
    ]  # fmt: skip


@pytest.fixture
def task(tmp_path, tokenizer, rows):
    """A task over a saved tiny model, and that model."""

    def build(kind, **settings):
        set_seed(3)
        model = MODELS[kind]().eval()
        own = copy.deepcopy(tokenizer)  # other tests share it
        own.eos_token = "[SEP]"
        for part in (model, own):
            part.save_pretrained(tmp_path / kind)
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"files": {"train": str(path), "test": str(path)}, "max_length": 48, "context_column": "context"}
        given = {"output": str(tmp_path), "model": {"name_or_path": str(tmp_path / kind)}, "data": data}
        given |= {"training": {"max_train_steps": 1}} | settings
        return MultipleChoice(FinetuneMultipleChoice.parse(given, "test"))

    return build


@pytest.fixture
def run(tmp_path):
    training = TrainingSection(max_train_steps=1, per_device_eval_batch_size=7)
    return Run(Accelerator(cpu=True), training, OptimSection(), tmp_path, progress=False)


def read(task):
    tokens = task.tokenize(task.corpus.splits["test"], "test")[""]
    return TaskData(tokens, {"test": {"": tokens}})


@pytest.mark.parametrize("kind", ["bert", "decero"])
def test_scores_of_a_head_are_those_of_the_model_alone(kind, task, run, rows):
    tuned = task(kind)
    model, data = tuned.build_model().eval(), read(tuned)
    tuned.score(run, model, data)
    table = pd.read_parquet(run.output / "predictions.parquet")
    for row, found in zip(rows, table.to_dict("records"), strict=True):
        first, second = row["context"], [f"{row['question']} {choice}" for choice in row["choices"]]
        pairs = ([first] * len(second), second) if first else ([row["question"]] * len(second), row["choices"])
        batch = tuned.tokenizer(*pairs, padding=True, return_tensors="pt")
        if kind == "decero":
            batch.pop("token_type_ids")
        with torch.no_grad():
            (expected,) = model(**{name: tensor[None] for name, tensor in batch.items()}).logits
        assert found["scores"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert found["prediction"] == int(expected.argmax())
        assert list(found["choices"]) == row["choices"]


@pytest.mark.parametrize("kind", ["bert", "decero"])
def test_packed_choices_give_the_padded_loss_and_gradient(kind, task, run):
    tuned = task(kind)
    model, data = tuned.build_model(), read(tuned)
    padded = tuned.objective(model)
    packed = tuned.optimize(run, model, data)
    assert isinstance(packed.collate, Packed), "also a stock model, whose head flattens masks"
    model.eval()
    rows = [dict(row) for row in data.train.select(range(11))]
    found = []
    for objective in (padded, packed):
        model.zero_grad()
        batch = objective.collate(rows)
        loss = objective.loss(model, batch)
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        assert objective.count(batch) == 11
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in found[0][1].values())
    for name, gradient in found[0][1].items():
        assert float((found[1][1][name] - gradient).abs().max()) <= 1e-5 * max(1.0, largest), name


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_evaluation_is_the_same_for_any_batch_size(kind, task, run):
    tuned = task(kind, **({"objective": {"score": "likelihood"}} if kind == "gpt2" else {}))
    model, data = tuned.build_model().eval(), read(tuned)
    found = []
    for size in (1, 7, 64):
        run.training.per_device_eval_batch_size = size
        found.append((tuned._scores(run, model, data.train), tuned.evaluate(run, model, data.train, data)))
    for scores, metrics in found[1:]:
        np.testing.assert_allclose(scores, found[0][0], atol=2e-5)
        assert metrics == pytest.approx(found[0][1], abs=1e-5)
    assert np.isneginf(found[0][0]).sum() == sum(4 - len(own) for own in data.train["lengths"])


def test_a_likelihood_is_summed_over_the_tokens_of_a_choice(task, run, rows):
    tuned = task("gpt2", objective={"score": "likelihood", "prompt": "{context} : {question} ?"})
    model, data = tuned.build_model().eval(), read(tuned)
    metric, facts = tuned.score(run, model, data)
    table = pd.read_parquet(run.output / "predictions.parquet")
    start = tuned.tokenizer("a")["input_ids"][:-1]
    for row, found in zip(rows, table.to_dict("records"), strict=True):
        sums = []
        for choice in row["choices"]:
            prompt = (
                start + tuned.tokenizer(f"{row['context']} : {row['question']} ?", add_special_tokens=False).input_ids
            )
            ids = tuned.tokenizer(f" {choice}", add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(dim=-1)
            sums.append(sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(ids)))
        assert found["scores"] == pytest.approx(sums, abs=1e-4)
        normalized = [score / len(choice.encode()) for score, choice in zip(sums, row["choices"], strict=True)]
        assert found["prediction_normalized"] == int(np.argmax(normalized))
    assert metric["accuracy"] == (table["prediction"] == table["label"]).mean()
    assert metric["accuracy_normalized"] == (table["prediction_normalized"] == table["label"]).mean()
    assert {n: each["examples"] for n, each in facts["by_choices"].items()} == {"2": 8, "3": 8, "4": 7}


def test_training_by_likelihood_models_the_right_choice(task):
    tuned = task("gpt2", objective={"score": "likelihood"})
    model, data = tuned.build_model().eval(), read(tuned)
    objective = tuned.objective(model)
    rows = [dict(row) for row in data.train.select(range(5))]
    batch = objective.collate(rows)
    scored = [ids[ids >= 0].tolist() for ids in batch["labels"]]
    right = [sum(row["lengths"][: row["labels"]]) for row in rows]
    lengths = [row["lengths"][row["labels"]] for row in rows]
    parts = zip(rows, right, lengths, strict=True)
    assert scored == [row["choices"][begin : begin + length] for row, begin, length in parts]
    assert objective.row_sizes(data.train).most[:5].tolist() == batch["attention_mask"].sum(dim=1).tolist()
    assert torch.isfinite(objective.loss(model, batch))


def test_scoring_without_training_needs_no_train_split(task, run, tmp_path):
    tuned = task("gpt2", objective={"score": "likelihood"})
    tuned.config.data.files.pop("train")
    with pytest.raises(UserError, match="no train split; found test"):
        tuned.read_corpus()
    tuned.config.call.eval_only = True
    data = tuned.load_data(run)
    metric, facts = tuned.score(run, tuned.build_model(), data)
    assert set(metric) == {"accuracy", "accuracy_normalized"}
    assert "train_examples" not in facts


def test_questions_about_one_context_share_a_split(task, tmp_path):
    rows = [{"context": f"text {n // 4}", "question": f"q {n}", "choices": ["x", "y"], "label": 0} for n in range(200)]
    pd.DataFrame(rows).to_json(tmp_path / "all.jsonl", orient="records", lines=True)
    tuned = task("bert")
    tuned.config.data = tuned.config.data.model_copy(
        update={"files": {"train": str(tmp_path / "all.jsonl")}, "validation_fraction": 0.2, "test_fraction": 0.2}
    )
    splits = {split: set(parts[""]["context"][:]) for split, parts in tuned.read_corpus().splits.items()}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 50
    rows[17]["label"] = None
    pd.DataFrame(rows).to_json(tmp_path / "all.jsonl", orient="records", lines=True)
    with pytest.raises(UserError, match=r", row 17: no label"):
        tuned.read_corpus()


# --- what is read


def choices(rows, columns=("choices",), **settings):
    corpus = DatasetDict(train=Dataset.from_list(rows))
    lists, notes = settings.pop("lists", True), []
    how = {"question": "q", "context": None, "choices": None, "label": "label", "say": notes.append} | settings
    return read_choices(corpus, columns=columns, lists=lists, **how)["train"], notes


@pytest.mark.parametrize(
    ("labels", "places", "note"),
    [
        ([0, 1, 2], [0, 1, 2], ""),
        (["0", "1", "2"], [0, 1, 2], ""),
        ([1, 2, 3], [0, 1, 2], "numbers from 1"),
        (["A", "b", "C"], [0, 1, 2], ""),
        (["red", " green", "blue"], [0, 1, 2], ""),
    ],
)
def test_a_label_is_a_number_a_letter_or_a_text(labels, places, note):
    rows = [{"q": "?", "choices": ["red", "green", "blue"], "label": label} for label in labels]
    found, notes = choices(rows)
    assert found["labels"][:] == places
    assert note in "".join(notes)


def test_texts_that_are_numbers_are_read_as_texts():
    rows = [{"q": "?", "choices": ["2", "1"], "label": label} for label in ("1", "2")]
    found, notes = choices(rows)
    assert found["labels"][:] == [1, 0]
    line = "is read as texts; numbers from 1 fit, too, but name other choices; write letters (A, B) if you mean those"
    assert notes == [f"'label' {line}"]
    assert choices([row | {"choices": ["1", "2"]} for row in rows])[1] == [], "both ways name the same choices"
    assert (
        "read as numbers from 0; numbers from 1 fit, too"
        in choices([row | {"choices": list("xyz")} for row in rows])[1][0]
    )


def test_an_empty_column_is_a_choice_less():
    rows = [
        {"q": "?", "a": "red", "b": None, "c": "blue", "label": 2},
        {"q": "?", "a": "x", "b": "y", "c": "", "label": 1},
    ]
    found, _ = choices(rows, columns=("a", "b", "c"), lists=False)
    assert found["choices"][:] == [["red", "blue"], ["x", "y"]]
    assert found["labels"][:] == [1, 1]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"label": 3},
            "train, row 1: label '3' names none of its choices (red | green), read as numbers from 0; correct it",
        ),
        ({"label": None}, "train, row 1: no label"),
        ({"choices": ["red"]}, "train, row 1: 1 choices; give two or more"),
        ({"choices": ["red", "red"]}, "train, row 1: a choice appears twice; remove one"),
        ({"choices": ["red", ""]}, "train, row 1: 1 choices; give two or more"),
        ({"choices": ["red", "", "blue"]}, "train, row 1: a choice has no text; remove it"),
        ({"q": None}, "train, row 1: no text (null) in 'q'"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(row, line):
    good = {"q": "?", "choices": ["red", "green"], "label": 0}
    with pytest.raises(UserError) as refusal:
        choices([good, good | row, good])
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"objective": {"prompt": "{question}"}}, "objective.prompt needs objective.score=likelihood"),
        ({"objective": {"score": "likelihood", "prompt": "say"}}, "write {question} where the question stands"),
        ({"data": {"name": "x", "choices": ["no", "no"]}}, "data.choices: a choice appears twice"),
        ({"data": {"name": "x", "choices_column": ["a"]}}, "give two columns or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, line, task):
    with pytest.raises(UserError) as refusal:
        task("bert", **settings)
    assert line in str(refusal.value)


def test_a_choice_without_room_for_a_question_is_refused(task):
    tuned = task("gpt2", objective={"score": "likelihood"})
    tuned.config.data.max_length = 4
    with pytest.raises(UserError, match=r"leaves no room for a question; raise data\.max_length 4"):
        read(tuned)


def test_batches_of_other_widths_give_one_table(run):
    class Wide:
        def row_sizes(self, rows):
            return type("Sizes", (), {"most": np.arange(5)})

        def collate(self, rows):
            return {"x": torch.tensor([row["x"] for row in rows])}

        def logits(self, model, batch):
            return batch["x"][:, None] * torch.ones(1, int(batch["x"].max()))

    found = predict_logits(run.accelerator, torch.nn.Linear(1, 1), Dataset.from_dict({"x": [1, 2, 3, 4, 5]}), Wide(), 2)
    assert found[0].tolist() == [1.0, *[-np.inf] * 4]
    assert found[4].tolist() == [5.0] * 5
