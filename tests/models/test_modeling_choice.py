"""The encoder that chooses: its shape, its loss, and the interface of transformers. Stock weights: tests/hub/stock."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForMultipleChoice

from decero.models import DeceroEncoderConfig, DeceroEncoderForMultipleChoice


@pytest.fixture
def model(make_config, randomize):
    return randomize(DeceroEncoderForMultipleChoice(make_config(classifier_pooling="mean", pooling_layer=True))).eval()


@pytest.fixture
def choices():
    """Two rows of five choices of at most seven tokens."""
    generator = torch.Generator().manual_seed(2)
    ids_BCL = torch.randint(3, 37, (2, 5, 7), generator=generator)
    mask_BCL = (torch.arange(7) < torch.randint(1, 8, (2, 5, 1), generator=generator)).long()
    return {"input_ids": ids_BCL * mask_BCL, "attention_mask": mask_BCL}


def test_each_choice_is_scored_from_its_own_text(model, choices):
    logits_BC = model(**choices).logits
    assert logits_BC.shape == (2, 5)
    alone = model(**{name: tensor[1:, 3:4] for name, tensor in choices.items()}).logits
    assert_close(alone, logits_BC[1:, 3:4], atol=1e-5, rtol=0)
    assert logits_BC.std() > 0.01
    one_a_row = model(**{name: tensor[1] for name, tensor in choices.items()}).logits
    assert_close(one_a_row, logits_BC[1][:, None], atol=1e-5, rtol=0)


def test_the_loss_is_that_of_a_softmax_over_choices(model, choices):
    labels_B = torch.tensor([4, 1])
    out = model(**choices, labels=labels_B)
    expected = -out.logits.log_softmax(dim=1)[torch.arange(2), labels_B]
    assert_close(out.loss, expected.mean())
    assert_close(model(**choices, labels=labels_B, num_items_in_batch=7).loss, expected.sum() / 7)


def test_a_saved_model_loads_with_its_auto_class(model, choices, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMultipleChoice.from_pretrained(tmp_path).eval()
    assert type(loaded) is DeceroEncoderForMultipleChoice
    assert_close(loaded(**choices).logits, model(**choices).logits)
    assert type(AutoModelForMultipleChoice.from_config(DeceroEncoderConfig())) is DeceroEncoderForMultipleChoice
