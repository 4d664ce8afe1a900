"""The bricks are the classics: weights of stock classes, put in ours by a table of names, give the same numbers.

The stock models are built tiny from their configurations (no download) and redrawn with large weights, so that a norm
in the wrong place or a forgotten bias shows. Forward and gradient, train and eval mode, padding and segments, <= 3e-5.
"""

import pytest
import torch
import transformers as hf
from torch.testing import assert_close

import decero.models as ours

SHAPE = {"vocab_size": 37, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT_SLOTS = {
    **SHAPE, "max_position_embeddings": 17, "norm_placement": "post", "position_embedding_type": "learned",
    "embedding_norm": True, "layer_norm_eps": 1e-12,
}  # fmt: skip

ROBERTA_NAMES = {
    "roberta.": "bert.",
    "classifier.dense": "model.pooler.dense",
    "classifier.out_proj": "classifier",
    "lm_head.dense": "lm_head.transform.0",
    "lm_head.layer_norm": "lm_head.transform.2",
    "lm_head.bias": "lm_head.decoder.bias",
}
DISTILBERT_NAMES = {
    "distilbert.": "model.",
    "embeddings.word_embeddings": "embed_tokens",
    "embeddings.position_embeddings": "embed_positions.embed_positions",
    "embeddings.LayerNorm": "embed_norm",
    "transformer.layer.": "layers.",
    "attention.out_lin": "self_attn.o_proj",
    "attention.q_lin": "self_attn.q_proj",
    "attention.k_lin": "self_attn.k_proj",
    "attention.v_lin": "self_attn.v_proj",
    "sa_layer_norm": "post_attn_norm",
    "ffn.lin1": "mlp.up_proj",
    "ffn.lin2": "mlp.down_proj",
    "output_layer_norm": "post_mlp_norm",
    "vocab_transform": "lm_head.transform.0",
    "vocab_layer_norm": "lm_head.transform.2",
    "vocab_projector": "lm_head.decoder",
}
EUROBERT_NAMES = {
    "input_layernorm": "pre_attn_norm",
    "post_attention_layernorm": "pre_mlp_norm",
    "lm_head.weight": "lm_head.decoder.weight",
}


def bert(head, **kwargs):
    labels = 2 if head is hf.BertForQuestionAnswering else 5
    config = hf.BertConfig(**SHAPE, **NO_DROPOUT, max_position_embeddings=17, num_labels=labels)
    return head(config, **kwargs), {**BERT_SLOTS, "type_vocab_size": 2}, {}


def roberta(head):
    config = hf.RobertaConfig(
        **SHAPE, **NO_DROPOUT, max_position_embeddings=17, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
        num_labels=5,
    )  # fmt: skip
    slots = {**BERT_SLOTS, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
    return head(config), slots, ROBERTA_NAMES


def distilbert(head):
    config = hf.DistilBertConfig(
        vocab_size=37, dim=33, n_layers=2, n_heads=3, hidden_dim=41, max_position_embeddings=17, dropout=0.0,
        attention_dropout=0.0, seq_classif_dropout=0.0, qa_dropout=0.0, num_labels=5,
    )  # fmt: skip
    return head(config), {**BERT_SLOTS, "type_vocab_size": 0}, DISTILBERT_NAMES


def eurobert(head):
    """Pre-norm, RMSNorm, rotary, gated, grouped heads, a head size of its own: what is modern, in one stock class."""
    config = hf.EuroBertConfig(
        **SHAPE, max_position_embeddings=17, num_key_value_heads=1, head_dim=14, hidden_act="silu", pad_token_id=0,
        bos_token_id=1, eos_token_id=2, mask_token_id=3, tie_word_embeddings=False, num_labels=5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    slots = {
        **SHAPE, "max_position_embeddings": 17, "num_key_value_heads": 1, "head_dim": 14, "hidden_act": "silu",
        "gated_mlp": True, "attention_bias": False, "mlp_bias": False, "norm_type": "rmsnorm", "layer_norm_eps": 1e-5,
        "norm_placement": "pre", "position_embedding_type": "rotary", "rope_theta": 500.0, "lm_head_transform": False,
        "tie_word_embeddings": False,
    }  # fmt: skip
    return head(config), slots, EUROBERT_NAMES


CASES = {
    "BertModel": lambda: bert(hf.BertModel, add_pooling_layer=False),
    "BertForMaskedLM": lambda: bert(hf.BertForMaskedLM),
    "BertForSequenceClassification": lambda: bert(hf.BertForSequenceClassification),
    "BertForTokenClassification": lambda: bert(hf.BertForTokenClassification),
    "BertForQuestionAnswering": lambda: bert(hf.BertForQuestionAnswering),
    "RobertaForMaskedLM": lambda: roberta(hf.RobertaForMaskedLM),
    "RobertaForSequenceClassification": lambda: roberta(hf.RobertaForSequenceClassification),
    "DistilBertForMaskedLM": lambda: distilbert(hf.DistilBertForMaskedLM),
    "DistilBertForTokenClassification": lambda: distilbert(hf.DistilBertForTokenClassification),
    "EuroBertModel": lambda: eurobert(hf.EuroBertModel),
    "EuroBertForMaskedLM": lambda: eurobert(hf.EuroBertForMaskedLM),
}


def labels_for(name, batch):
    """Make labels for a head, with -100 at padding and some other positions."""
    if name.endswith(("MaskedLM", "TokenClassification")):
        classes = 37 if name.endswith("MaskedLM") else 5
        asked = batch["attention_mask"].bool() & (torch.arange(7) % 3 != 1)
        return {"labels": torch.randint(0, classes, (3, 7)).masked_fill(~asked, -100)}
    if name.endswith("SequenceClassification"):
        return {"labels": torch.tensor([3, 0, 4])}
    if name.endswith("QuestionAnswering"):
        return {"start_positions": torch.tensor([2, 0, 1]), "end_positions": torch.tensor([6, 3, 99])}  # 99: cut off
    return {}


@pytest.fixture
def pair(request, rename, bert_names, randomize, batch):
    """(stock, ours, stock inputs, our inputs, name of a stock parameter -> ours) with the same weights in both."""
    name = request.param
    stock, slots, names = CASES[name]()
    randomize(stock)
    table = {**names, **bert_names} if name.startswith(("Bert", "Roberta")) else names
    head = name.split("For")[1] if "For" in name else "Model"
    ours_class = getattr(ours, f"DeceroEncoder{'For' + head if head != 'Model' else head}")
    ours_model = ours_class(ours.DeceroEncoderConfig(**slots, num_labels=5))

    state = {rename(old, table): tensor for old, tensor in stock.state_dict().items()}
    if name == "EuroBertForMaskedLM":  # the one thing it lacks: a bias on the vocabulary scores
        state["lm_head.decoder.bias"] = torch.zeros(37)
    ours_model.load_state_dict(state, strict=True)

    theirs_in = {**batch, **labels_for(name, batch)}
    if name.startswith("Bert"):
        theirs_in["token_type_ids"] = (torch.arange(7) > torch.tensor([[3], [1], [0]])).long()
    if name.startswith("Roberta"):
        pad = batch["attention_mask"] == 0
        theirs_in["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == 1, 2).masked_fill(pad, 1)
    ours_in = dict(theirs_in)
    if name.startswith("Roberta"):  # it counts from 2, and gives padding position 1
        ours_in["position_ids"] = (batch["attention_mask"].cumsum(1) * batch["attention_mask"]) + 1
    return stock, ours_model, theirs_in, ours_in, lambda old: rename(old, table)


def scores(output):
    """Return the outputs of a head as one tensor."""
    if "start_logits" in output:
        return torch.stack((output.start_logits, output.end_logits))
    return output.logits if "logits" in output else output.last_hidden_state


def loss(output):
    """The head's own loss; for a bare model a fixed random mix of its outputs."""
    if output.get("loss") is not None:
        return output.loss
    hidden = output.last_hidden_state
    return (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))).mean()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("pair", CASES, indirect=True)
def test_stock_weights_give_the_stock_outputs_and_gradients(pair, mode, backend, gradients):
    stock, model, theirs_in, ours_in, new_name = pair
    for one in (stock, model):
        one.train(mode == "train").set_attn_implementation(backend)
    theirs, mine = stock(**theirs_in), model(**ours_in)
    assert scores(theirs).abs().max() > 0.5  # there is something to compare
    assert_close(scores(mine), scores(theirs), atol=3e-5, rtol=0)
    assert_close(loss(mine), loss(theirs), atol=3e-5, rtol=0)

    loss(theirs).backward()
    loss(mine).backward()
    expected = {new_name(name): gradient for name, gradient in gradients(stock).items()}
    actual = gradients(model)
    if "lm_head.decoder.bias" not in expected:
        actual.pop("lm_head.decoder.bias", None)
    assert actual.keys() == expected.keys()
    # Nearly every parameter is reached; a softmax is blind to what it sees everywhere, such as a bias on all keys.
    assert sum(gradient.abs().max() > 1e-6 for gradient in expected.values()) > 0.8 * len(expected)
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, atol=3e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
