"""Evaluation counts every example exactly once, at any batch size."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, MobileBertConfig

from decero.data.collators import ClassificationCollator, MaskedLanguageModeling
from decero.errors import UserError
from decero.execution.objective import classification, masked_lm
from decero.models import DeceroEncoderConfig
from decero.training import evaluation
from decero.training.evaluation import mean_loss, predict_logits, predict_masked


@pytest.fixture
def frozen(tokenizer):
    return masked_lm(MaskedLanguageModeling(tokenizer, frozen=True, seed=2))


@pytest.mark.long
def test_the_mean_loss_does_not_depend_on_the_batch_size(rows, frozen, tiny_model):
    model = tiny_model(dropout=0.3).train()  # evaluation must turn dropout off, and on again
    found = [mean_loss(Accelerator(cpu=True), model, rows, frozen, size) for size in (1, 7, 61, 500)]
    assert all(f["scored"] == found[0]["scored"] for f in found)
    assert [f["loss"] for f in found] == pytest.approx([found[0]["loss"]] * 4, rel=1e-5)
    assert model.training


def test_out_of_memory_in_an_evaluation_is_one_line(rows, frozen, tiny_model):
    model = tiny_model()
    model.lm_head.register_forward_hook(lambda *_: torch.empty(2**60))
    with pytest.raises(UserError, match=r"out of memory in an evaluation; lower training\.per_device_eval_batch_size"):
        mean_loss(Accelerator(cpu=True), model, rows, frozen, 7)


def test_a_bar_appears_for_an_evaluation_that_takes_long(rows, frozen, tiny_model, monkeypatch, capfd):
    model = tiny_model()
    mean_loss(Accelerator(cpu=True), model, rows, frozen, 7)
    assert "evaluate" not in capfd.readouterr().err, "a short evaluation is silent"
    monkeypatch.setattr(evaluation, "BAR_AFTER", 0)
    mean_loss(Accelerator(cpu=True), model, rows, frozen, 7)
    assert f"/{len(rows)} [" in capfd.readouterr().err.split("evaluate")[-1]


def test_evaluation_does_not_change_the_random_state(rows, frozen, tiny_model):
    model = tiny_model(dropout=0.3).train()
    before = torch.get_rng_state()
    mean_loss(Accelerator(cpu=True), model, rows, frozen, 7)
    assert torch.equal(before, torch.get_rng_state())


def mobile_bert():
    """Its head takes the weight of its projection, and never calls it."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 37}
    narrow = {"embedding_size": 20, "intra_bottleneck_size": 24, "num_feedforward_networks": 1}
    return AutoModelForMaskedLM.from_config(MobileBertConfig(vocab_size=101, **sizes, **narrow))


@pytest.mark.parametrize("whose", ["ours", "MobileBERT"])
def test_the_prediction_table_agrees_with_the_mean_loss(whose, rows, frozen, tiny_model):
    accelerator, model = Accelerator(cpu=True), tiny_model() if whose == "ours" else mobile_bert()
    table = predict_masked(accelerator, model, rows, frozen, 9)
    loss = mean_loss(accelerator, model, rows, frozen, 9)
    assert len(table["row"]) == loss["scored"]
    assert -table["log_probability"].mean() == pytest.approx(loss["loss"], rel=1e-6)
    assert len(set(zip(table["row"].tolist(), table["position"].tolist(), strict=True))) == len(table["row"])


def test_logits_come_back_in_the_order_of_the_data(tokenizer, texts):
    data = Dataset.from_dict({"input_ids": tokenizer(texts)["input_ids"], "labels": [0] * len(texts)})
    config = DeceroEncoderConfig(
        vocab_size=101, hidden_size=22, num_hidden_layers=1, num_attention_heads=1, intermediate_size=37, num_labels=3
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    objective = classification(ClassificationCollator(tokenizer), "single_label_classification")
    found = predict_logits(Accelerator(cpu=True), model, data, objective, 8)
    assert found.shape == (61, 3)
    with torch.no_grad():
        for index in (0, 1, 30, 60):
            alone = model(**tokenizer([texts[index]], return_tensors="pt")).logits.numpy()[0]
            np.testing.assert_allclose(found[index], alone, atol=1e-5)
