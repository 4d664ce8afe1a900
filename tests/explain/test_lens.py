"""The lens shows what the model itself would answer, after each of its layers."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from transformers import AutoModel, AutoModelForSequenceClassification, FlaubertConfig, FlaubertWithLMHeadModel

from decero.errors import UserError
from decero.explain.lens import lens
from decero.explain.record import record

TEXT = "the market rose fell sharply on monday"
TARGET = "banks fell"


@pytest.mark.parametrize("family", ["bert", "albert", "gemma2", "t5", "decero_encoder", "decero_encoder_decoder"])
def test_the_last_row_is_the_models_own_answer(family, tiny, sentinel_tokenizer):
    model = tiny(family).train()
    target = TARGET if model.config.is_encoder_decoder else None
    seen = lens(model, sentinel_tokenizer, TEXT, target=target, top_k=3)
    logits = record(model, sentinel_tokenizer, TEXT, target=target).logits
    chances = torch.tensor(logits).softmax(-1)
    layers = {"t5": 2, "decero_encoder_decoder": 3}.get(family, 2)
    assert seen.ids.shape == (layers + 1, logits.shape[0], 3)
    assert (seen.ids[-1, :, 0] == logits.argmax(-1)).all()
    assert_allclose(seen.probabilities[-1], chances.topk(3).values.numpy(), atol=1e-6)
    assert (seen.ranks[-1] == 1).all()
    assert ((seen.ranks == 1) == (seen.ids[:, :, 0] == seen.ids[-1, :, 0])).all()
    assert set(seen.texts) == set(seen.ids.flatten().tolist())
    assert seen.predicts == ("same" if family in ("bert", "albert", "decero_encoder") else "next")
    assert model.training
    assert all("forward" not in vars(each) for each in model.modules())


def test_earlier_rows_are_normed_once_and_pass_the_head(tiny, sentinel_tokenizer):
    heads = {
        "llama": lambda model, x: model.lm_head(model.model.norm(x)),
        "gpt2": lambda model, x: model.lm_head(model.transformer.ln_f(x)),
        "bert": lambda model, x: model.cls(x),  # its layers end with a norm; the head has one more of its own
        "decero_decoder": lambda model, x: model.lm_head(model.model.norm(x)),
    }
    for family, head in heads.items():
        model = tiny(family)
        seen = lens(model, sentinel_tokenizer, TEXT, top_k=113)
        (stack,) = record(model, sentinel_tokenizer, TEXT, hidden=True).hidden.values()
        for row, state in enumerate(stack.states):
            chances = head(model, torch.tensor(state)).softmax(-1).detach().numpy()
            assert_allclose(seen.probabilities[row], np.take_along_axis(chances, seen.ids[row], -1), atol=1e-6)


def test_a_model_without_a_vocabulary_or_layers_is_refused(tiny, sentinel_tokenizer):
    config = tiny("bert").config
    for model in (AutoModel.from_config(config), AutoModelForSequenceClassification.from_config(config)):
        with pytest.raises(UserError, match="this bert model has no head over a vocabulary"):
            lens(model, sentinel_tokenizer, TEXT)
    hidden = FlaubertWithLMHeadModel(FlaubertConfig(vocab_size=113, emb_dim=33, n_layers=2, n_heads=3))
    with pytest.raises(UserError, match="this flaubert model: cannot find its layers"):
        lens(hidden, sentinel_tokenizer, TEXT)
