"""Labels and the loss."""

import pytest
import torch
from tests.models.encoder_decoder.conftest import LABELS, VARIANTS
from torch.testing import assert_close
from transformers import DataCollatorForSeq2Seq


@pytest.mark.parametrize(("fields", "start"), [({}, 0), ({"decoder_start_token_id": 29}, 29), ({"pad_token_id": 1}, 1)])
def test_labels_are_shifted_behind_a_start_token_and_padded(make_model, batch, fields, start):
    model, seen = make_model(**fields), []
    model.model.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    pad = fields.get("pad_token_id", 0)
    by_hand = torch.tensor([[start, 5, 9, 31, 2], [start, 11, 3, 2, pad], [start, 8, 2, pad, pad]])
    labels = LABELS.clone()
    out = model(**batch, labels=labels)
    assert torch.equal(seen[0], by_hand)
    assert torch.equal(model.prepare_decoder_input_ids_from_labels(LABELS), by_hand)
    assert torch.equal(labels, LABELS)  # the caller's labels are left alone
    assert torch.equal(out.logits, model(**batch, decoder_input_ids=by_hand).logits)


def test_labels_without_a_start_token_are_an_error(make_model, batch):
    model = make_model(pad_token_id=None)
    with pytest.raises(ValueError, match="labels need decoder_start_token_id and pad_token_id"):
        model(**batch, labels=LABELS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_cross_entropy_of_each_label(make_model, batch, variant):
    model = make_model(**VARIANTS[variant])
    out = model(**batch, labels=LABELS)
    scores = out.logits.log_softmax(-1)
    terms = [scores[b, t, LABELS[b, t]] for b in range(3) for t in range(5) if LABELS[b, t] != -100]
    assert len(terms) == 5 + 3 + 2
    assert_close(out.loss, -torch.stack(terms).mean())
    assert model(**batch, decoder_input_ids=LABELS.clamp(min=0)).loss is None


@pytest.mark.parametrize("count", [97, torch.tensor(97)])
def test_the_loss_is_divided_by_a_given_num_items_in_batch(make_model, batch, count):
    model = make_model()
    mean = model(**batch, labels=LABELS).loss
    assert_close(model(**batch, labels=LABELS, num_items_in_batch=count).loss, mean * 10 / 97)


def test_micro_batch_losses_with_the_global_count_add_up(make_model, gradients, batch):
    model = make_model()
    model(**batch, labels=LABELS).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 3)):
        part = {name: value[rows] for name, value in batch.items()}
        model(**part, labels=LABELS[rows], num_items_in_batch=10).loss.backward()
    for name, gradient in gradients(model).items():
        assert_close(gradient, whole[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_the_transformers_collator_shifts_as_the_model_does(make_model, tokenizer, texts):
    model = make_model(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=64)
    rows = [{"input_ids": tokenizer(text).input_ids, "labels": tokenizer(text[::2]).input_ids} for text in texts[:5]]
    assert len({len(row["labels"]) for row in rows}) > 1
    batch = DataCollatorForSeq2Seq(tokenizer, model=model)(rows)
    assert batch["labels"].eq(-100).any()
    assert batch["decoder_input_ids"][:, 0].eq(model.config.decoder_start_token_id).all()
    loss = model(**batch).loss
    del batch["decoder_input_ids"]
    assert torch.equal(model(**batch).loss, loss)


def test_a_scaled_head_divides_by_the_root_of_the_size(make_model, pairs):
    for scale, factor in ((True, 33**-0.5), (False, 1.0)):
        model = make_model(scale_lm_head=scale)
        hidden = model.model(**pairs).last_hidden_state
        assert_close(model(**pairs).logits, hidden @ model.lm_head.weight.T * factor)


def test_dropout_acts_in_both_stacks_and_in_training_only(make_model, pairs):
    for fields in ({"hidden_dropout_prob": 0.5}, {"attention_probs_dropout_prob": 0.5}, {"activation_dropout": 0.5}):
        model = make_model(**fields)
        still, moved = model(**pairs), model.train()(**pairs)
        assert not torch.allclose(moved.encoder_last_hidden_state, still.encoder_last_hidden_state)
        encoding = (still.encoder_last_hidden_state,)
        again = model(None, pairs["attention_mask"], pairs["decoder_input_ids"], encoder_outputs=encoding).logits
        assert not torch.allclose(again, still.logits)
        assert torch.equal(model.eval()(**pairs).logits, still.logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_is_trained(make_model, batch, gradients, variant):
    model = make_model(**VARIANTS[variant])
    model(**batch, labels=LABELS).loss.backward()
    assert gradients(model).keys() == dict(model.named_parameters()).keys()
