"""The heads and their losses."""

import pytest
import torch
import torch.nn.functional as F
from tests.models.decoder.conftest import AUTO, HEADS, LABELS, VARIANTS
from torch.testing import assert_close

from decero.models import (
    DeceroDecoderForCausalLM,
    DeceroDecoderForSequenceClassification,
    DeceroDecoderModel,
)


def test_the_loss_is_cross_entropy_of_each_next_token(make_model, batch):
    model = make_model()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    out = model(**batch, labels=labels)
    scores = out.logits.log_softmax(-1)
    terms = [scores[b, t, labels[b, t + 1]] for b in range(3) for t in range(6) if labels[b, t + 1] != -100]
    assert len(terms) == 6 + 4 + 1
    assert_close(out.loss, -torch.stack(terms).mean())
    assert model(**batch).loss is None


@pytest.mark.parametrize("count", [97, torch.tensor(97)])
def test_the_loss_is_divided_by_a_given_num_items_in_batch(make_model, batch, count):
    model, labels = make_model(), LABELS[DeceroDecoderForCausalLM]["labels"]
    mean = model(**batch, labels=labels).loss
    assert_close(model(**batch, labels=labels, num_items_in_batch=count).loss, mean * 6 / 97)  # of 9, 3 are first


def test_micro_batch_losses_with_the_global_count_add_up(make_model, gradients, batch):
    model = make_model()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model(**batch, labels=labels).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 3)):
        part = {name: value[rows] for name, value in batch.items()}
        model(**part, labels=labels[rows], num_items_in_batch=11).loss.backward()
    for name, gradient in gradients(model).items():
        assert_close(gradient, whole[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


CLASSIFIER = DeceroDecoderForSequenceClassification


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("told", ["by the mask", "by the padding token"])
def test_the_classifier_reads_the_last_token_of_each_text(make_model, batch, left, side, told):
    model = make_model(CLASSIFIER, num_labels=5)
    padded = left if side == "left" else batch
    hidden = model.model(**padded).last_hidden_state
    last = hidden[:, -1] if side == "left" else hidden[torch.arange(3), torch.tensor([6, 4, 1])]
    if told == "by the padding token":
        if side == "left":  # padding is not hidden without a mask; the last place is still the last
            last = model.model(padded["input_ids"]).last_hidden_state[:, -1]
        padded = {"input_ids": padded["input_ids"]}
    logits = model(**padded).logits
    assert logits.shape == (3, 5)
    assert_close(logits, last @ model.score.weight.T)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_classifier_ignores_padding(make_model, batch, left, side):
    model = make_model(CLASSIFIER, num_labels=5)
    padded = left if side == "left" else batch
    together = model(**padded).logits
    for row, length in enumerate((7, 5, 2)):
        assert_close(together[row], model(batch["input_ids"][row : row + 1, :length]).logits[0], atol=1e-5, rtol=1e-5)


def test_a_batch_without_known_text_ends_is_an_error(make_model, batch):
    model = make_model(CLASSIFIER, pad_token_id=None)
    with pytest.raises(ValueError, match="give attention_mask or set pad_token_id"):
        model(batch["input_ids"])
    assert model(**batch).logits.shape == (3, 2)
    hidden = model.model(batch["input_ids"][:1]).last_hidden_state  # one text alone ends at its end
    assert_close(model(batch["input_ids"][:1]).logits, hidden[:, -1] @ model.score.weight.T)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_classifier_reads_embeddings_with_a_mask(make_model, batch, left, side):
    model, padded = make_model(CLASSIFIER), dict(left if side == "left" else batch)
    expected = model(**padded).logits
    embeds = model.get_input_embeddings()(padded.pop("input_ids"))
    assert_close(model(inputs_embeds=embeds, **padded).logits, expected)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "by_hand"),
    [
        ("single_label_classification", 5, torch.tensor([3, 0, 4]), F.cross_entropy),
        (
            "multi_label_classification",
            3,
            torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 1, 1]]),
            lambda z, y: -(y * z.sigmoid().log() + (1 - y) * (-z).sigmoid().log()).mean(),
        ),
        ("regression", 1, torch.tensor([0.5, -2.0, 1.0]), lambda z, y: (z[:, 0] - y).square().mean()),
    ],
)
def test_each_problem_type_has_its_loss(make_model, batch, problem_type, num_labels, labels, by_hand):
    model = make_model(CLASSIFIER, num_labels=num_labels)
    out = model(**batch, labels=labels)
    assert_close(out.loss, by_hand(out.logits, labels))
    assert model.config.problem_type == problem_type  # guessed from the labels


def test_classifier_dropout_acts_on_the_classifier_input(make_model, batch):
    model = make_model(CLASSIFIER, classifier_dropout=1.0)
    assert model.train()(**batch).logits.eq(0).all()
    assert not model.eval()(**batch).logits.eq(0).any()


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_is_trained(make_model, batch, gradients, head):
    for slots in VARIANTS.values():
        model = make_model(head, **slots)
        model(**batch, **LABELS[head]).loss.backward()
        assert gradients(model).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("model_class", AUTO.values(), ids=lambda c: c.__name__)
def test_inputs_embeds_equal_the_input_ids_they_come_from(make_model, batch, model_class):
    model = make_model(model_class, scale_embeddings=True)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    mask = batch["attention_mask"]
    assert_close(model(inputs_embeds=embeds, attention_mask=mask)[0], model(**batch)[0], atol=0, rtol=0)


def test_ids_and_embeds_together_or_missing_are_an_error(make_model, batch):
    model = make_model()
    for wrong in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": torch.randn(3, 7, 33)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**wrong)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_final_norm_is_a_slot(make_model, batch, placement):
    for asked, there in ((None, placement == "pre"), (True, True), (False, False)):
        model = make_model(DeceroDecoderModel, norm_placement=placement, final_norm=asked)
        seen = {}
        model.layers[-1].register_forward_hook(lambda module, args, output, seen=seen: seen.update(last=output))
        out = model(**batch).last_hidden_state
        assert ("norm.weight" in model.state_dict()) is there
        expected = (
            F.layer_norm(seen["last"], (33,), model.norm.weight, model.norm.bias, 1e-6) if there else seen["last"]
        )
        assert_close(out, expected)
