"""Labelling words from data to scores: every entity counts once, whatever the batch, the windows and the processes."""

import json
import re
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from transformers import BertConfig, BertForTokenClassification, set_seed

from decero.comparison.simple_baselines import lexicon
from decero.config.finetune_words import FinetuneTokenClassification
from decero.errors import UserError
from decero.inference import extract, load
from decero.tasks import TokenClassification
from decero.training import evaluation
from decero.training.runs import Run

SIZES = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
PLACES = ("london", "tokyo", "monday")


def tagged(text):
    """Tag each place, and the word behind it."""
    words = text.split()
    behind = [False, *(word in PLACES for word in words)]
    return [
        "B-A" if word in PLACES else "I-A" if follows else "O" for word, follows in zip(words, behind, strict=False)
    ]


def entities_of(text):
    found, start = [], 0
    for word in text.split():
        begin = text.index(word, start)
        start = begin + len(word)
        if word in PLACES:
            found.append({"start": begin, "end": start, "label": "day" if word == "monday" else "place"})
    return found


@pytest.fixture
def task(tmp_path, preset, tokenizer_folder, texts):
    def build(form="tokens", rows=None, model=None, **data):
        texts_of = {"train": texts[:23], "validation": texts[23:37], "test": texts[37:]}
        files = {}
        for split, some in texts_of.items():
            if rows and split not in rows:
                continue
            each = [{"tokens": t.split(), "ner_tags": tagged(t)} for t in some]
            if form == "entities":
                each = [{"text": t, "entities": entities_of(t)} for t in some]
            if form == "pos":
                each = [{"tokens": t.split(), "ner_tags": [word[0] for word in t.split()]} for t in some]
            files[split] = str(tmp_path / f"{split}.jsonl")
            lines = [json.dumps(row) for row in (rows or {}).get(split, each)]
            (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        given = {"files": files, "max_length": 16, "stride": 3} | data
        given |= {"entities_column": "entities"} if form == "entities" else {}
        settings = {
            "output": str(tmp_path / "out"), "model": model or {"config": preset}, "data": given,
            "tokenizer": {"name_or_path": tokenizer_folder}, "training": {"max_train_steps": 1},
        }  # fmt: skip
        return TokenClassification(FinetuneTokenClassification.parse(settings, "test"))

    return build


@pytest.fixture
def opened(tmp_path):
    """A run, its data, and a model with large weights."""

    def build(task, eval_batch=64):
        training = task.config.training.model_copy(update={"per_device_eval_batch_size": eval_batch})
        run = Run(Accelerator(cpu=True), training, task.config.optim, tmp_path / "out", seed=0, progress=False)
        run.output.mkdir(exist_ok=True)
        data, model = task.load_data(run), task.build_model()
        torch.manual_seed(7)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.randn_like(weight) * 0.4)
        return run, data, model.eval()

    return build


def gold(task, rows):
    """Log-probabilities that say what the labels of the rows say."""
    labels = np.concatenate([np.asarray(row)[np.asarray(row) >= 0] for row in rows["labels"]])
    return np.log(np.eye(len(task.corpus.label_names))[labels] * 0.9 + 0.01)


@pytest.mark.parametrize("form", ["tokens", "entities", "pos"])
def test_gold_labels_through_windows_score_one(task, opened, form):
    task = task(form)
    _, data, _ = opened(task)
    assert len(data.held_out["test"][""]) > len(task.corpus.splits["test"][""]), "some texts have several windows"
    for split, parts in data.held_out.items():
        texts = task.corpus.splits[split][""]
        metric, labels = task.scores(texts, task.answers(texts, parts[""], gold(task, parts[""])))
        assert set(metric.values()) == {1.0}
        total = sum(len(row) for row in (texts["tags"] if form == "pos" else texts["entities"]))
        assert sum(each["references"] for each in labels.values()) == total


def test_a_reference_that_no_word_can_say_is_missed(task, opened):
    row = {"text": "in londonderry", "entities": [{"start": 3, "end": 9, "label": "place"}]}
    empty = {"text": "", "entities": []}
    fine = {"text": "in london", "entities": [{"start": 3, "end": 9, "label": "place"}]}
    task = task("entities", {"train": [fine], "test": [row, fine, empty]})
    _, data, _ = opened(task)
    texts, rows = task.corpus.splits["test"][""], data.held_out["test"][""]
    metric, _ = task.scores(texts, task.answers(texts, rows, gold(task, rows)))
    assert metric["recall"] == metric["precision"] == 0.5


def test_scores_do_not_depend_on_batch_packing_or_processes(task, opened, monkeypatch):
    task = task("entities")
    found = []
    for size, packed in ((1, False), (7, False), (64, False), (7, True)):
        run, data, model = opened(task, size)
        if packed:
            objective = task.optimize(run, model, data)
            assert objective.packed
        found.append(task.evaluate(run, model, data.validation, data) | task.score(run, model, data).metric)
    parts = []

    class Share:
        device, process_index, num_processes = torch.device("cpu"), 0, 2

    monkeypatch.setattr(evaluation, "evaluating", lambda accelerator, model: nullcontext(model))
    rows, objective = data.held_out["test"][""], task.reported_objective(model)
    alone = evaluation.predict_tokens(run.accelerator, model, rows, objective, 5)
    for rank in (0, 1):
        Share.process_index = rank
        monkeypatch.setattr(evaluation, "gather_object", lambda mine: parts.extend(mine) or mine)
        evaluation.predict_tokens(Share, model, rows, objective, 5)
    monkeypatch.setattr(evaluation, "gather_object", lambda mine: parts)
    np.testing.assert_allclose(evaluation.predict_tokens(Share, model, rows, objective, 5), alone, atol=2e-5)
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-5)
    assert 0 < found[0]["f1"] < 1


@pytest.mark.parametrize(("form", "words"), [("entities", False), ("tokens", True), ("pos", True)])
def test_extract_answers_as_the_evaluation_does(task, opened, form, words, tmp_path):
    task = task(form)
    run, data, model = opened(task)
    task.prepare_to_save(model)
    model.save_pretrained(tmp_path / "model")
    task.tokenizer.save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model", "extract")
    texts, rows = task.corpus.splits["test"][""], data.held_out["test"][""]
    expected = task.answers(texts, rows, task._predict(run, model, rows)[0])
    found = list(extract(loaded, [*texts["text"], ""], words=words, batch_tokens=64, first_window=5))
    assert found.pop() == []
    assert any(found)
    for entities, (tags, wanted), text in zip(found, expected, texts["text"], strict=True):
        if form == "pos":
            assert [each["label"] for each in entities] == tags
            wanted = [each | {"text": text[each["start"] : each["end"]]} for each in entities]
        assert [{**each, "score": pytest.approx(each["score"], abs=1e-4)} for each in wanted] == entities


@pytest.mark.parametrize(
    ("names", "kept"), [(["B-A", "O", "I-B", "I-A", "B-B"], True), (["O", "B-PER", "I-PER"], False)]
)
def test_a_checkpoints_head_is_kept_where_the_labels_agree(task, tmp_path, tokenizer, names, kept):
    set_seed(3)
    config = BertConfig(**SIZES, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    theirs = BertForTokenClassification(config)
    theirs.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    task = task(model={"name_or_path": str(tmp_path / "checkpoint")})
    model = task.build_model()
    assert task.corpus.label_names == tuple(names if kept else ["O", "B-A", "I-A"])
    assert torch.equal(model.classifier.weight, theirs.classifier.weight) == kept
    assert f"the head is {'kept' if kept else 'new'}" in task.corpus.notes[-1]


def test_a_budget_keeps_all_labels_of_train(task, opened):
    task = task("entities", max_train_rows=2)
    assert len(task.corpus.splits["train"][""]) == 2
    assert task.corpus.label_names == ("O", "B-day", "I-day", "B-place", "I-place")
    assert "train: 2 of 23 rows (data.max_train_rows)" in task.corpus.notes


def test_what_texts_add_to_a_metric_adds_up(task, opened):
    for form in ("entities", "pos"):
        built = task(form)
        run, data, model = opened(built)
        scores = built.score(run, model, data)
        assert list(scores.metric) == list(built.metrics)
        for metric, value in scores.metric.items():
            rows, score = built.example_statistics(run.output, metric)
            assert len(rows) == len(built.corpus.splits["test"][""])
            assert score(rows.sum(axis=0)) == pytest.approx(value)
        table = pd.read_parquet(run.output / "predictions.parquet")
        assert table["text"].tolist() == built.corpus.splits["test"][""]["text"][:]
        rows, _ = built.example_statistics(run.output, "f1_macro")
        nothing = {"predicted_entities": [[]] * len(table), "prediction": [list(tags) for tags in table["tags"]]}
        table.assign(**nothing).to_parquet(run.output / "predictions.parquet")
        assert built.example_statistics(run.output, "f1_macro").rows.shape == rows.shape, "two runs are compared"


def test_a_forecast_may_evaluate_some_of_the_rows(task, opened):
    task = task()
    run, data, model = opened(task)
    some = task.evaluate(run, model, data.validation.select(range(3)), data)
    assert some.keys() == task.evaluate(run, model, data.validation, data).keys()


def test_the_lexicon_says_the_most_common_tag(task, tmp_path):
    train = [{"tokens": ["a", "b"], "ner_tags": ["B-X", "I-X"]}] * 2
    train += [{"tokens": ["b", "c"], "ner_tags": ["O", "O"]}, {"tokens": list("ddddd"), "ner_tags": ["O"] * 5}]
    test = [{"tokens": ["a", "b", "new"], "ner_tags": ["B-X", "I-X", "O"]}]
    test += [{"tokens": ["b", "c"], "ner_tags": ["B-X", "O"]}]
    task = task(rows={"train": train, "test": test})
    found = lexicon(task, tmp_path, "test")
    assert found["metric"]["f1"] == 1.0  # a lone I- begins an entity here, since words alone cannot tell
    assert found["metric"]["word_accuracy"] == 4 / 5
    rows, score = task.example_statistics(tmp_path, "f1")
    assert score(rows.sum(axis=0)) == 1.0


def test_mistakes_of_settings_and_data_are_one_line(task):
    one, other = ([{"tokens": ["a"], "ner_tags": [tag]}] for tag in ("B-A", "B-B"))
    both = "give data.entities_column, or data.tokens_column and data.tags_column, not both"
    scheme = "data.scheme: a model that learns data.entities_column has BIO or BIOES tags, not none"
    for line, make in {
        "test, row 0: 'B' is not among the labels of train; rename it": lambda: task(
            rows={"train": one, "test": other}
        ),
        "there is no column 'ner_tag'; did you mean ner_tags?": lambda: task(tags_column="ner_tag"),
        both: lambda: task("entities", tags_column="x"),
        scheme: lambda: task("entities", scheme="none"),
        "holds int64, not text or lists of texts  (setting: data.tokens_column)": lambda: task(
            rows={"train": [{"tokens": [1], "ner_tags": ["B-A"]}]}
        ),
    }.items():
        with pytest.raises(UserError, match=re.escape(line)):
            _ = make().corpus


def test_a_split_may_be_made_from_train(task):
    built = task()
    files = {"train": built.config.data.files["train"]}
    data = built.config.data.model_copy(update={"files": files, "test_fraction": 0.4})
    made = TokenClassification(built.config.model_copy(update={"data": data}))
    sizes = {split: len(parts[""]) for split, parts in made.corpus.splits.items()}
    assert set(sizes) == {"train", "test"}
    assert sum(sizes.values()) == 23
