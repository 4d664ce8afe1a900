"""`load(name, None)` takes a checkpoint with any head, or none."""

import pytest
import torch
from transformers import AutoModelForMultipleChoice, BertConfig, BertForPreTraining, BertModel

from decero.errors import UserError
from decero.inference.loading import load
from decero.models import DeceroEncoderConfig

SIZES = {"vocab_size": 101, "hidden_size": 22, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 7}


@pytest.mark.parametrize(
    "build",
    [
        lambda: BertModel(BertConfig(**SIZES)),
        lambda: BertForPreTraining(BertConfig(**SIZES)),
        lambda: AutoModelForMultipleChoice.from_config(DeceroEncoderConfig(**SIZES)),
    ],
)
def test_a_checkpoint_loads_into_the_class_that_saved_it(build, tokenizer, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path, None)
    assert type(loaded.model) is type(model)
    assert load(loaded, None) is loaded
    if isinstance(model, BertModel | BertForPreTraining):
        inputs = tokenizer("the market rose", return_tensors="pt")
        with torch.no_grad():
            assert torch.equal(loaded.model(**inputs)[0], model.eval()(**inputs)[0])


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tokenizer") as error:
        load(tmp_path, None)
    assert "\n" not in str(error.value)
