"""A decoder's tokenizer leaves prompts open and pads before them; rows for training are the same as with any other."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from decero.benchmark.stock_recipe import blocks
from decero.data.causal import CausalLanguageModeling, tokenize_text
from decero.data.prompt_completion import PromptCompletion, tokenize_prompts
from decero.data.tokenizer import train_tokenizer
from decero.execution.decoder_tokenizer import fit_decoder, is_decoder


@pytest.fixture
def trained(texts):
    def train(**settings):
        settings = {"algorithm": "byte_level_bpe", "vocab_size": 307, "model_max_length": 64} | settings
        return train_tokenizer(texts, show_progress=False, **settings)

    return train


@pytest.mark.parametrize("algorithm", ["byte_level_bpe", "wordpiece"])
def test_a_prompt_stays_open_also_after_saving(algorithm, trained, tmp_path):
    tokenizer = trained(algorithm=algorithm)
    before = tokenizer("the market")["input_ids"]
    assert before[-1] == tokenizer.sep_token_id
    tokenizer.chat_template = "{{ messages }}"
    assert fit_decoder(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for each in (tokenizer, again):
        assert each("the market")["input_ids"] == before[:-1]
        assert each("the", "market")["input_ids"].count(each.sep_token_id) == 0
        batch = each(["the market rose", "the"], padding=True)
        assert batch["attention_mask"][1][-1] == batch["input_ids"][0].index(before[0]) + 1 == 1
        assert batch["attention_mask"][1][0] == 0
    assert again.chat_template == "{{ messages }}"
    assert not fit_decoder(again)
    assert again("the market")["input_ids"] == before[:-1]


def test_an_end_that_transformers_would_add_again_stays_away(trained, tmp_path):
    """As in Llama's tokenizers, whose template transformers writes anew when it loads them."""
    backend = trained().backend_tokenizer
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, add_bos_token=True, add_eos_token=True, **names)
    before = tokenizer("the market")["input_ids"]
    assert before[-1] == tokenizer.eos_token_id
    fit_decoder(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("the market")["input_ids"] == before[:-1]


def test_rows_for_training_are_token_for_token_the_same(trained, texts):
    plain, fit = trained(), trained()
    fit_decoder(fit)
    documents = Dataset.from_dict({"text": texts[:7]})
    pairs = Dataset.from_dict({"source": texts[:7], "target": texts[7:14]})
    made = []
    for tokenizer in (plain, fit):
        rows = tokenize_text(documents, tokenizer, max_length=17)
        batches = [CausalLanguageModeling(tokenizer)(list(rows))]
        assert (batches[0]["labels"] == tokenizer.eos_token_id).sum() == 7  # every document ends
        rows = tokenize_prompts(pairs, tokenizer, max_source_length=31, max_target_length=31)
        made.append([*batches, PromptCompletion(tokenizer)(list(rows)), blocks(documents, tokenizer, 13, "text")[:]])
    for one, other in zip(*made, strict=True):
        assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("decero_decoder", True), ("gpt2", True), ("llama", True), ("decero_recurrent", True), ("decero_encoder", False),
     ("bert", False), ("xlnet", False), ("t5", False), ("marian", False), ("decero_encoder_decoder", False)],
)  # fmt: skip
def test_which_models_continue_texts(model_type, expected):
    assert is_decoder(AutoConfig.for_model(model_type)) is expected
