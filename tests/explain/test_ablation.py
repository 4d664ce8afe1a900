"""Ablation equals zeroed columns of the output projection, in any family, and finds a planted head."""

from copy import deepcopy
from itertools import permutations

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    T5Config,
)

from decero.errors import UserError
from decero.explain.ablation import ablate_heads, scored_by_loss
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig, DeceroEncoderDecoderConfig

SIZES = {"vocab_size": 97, "hidden_size": 30, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
T5 = {"vocab_size": 97, "d_model": 30, "d_kv": 7, "d_ff": 41, "num_layers": 2, "num_heads": 3}
FAMILIES = {  # the Auto class, the configuration, kind -> names of the output projections by layer
    "ours": (
        AutoModelForMaskedLM, lambda: DeceroEncoderConfig(**SIZES, head_dim=14),
        {"self": "model.layers.{}.self_attn.o_proj"},
    ),
    "bert": (
        AutoModelForSequenceClassification, lambda: BertConfig(**SIZES, num_labels=3),
        {"self": "bert.encoder.layer.{}.attention.output.dense"},
    ),
    "gpt2": (
        AutoModelForCausalLM, lambda: GPT2Config(vocab_size=97, n_embd=30, n_layer=2, n_head=3, n_positions=53, **IDS),
        {"causal": "transformer.h.{}.attn.c_proj"},
    ),
    "llama": (
        AutoModelForCausalLM,
        lambda: LlamaConfig(**SIZES | {"num_attention_heads": 6}, num_key_value_heads=2, head_dim=14, **IDS),
        {"causal": "model.layers.{}.self_attn.o_proj"},
    ),
    "t5": (
        AutoModelForSeq2SeqLM, lambda: T5Config(**T5, **IDS, decoder_start_token_id=0),
        {
            "self": "encoder.block.{}.layer.0.SelfAttention.o", "causal": "decoder.block.{}.layer.0.SelfAttention.o",
            "cross": "decoder.block.{}.layer.1.EncDecAttention.o",
        },
    ),
    "bert_alone": (AutoModel, lambda: BertConfig(**SIZES), {"self": "encoder.layer.{}.attention.output.dense"}),
}  # fmt: skip
TEXTS = ["shares in london rose sharply", "the market fell on news from tokyo"]


def tiny(auto, config):
    """A model with dropout in training mode and weights large enough for heads to matter."""
    torch.manual_seed(3)
    model = auto.from_config(config).train()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3)
    return model


def zero_columns(projection, head, size):
    """Zero the weights that read one head; a Conv1D of GPT-2 has its inputs on the rows."""
    weight = projection.weight if isinstance(projection, torch.nn.Linear) else projection.weight.T
    weight[:, head * size : (head + 1) * size] = 0


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_equals_zeroed_columns(family, tokenizer):
    auto, config, projections = FAMILIES[family]
    model = tiny(auto, config())
    targets = ["banks gained", "profit after monday"] if "cross" in projections else None
    found = ablate_heads(model, tokenizer, TEXTS, targets=targets)
    assert model.training
    model.eval()
    inputs = [scored_by_loss(model, tokenizer, t, n, target=targets and targets[n]) for n, t in enumerate(TEXTS)]
    loss = [-float(each.scores(model).detach().mean()) for each in inputs]
    changes = {}
    for kind, name in projections.items():
        heads = found.map(kind).shape[1]
        for layer in range(2):
            projection = model.get_submodule(name.format(layer))
            stored = projection.weight.detach().clone()
            for head in range(heads):
                with torch.no_grad():
                    zero_columns(projection, head, (stored.shape[0] if family == "gpt2" else stored.shape[1]) // heads)
                    without = [-float(each.scores(model).detach().mean()) for each in inputs]
                    projection.weight.copy_(stored)
                changes[kind, layer, head] = np.mean(without) - np.mean(loss)
    assert len(found.heads) == len(changes)
    for effect in found.heads:
        assert effect.change.mean == pytest.approx(changes[effect.kind, effect.layer, effect.head], abs=1e-5)
    assert max(abs(change) for change in changes.values()) > 1e-3
    assert [e.change.mean for e in found.heads] == sorted((e.change.mean for e in found.heads), reverse=True)


def copying_decoder(period, copier):
    """A decoder of one layer and three heads. Head `copier` reads the token `period - 1` back and writes it.

    The hidden state holds the token (features 0 to 96) and the position (97 to 149), one-hot.
    """
    torch.manual_seed(0)
    config = DeceroDecoderConfig(
        vocab_size=97, hidden_size=150, num_hidden_layers=1, num_attention_heads=3, head_dim=97, intermediate_size=5,
        max_position_embeddings=53, position_embedding_type="learned", tie_word_embeddings=False, **IDS,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    stack = model.model
    layer = stack.layers[0]
    with torch.no_grad():
        for weight in (*layer.mlp.parameters(), *layer.self_attn.parameters()):
            weight.zero_()
        stack.embed_tokens.weight.zero_()
        stack.embed_tokens.weight[:, :97] = torch.eye(97)
        stack.embed_positions.embed_positions.weight.zero_()
        stack.embed_positions.embed_positions.weight[:, 97:] = torch.eye(53)
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, :97] = torch.eye(97)
        attention = layer.self_attn
        for head in range(3):
            rows = slice(head * 97, (head + 1) * 97)
            attention.v_proj.weight[rows, :97] = torch.eye(97)
            attention.o_proj.weight[:97, rows] = torch.eye(97) * (3 if head == copier else 0.01)
        begin = copier * 97
        for position in range(53):  # the query at i looks for the key at i - (period - 1)
            attention.k_proj.weight[begin + position, 97 + position] = 30
            if position >= period - 1:
                attention.q_proj.weight[begin + position - (period - 1), 97 + position] = 30
    return model


def test_a_planted_copy_head_ranks_first(tokenizer):
    texts = [" ".join(words * 4) for words in permutations(("shares", "in", "london"))]
    period = len(tokenizer(texts[0], add_special_tokens=False)["input_ids"]) // 4
    found = ablate_heads(copying_decoder(period, copier=1), tokenizer, texts)
    first, second = found.heads[:2]
    assert (first.kind, first.layer, first.head) == ("causal", 0, 1)
    assert first.change.low > 0.5
    assert first.change.low > 10 * abs(second.change.mean)
    assert found.map("causal").shape == (1, 3)


def test_a_head_replaced_by_its_mean_is_brute_force(tokenizer):
    auto, config, _ = FAMILIES["ours"]
    model = tiny(auto, config()).eval()
    found = ablate_heads(model, tokenizer, TEXTS, replacement="mean", seed=5)
    inputs = [scored_by_loss(model, tokenizer, text, number, seed=5) for number, text in enumerate(TEXTS)]
    projection = model.get_submodule("model.layers.1.self_attn.o_proj")
    seen = []
    hook = projection.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    loss = np.mean([-float(each.scores(model).detach().mean()) for each in inputs])
    hook.remove()
    mean = torch.cat(seen).mean(0)[14:28]

    def replace(module, args):
        edited = args[0].clone()
        edited[..., 14:28] = mean
        return (edited,)

    hook = projection.register_forward_pre_hook(replace)
    without = np.mean([-float(each.scores(model).detach().mean()) for each in inputs])
    hook.remove()
    assert found.map("self")[1, 1] == pytest.approx(without - loss, abs=1e-6)
    assert found.map("self")[1, 1] != pytest.approx(ablate_heads(model, tokenizer, TEXTS, seed=5).map("self")[1, 1])


def test_masked_tokens_depend_on_seed_and_text_alone(tokenizer):
    model = tiny(*(FAMILIES["ours"][0], FAMILIES["ours"][1]())).eval()
    text = " ".join(TEXTS * 2)
    drawn = [scored_by_loss(model, tokenizer, text, 0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0].positions == drawn[1].positions != drawn[2].positions
    ids = tokenizer(text)["input_ids"]
    special = tokenizer(text, return_special_tokens_mask=True)["special_tokens_mask"]
    assert len(drawn[0].positions) == round(0.15 * special.count(0))
    for position, token in zip(drawn[0].positions, drawn[0].ids, strict=True):
        assert drawn[0].ids_1L[0, position] == tokenizer.mask_token_id
        assert token == ids[position]
        assert not special[position]


@pytest.mark.parametrize(
    ("build", "lines", "options", "says"),
    [
        (FAMILIES["gpt2"][1], [], {}, "needs a text"),
        (FAMILIES["gpt2"][1], TEXTS, {"targets": ["one"]}, "1 targets for 2 texts"),
        (FAMILIES["gpt2"][1], TEXTS, {"labels": [0, 1]}, "GPT2LMHeadModel is no classifier; give no labels"),
        (lambda: DebertaV2Config(**SIZES), TEXTS, {}, "deberta-v2 model has attention code of its own"),
        (FAMILIES["bert"][1], TEXTS, {"labels": [0, 3]}, "text 2: no label 3; there are 3, from 0"),
    ],
)
def test_bad_input_of_ablation_gets_one_line(build, lines, options, says, tokenizer):
    config = build()
    auto = {"gpt2": AutoModelForCausalLM, "bert": AutoModelForSequenceClassification}.get(config.model_type, AutoModel)
    with pytest.raises(UserError, match=says):
        ablate_heads(tiny(auto, config), tokenizer, lines, **options)


def test_short_texts_are_named_by_their_number(tokenizer):
    bare = deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A")  # no [CLS] and no [SEP]
    model = tiny(AutoModelForCausalLM, FAMILIES["gpt2"][1]())
    for texts, says in ((["on"], "^one token has no next"), ([TEXTS[0], ""], "^text 2: the text is empty")):
        with pytest.raises(UserError, match=says):
            ablate_heads(model, bare, texts)


def test_few_texts_have_no_interval_and_labels_count(tokenizer):
    auto, config, _ = FAMILIES["bert"]
    model = tiny(auto, config())
    few = ablate_heads(model, tokenizer, TEXTS, labels=[0, 2])
    assert all(effect.change.low is None and effect.change.texts == 2 for effect in few.heads)
    losses = []
    for text, label in zip(TEXTS, (0, 2), strict=True):
        logits = model.eval()(**tokenizer(text, return_tensors="pt")).logits
        losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor([label])).detach()))
    assert few.loss == pytest.approx(np.mean(losses), abs=1e-6)
    assert few.describe("en") != few.describe("es")


def test_our_encoder_decoder_shows_three_kinds_of_heads(tokenizer):
    config = DeceroEncoderDecoderConfig(**SIZES, **IDS, head_dim=14)
    found = ablate_heads(tiny(AutoModelForSeq2SeqLM, config), tokenizer, TEXTS[:1], targets=["banks gained"])
    assert {effect.kind for effect in found.heads} == {"self", "causal", "cross"}
    assert all(found.map(kind).shape == (2, 3) for kind in ("self", "causal", "cross"))
