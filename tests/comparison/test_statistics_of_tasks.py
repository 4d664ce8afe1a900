"""What tasks leave on disk adds up to the metric that they report."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from decero.data.tokenizer import tokenizer_fingerprint
from decero.evaluation.mean_iou import pixel_metrics
from decero.execution.objective import row_nats, token_loss
from decero.tasks import MaskedLM, ObjectDetection, SemanticSegmentation, TokenClassification
from decero.tasks.causal_lm import CausalLM
from decero.tasks.likelihood import baseline_bits_per_byte, ngram_bits


def test_rows_without_a_scored_token_keep_their_place(tmp_path):
    table = {"row": [0, 0, 2], "label": [5, 6, 7], "prediction": [5, 1, 7], "log_probability": [-1.0, -2.0, -0.5]}
    pd.DataFrame(table).to_parquet(tmp_path / "predictions.parquet")
    (tmp_path / "result.json").write_text(json.dumps({"scored_rows": 4}))
    rows, score = MaskedLM(None).example_statistics(tmp_path, "eval_loss")
    assert rows.tolist() == [[3.0, 2.0], [0.0, 0.0], [0.5, 1.0], [0.0, 0.0]]
    assert float(score(rows.sum(axis=0))) == pytest.approx(3.5 / 3)
    right, _ = MaskedLM(None).example_statistics(tmp_path, "eval_accuracy")
    assert right[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_a_perplexity_of_summed_rows_is_that_of_the_text(tmp_path):
    table = {"document": [0, 1], "nats": [6.0, 3.0], "tokens": [4, 1], "bytes": [9, 3]}
    pd.DataFrame(table).to_parquet(tmp_path / "predictions.parquet")
    task = CausalLM(None)
    found = {}
    for metric in task.metrics:
        rows, score = task.example_statistics(tmp_path, metric)
        found[metric] = float(score(rows.sum(axis=0)))
    assert found == pytest.approx({"loss": 9 / 5, "perplexity": math.exp(9 / 5), "bits_per_byte": 9 / math.log(2) / 12})


def test_ngram_bits_of_documents_add_up_to_those_of_the_text():
    train, test = ["the cat sat on the mat", "a dog ran"] * 5, ["the dog sat", "a mat", "ñandú"]
    bits = ngram_bits(train, test)
    assert len(bits) == 3
    total = baseline_bits_per_byte("ngram", train, test) * sum(len(text.encode()) for text in test)
    assert bits.sum() == pytest.approx(total)
    assert bits[2] > bits[1], "letters that train never shows cost more"


def test_a_copy_of_a_tokenizer_is_the_same_and_another_is_not(tokenizer, sentinel_tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    again("long " * 50, truncation=True, max_length=5)  # leaves its traces in the backend
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(sentinel_tokenizer)


@pytest.mark.parametrize("family", ["gpt2", "marian"])
def test_the_losses_of_rows_add_up_to_the_loss_of_the_batch(family):
    """Marian adds a bias to its logits, so it takes the other way."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "pad_token_id": 0, "eos_token_id": 1}
    stacks = {"d_model": 12, "encoder_layers": 1, "decoder_layers": 1, "decoder_start_token_id": 0}
    stacks |= {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("attention_heads", 1), ("ffn_dim", 7))
    }
    fields = {"gpt2": {"n_embd": 12, "n_layer": 1, "n_head": 1}, "marian": stacks}[family]
    head = AutoModelForCausalLM if family == "gpt2" else AutoModelForSeq2SeqLM
    model = head.from_config(AutoConfig.for_model(family, **fields, **sizes)).eval()
    if family == "marian":
        model.final_logits_bias.normal_()
    ids, labels = torch.randint(2, 31, (3, 5)), torch.randint(2, 31, (3, 5))
    labels[0, 2:], labels[2] = -100, -100  # a row of two, of five, of none
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if family == "marian":
        batch["decoder_input_ids"] = ids
    with torch.no_grad():
        rows, total = row_nats(model, batch), token_loss(model, batch)
        alone = token_loss(model, {name: each[:1] for name, each in batch.items()})
    assert rows.sum() == pytest.approx(total.item(), rel=1e-5)
    assert rows[0] == pytest.approx(alone.item(), rel=1e-5)
    assert rows[2] == 0


# --- contenders whose checkpoints have other ids, and more labels


def stored(folder, theirs, **columns):
    folder.mkdir()
    pd.DataFrame(columns).to_parquet(folder / "predictions.parquet")
    (folder / "result.json").write_text(json.dumps({"label_names": theirs}))
    return folder


def test_boxes_of_all_runs_have_the_ids_of_the_task(tmp_path):
    task = SimpleNamespace(corpus=SimpleNamespace(label_names=["cat", "dog"]))
    found = []
    for names in (["cat", "dog"], ["person", "dog", "cat"]):
        ids = [names.index(name) for name in ("dog", "cat", "dog")]
        said = {"predicted_boxes": [[[0, 0, 4, 4], [5, 5, 9, 9]]], "scores": [[0.9, 0.4]]}
        true = {"boxes": [[[0, 0, 4, 4], [5, 5, 9, 9], [1, 1, 3, 3]]], "classes": [ids]}
        folder = stored(tmp_path / names[0], names, predicted_classes=[ids[:2]], **said, **true)
        found.append(ObjectDetection.example_statistics(task, folder, "map_50"))
    assert np.array_equal(found[0].rows, found[1].rows)
    assert found[1].score_of_sum(found[1].rows.sum(axis=0)) == pytest.approx((51 / 101 + 1) / 2, abs=0.01)


def test_pixels_of_classes_that_one_run_knows_have_columns(tmp_path):
    task = SimpleNamespace(class_names=["sky", "sea"])
    same = stored(tmp_path / "same", ["sky", "sea"], right=[[3, 1]], said=[[4, 2]], true=[[3, 3]])
    wider = stored(tmp_path / "wider", ["sea", "road", "sky"], right=[[1, 0, 3]], said=[[1, 1, 4]], true=[[3, 0, 3]])
    statistics = [SemanticSegmentation.example_statistics(task, folder, "mean_iou") for folder in (same, wider)]
    rows = [found.rows for found in statistics]
    assert [each.reshape(3, -1)[:, :3].tolist() for each in rows] == [
        [[3, 1, 0], [4, 2, 0], [3, 3, 0]], [[3, 1, 0], [4, 1, 1], [3, 3, 0]]
    ]  # fmt: skip
    assert rows[0].shape == rows[1].shape
    own = pixel_metrics(np.array([[1, 0, 0, 3], [1, 1, 2, 4], [3, 0, 0, 3]]))
    both = {"right": [[1, 0, 0, 3]], "said": [[1, 1, 2, 4]], "true": [[3, 0, 0, 3]]}
    folder = stored(tmp_path / "two", ["sea", "road", "car", "sky"], **both)
    found = SemanticSegmentation.example_statistics(task, folder, "mean_iou")
    assert found.score_of_sum(found.rows.sum(axis=0)) == pytest.approx(own["mean_iou"]), "each is a class of its own"


def test_entities_of_labels_that_one_run_knows_have_columns(tmp_path):
    task = SimpleNamespace(scheme="BIO", corpus=SimpleNamespace(label_names=["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]))
    true = [[{"start": 0, "end": 3, "label": "PER"}]]
    rows = []
    for said in ("PER", "MISC"):
        found = [[{"start": 0, "end": 3, "label": said}]]
        folder = stored(tmp_path / said, ["O", f"B-{said}"], predicted_entities=found, entities=true)
        found = TokenClassification.example_statistics(task, folder, "f1_macro").rows
        rows.append(found.reshape(3, -1)[:, :3].tolist())
    assert rows == [[[0, 1, 0], [0, 1, 0], [0, 1, 0]], [[0, 0, 0], [0, 0, 1], [0, 1, 0]]]
