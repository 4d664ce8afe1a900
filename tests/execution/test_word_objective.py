"""Labelling words: one label a word, and packed rows that change neither loss nor gradient."""

import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
)

from decero.data.order import RowIndex, Rows
from decero.data.word_rows import split_spaces, tokenize_words
from decero.execution.optimize import pack_if_proven
from decero.execution.word_objective import token_classification, word_collator
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig

NAMES = ["O", "B-X", "I-X", "B-Y", "I-Y"]
SIZES = {
    "vocab_size": 101,
    "hidden_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 37,
}
SIZES |= {"max_position_embeddings": 67, "num_labels": 5, "pad_token_id": 1}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS = {
    "ours": DeceroEncoderConfig(**SIZES),
    "our decoder": DeceroDecoderConfig(**SIZES),
    "BERT": BertConfig(**SIZES, **NO_DROPOUT),
    "RoBERTa": RobertaConfig(**SIZES, **NO_DROPOUT, type_vocab_size=1),
    "Llama": LlamaConfig(**SIZES, classifier_dropout=0.0),
    "GPT-2": GPT2Config(
        vocab_size=101, n_embd=22, n_layer=2, n_head=1, n_positions=67, num_labels=5, classifier_dropout=0.0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=1,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(texts, tokenizer):
    bounds = [split_spaces(text) for text in texts[:13]]
    data = {"text": texts[:13], "starts": [[a for a, _ in each] for each in bounds], "example": list(range(13))}
    data |= {"stops": [[b for _, b in each] for each in bounds]}
    data |= {"tags": [[NAMES[(n * 3 + w) % 5] for w in range(len(each))] for n, each in enumerate(bounds)]}
    return tokenize_words(Dataset.from_dict(data), tokenizer, NAMES, max_length=16, stride=3)


@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_rows_give_the_padded_loss_and_gradient(kind, rows, tokenizer):
    torch.manual_seed(3)
    model = AutoModelForTokenClassification.from_config(CONFIGS[kind])
    for weight in model.parameters():  # large enough to see a difference
        torch.nn.init.normal_(weight, std=0.2)
    model.train()
    padded = token_classification(word_collator(model, tokenizer))
    packed, line = pack_if_proven(padded, model, rows, 48, "on")
    assert packed.packed, line
    batch = Rows(rows).__getitems__([RowIndex(0, i) for i in range(len(rows))])
    found = {}
    for name, objective in (("padded", padded), ("packed", packed)):
        collated = objective.collate(batch)
        loss = objective.loss(model, collated) / objective.count(collated)
        model.zero_grad()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found[name] = objective.count(collated), loss.detach(), gradients, collated["input_ids"].shape
    assert found["packed"][3] != found["padded"][3]
    assert found["packed"][0] == found["padded"][0] == sum(map(len, rows["words"]))
    assert_close(found["packed"][1], found["padded"][1], atol=1e-5, rtol=0)
    for name, gradient in found["padded"][2].items():
        assert_close(found["packed"][2][name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_stand_at_their_tokens_on_either_padding_side(rows, tokenizer, side, monkeypatch):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    model = AutoModelForTokenClassification.from_config(CONFIGS["ours"])
    chosen = sorted(rows, key=lambda row: len(row["input_ids"]))[:: len(rows) - 1]  # the shortest and the longest
    batch = word_collator(model, tokenizer)(chosen)
    real = batch["attention_mask"].bool()
    assert not real.all()
    for b, row in enumerate(chosen):
        assert batch["labels"][b][real[b]].tolist() == row["labels"]
        assert batch["input_ids"][b][real[b]].tolist() == row["input_ids"]
    assert (batch["labels"][~real] == -100).all()


def test_the_loss_scores_one_token_a_word(rows, tokenizer):
    model = AutoModelForTokenClassification.from_config(CONFIGS["ours"]).eval()
    objective = token_classification(word_collator(model, tokenizer))
    batch = objective.collate(Rows(rows).__getitems__([RowIndex(0, i) for i in range(3)]))
    logits = model(**{name: each for name, each in batch.items() if name != "labels"}).logits.log_softmax(-1)
    expected = sum(-logits[b, i, y] for b, row in enumerate(batch["labels"]) for i, y in enumerate(row) if y >= 0)
    assert_close(objective.loss(model, batch), expected)
    smoothed = token_classification(objective.collate, label_smoothing=0.2)
    even = sum(-logits[b, i].mean() for b, row in enumerate(batch["labels"]) for i, y in enumerate(row) if y >= 0)
    assert_close(smoothed.loss(model, batch), 0.8 * expected + 0.2 * even)
