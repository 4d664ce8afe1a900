"""The heads and their losses."""

import pytest
import torch
import torch.nn.functional as F
from tests.models.encoder.conftest import LABELS
from torch.testing import assert_close

from decero.models import (
    DeceroEncoderForMaskedLM,
    DeceroEncoderForQuestionAnswering,
    DeceroEncoderForSequenceClassification,
    DeceroEncoderForTokenClassification,
)


def test_the_masked_lm_loss_is_cross_entropy_of_scored_tokens(make_model, batch):
    model = make_model(DeceroEncoderForMaskedLM)
    labels = LABELS[DeceroEncoderForMaskedLM]["labels"]
    out = model(**batch, labels=labels)
    by_hand = -out.logits.log_softmax(-1)[labels != -100][:, 5].mean()
    assert_close(out.loss, by_hand)
    assert model(**batch).loss is None


@pytest.mark.parametrize("head", [DeceroEncoderForMaskedLM, DeceroEncoderForTokenClassification])
def test_the_loss_is_divided_by_a_given_num_items_in_batch(make_model, batch, head):
    # Gradient accumulation: the sum over this batch over the number of asked tokens in all of them.
    model, labels = make_model(head), LABELS[head]["labels"]
    asked = labels.ne(-100).sum()
    mean = model(**batch, labels=labels).loss
    assert_close(model(**batch, labels=labels, num_items_in_batch=torch.tensor(97)).loss, mean * asked / 97)
    assert_close(model(**batch, labels=labels, num_items_in_batch=97).loss, mean * asked / 97)


def test_micro_batch_losses_with_the_global_count_add_up(make_model, gradients, batch):
    model, labels = make_model(DeceroEncoderForMaskedLM), LABELS[DeceroEncoderForMaskedLM]["labels"].clone()
    labels[0, 2] = 3  # an uneven split: three asked tokens against four
    model(**batch, labels=labels).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 3)):
        part = {name: value[rows] for name, value in batch.items()}
        model(**part, labels=labels[rows], num_items_in_batch=labels.ne(-100).sum()).loss.backward()
    for name, gradient in gradients(model).items():
        assert_close(gradient, whole[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "by_hand"),
    [
        ("single_label_classification", 5, torch.tensor([3, 0, 4]), F.cross_entropy),
        (
            "multi_label_classification",
            5,
            torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]),
            lambda z, y: -(y * z.sigmoid().log() + (1 - y) * (-z).sigmoid().log()).mean(),
        ),
        ("regression", 1, torch.tensor([0.5, -2.0, 1.0]), lambda z, y: (z[:, 0] - y).square().mean()),
        ("regression", 5, torch.randn(3, 5), lambda z, y: (z - y).square().mean()),
    ],
)
def test_each_problem_type_has_its_loss(make_model, batch, problem_type, num_labels, labels, by_hand):
    for stated in (problem_type, None) if not (problem_type == "regression" and num_labels > 1) else (problem_type,):
        model = make_model(DeceroEncoderForSequenceClassification, num_labels=num_labels, problem_type=stated)
        out = model(**batch, labels=labels)
        assert out.logits.shape == (3, num_labels)
        assert_close(out.loss, by_hand(out.logits, labels))
        assert model.config.problem_type == problem_type  # guessed from the labels when it was not stated


def test_the_token_label_loss_is_cross_entropy_of_scored_tokens(make_model, batch):
    labels = torch.tensor([1, -100, 0, 4, -100, 2, 3]).repeat(3, 1)
    out = make_model(DeceroEncoderForTokenClassification, num_labels=5)(**batch, labels=labels)
    by_hand = -torch.stack([out.logits.log_softmax(-1)[:, n, y] for n, y in enumerate(labels[0]) if y >= 0]).mean()
    assert_close(out.loss, by_hand)


def test_the_question_answering_loss_skips_answers_out_of_text(make_model, batch):
    starts, ends = torch.tensor([2, 0, 99]), torch.tensor([6, 3, 99])
    out = make_model(DeceroEncoderForQuestionAnswering)(**batch, start_positions=starts, end_positions=ends)
    by_hand = F.cross_entropy(out.start_logits[:2], starts[:2]) + F.cross_entropy(out.end_logits[:2], ends[:2])
    assert_close(out.loss, by_hand / 2)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_classifier_ignores_padding(make_model, batch, pooling):
    model = make_model(DeceroEncoderForSequenceClassification, classifier_pooling=pooling)
    together = model(**batch).logits
    for row, length in enumerate((7, 5, 2)):
        assert_close(together[row], model(batch["input_ids"][row : row + 1, :length]).logits[0], atol=1e-5, rtol=1e-5)


def test_cls_pools_the_first_token_and_mean_pools_all(make_model, batch):
    for pooling in ("cls", "mean"):
        model = make_model(DeceroEncoderForSequenceClassification, classifier_pooling=pooling)
        hidden = model.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        pooler = model.model.pooler.dense
        by_hand = torch.tanh(pooled @ pooler.weight.T + pooler.bias)
        assert_close(model(**batch).logits, by_hand @ model.classifier.weight.T + model.classifier.bias)


def test_classifier_dropout_defaults_to_that_of_the_model(make_config):
    for head in (DeceroEncoderForSequenceClassification, DeceroEncoderForTokenClassification):
        assert head(make_config(hidden_dropout_prob=0.3)).dropout.p == 0.3
        assert head(make_config(hidden_dropout_prob=0.3, classifier_dropout=0.0)).dropout.p == 0.0


@pytest.mark.parametrize("head", [DeceroEncoderForSequenceClassification, DeceroEncoderForTokenClassification])
def test_classifier_dropout_acts_on_the_classifier_input(make_model, batch, head):
    model = make_model(head, classifier_dropout=1.0)
    assert torch.equal(*torch.broadcast_tensors(model.train()(**batch).logits, model.classifier.bias))
    assert not torch.allclose(model.eval()(**batch).logits, model.classifier.bias)


def test_dropout_acts_on_the_embeddings_in_training_only(make_model, batch):
    model = make_model(hidden_dropout_prob=0.5)
    assert model.train()(**batch, output_hidden_states=True).hidden_states[0].eq(0).float().mean() > 0.4
    assert torch.equal(model.eval()(**batch)[0], model(**batch)[0])
