"""Leave-one-out equals brute force, and agreement with it is measured as scipy would by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    GPT2Config,
    T5Config,
    T5ForSequenceClassification,
)

from decero.errors import UserError
from decero.explain.attribution import attribute
from decero.explain.estimates import estimate
from decero.explain.explained import own_answer
from decero.explain.faithfulness import leave_one_out, measure_faithfulness, rank_correlation, row_of, summarize
from decero.explain.faithfulness_lines import faithfulness_lines
from decero.explain.pieces import _write, encode
from decero.explain.record import record
from decero.explain.rollout import rollout
from decero.models import DeceroEncoderConfig

SIZES = {"vocab_size": 97, "hidden_size": 30, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
T5 = {"vocab_size": 113, "d_model": 30, "d_kv": 7, "d_ff": 41, "num_layers": 2, "num_heads": 3}
BUILDERS = {
    "bert": (AutoModelForSequenceClassification, lambda: BertConfig(**SIZES, num_labels=3)),
    "gpt2": (AutoModelForCausalLM, lambda: GPT2Config(vocab_size=113, n_embd=30, n_layer=2, n_head=3, **IDS)),
    "t5": (AutoModelForSeq2SeqLM, lambda: T5Config(**T5, **IDS, decoder_start_token_id=0)),
    "masked": (AutoModelForMaskedLM, lambda: DeceroEncoderConfig(**SIZES)),
    "vector": (AutoModel, lambda: BertConfig(**SIZES)),
    "mean": (AutoModelForSequenceClassification, lambda: DeceroEncoderConfig(**SIZES, classifier_pooling="mean")),
}
TEXTS = [
    "shares in london rose sharply on news", "the market fell after profit news from tokyo",
    "banks gained on monday as shares rose", "profit news fell sharply in tokyo on monday",
    "the banks in london rose after news",
]  # fmt: skip


def tiny(name):
    torch.manual_seed(11)
    auto, config = BUILDERS[name]
    model = auto.from_config(config()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
    return model


def log_probability(logits, answer):
    return float(logits.log_softmax(-1)[answer].detach())


def test_leave_one_out_masks_one_token_after_another(tokenizer):
    model = tiny("bert")
    explained = own_answer(model, tokenizer, encode(model, tokenizer, TEXTS[0], "the market").inputs)
    rows = tokenizer(TEXTS[0], "the market", return_tensors="pt")
    whole = model(**rows).logits[0]
    answer = int(whole.argmax())
    expected = []
    tokens = range(1, rows["input_ids"].shape[1] - 1)
    for i in tokens:
        ids = rows["input_ids"].clone()
        ids[0, i] = tokenizer.mask_token_id
        without = model(**rows | {"input_ids": ids}).logits[0]
        expected.append(log_probability(whole, answer) - log_probability(without, answer))
    np.testing.assert_allclose(leave_one_out(model, tokenizer, explained, tokens), expected, atol=1e-6)
    assert np.abs(expected).max() > 0.01


def test_leave_one_out_removes_without_a_mask_token(sentinel_tokenizer):
    assert sentinel_tokenizer.mask_token is None
    model = tiny("gpt2")
    ids = sentinel_tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    explained = own_answer(model, sentinel_tokenizer, {"input_ids": ids})
    whole = model(ids).logits[0, -1]
    answer = int(whole.argmax())
    expected = []
    for i in range(ids.shape[1]):
        without = model(torch.cat([ids[:, :i], ids[:, i + 1 :]], dim=1)).logits[0, -1]
        expected.append(log_probability(whole, answer) - log_probability(without, answer))
    found = leave_one_out(model, sentinel_tokenizer, explained, range(ids.shape[1]))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_measure_is_scipy_on_numbers_by_hand(tokenizer):
    model = tiny("bert")
    found = measure_faithfulness(model, tokenizer, TEXTS, integrated=True)
    by_hand = {name: [] for name in ("last_layer", "all_layers", "rollout", "value_weighted", "gradient", "integrated")}
    heads = []
    for text in TEXTS:
        seen = record(model, tokenizer, text, values=True).attentions["self"]
        written = slice(1, len(seen.keys) - 1)
        explained = own_answer(model, tokenizer, encode(model, tokenizer, text, None).inputs)
        left_out = np.abs(leave_one_out(model, tokenizer, explained, range(1, len(seen.keys) - 1)))
        embeds = model.get_input_embeddings()(explained.ids_1L).detach().requires_grad_()
        model(inputs_embeds=embeds).logits.log_softmax(-1)[0, explained.ids[0]].backward()
        path = attribute(model, tokenizer, explained, written=[not piece.special for piece in seen.keys])
        scores = {
            "integrated": path.scores[0, written],
            "last_layer": seen.weights[1][:, 0, written].mean(0),
            "all_layers": (seen.weights[0] + seen.weights[1])[:, 0, written].mean(0),
            "rollout": rollout(seen)[-1][0, written],
            "value_weighted": (seen.value_norms[0] + seen.value_norms[1])[:, 0, written].mean(0),
            "gradient": (embeds * embeds.grad).sum(-1)[0].detach().abs().numpy()[written],
        }
        for name, each in scores.items():
            by_hand[name].append(stats.spearmanr(np.abs(each), left_out).statistic)
        heads.append([[stats.spearmanr(h[0, written], left_out).statistic for h in seen.weights[i]] for i in (0, 1)])
    assert found.row == "first"
    assert set(found.methods) == set(by_hand)
    for name, value in found.methods.items():
        assert value.mean == pytest.approx(np.mean(by_hand[name]), abs=1e-6), name
        assert value.low < value.mean < value.high
        assert value.texts == 5
    np.testing.assert_allclose(found.heads, np.mean(heads, axis=0), atol=1e-6)


def planted(word, tokenizer):
    """A classifier without positions whose one head looks at one token, and whose label depends on this token alone."""
    config = DeceroEncoderConfig(
        **SIZES | {"hidden_size": 97, "num_attention_heads": 1, "num_hidden_layers": 1}, head_dim=97, num_labels=2,
        position_embedding_type="none", classifier_pooling="cls", final_norm=False,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).eval()
    token = tokenizer(word, add_special_tokens=False)["input_ids"]
    assert len(token) == 1
    layer = model.base_model.layers[0]
    with torch.no_grad():
        for weight in (*layer.mlp.parameters(), *layer.self_attn.parameters()):
            weight.zero_()
        model.base_model.embed_tokens.weight.copy_(torch.eye(97))
        attention = layer.self_attn
        attention.q_proj.bias.fill_(1.0)
        attention.k_proj.weight[0, token[0]] = 4
        attention.v_proj.weight[token[0], token[0]] = 1
        attention.o_proj.weight.copy_(torch.eye(97))
    return model, token[0]


def test_a_planted_token_ranks_first(tokenizer):
    model, token = planted("tokyo", tokenizer)
    with torch.no_grad():  # whatever the head of the classifier is, let it read the planted feature
        for name, weight in model.named_parameters():
            if not name.startswith("model.") and weight.dim() > 1:
                weight.normal_(std=1.0)
    text = "shares fell sharply in tokyo after profit news"
    found = measure_faithfulness(model, tokenizer, [text]).texts[0]
    ids = [found.pieces[i].id for i in found.tokens]
    assert np.abs(found.left_out).argmax() == ids.index(token)
    assert np.abs(np.delete(found.left_out, ids.index(token))).max() < 0.2 * np.abs(found.left_out).max()
    for name, scores in found.scores.items():
        assert np.abs(scores).argmax() == ids.index(token), name
    assert rank_correlation(found.left_out, found.left_out) == pytest.approx(1)


def test_rows_are_those_of_the_answer(tokenizer, sentinel_tokenizer):
    expected = {"bert": "first", "gpt2": "last", "t5": "target", "masked": "hole", "vector": "mean", "mean": "mean"}
    for name, row in expected.items():
        model, own = tiny(name), sentinel_tokenizer if name in ("gpt2", "t5") else tokenizer
        targets = ["banks gained"] if name == "t5" else None
        found = measure_faithfulness(model, own, TEXTS[:1], targets=targets)
        text = found.texts[0]
        assert found.row == row
        assert found.removal == ("remove" if name in ("gpt2", "t5") else "mask")
        assert len(text.left_out) == len(text.tokens) == text.heads.shape[-1]
        assert ("gradient" in text.scores, "integrated" in text.scores) == (name != "vector", name == "vector")
        assert all(value.low is None for value in found.methods.values())
        assert not any(text.pieces[i].special for i in text.tokens)
        if name == "masked":  # the middle token was masked, and is not left out
            assert text.explained.positions[0] not in text.tokens
            assert len(text.tokens) == len(encode(model, own, TEXTS[0], None).pieces) - 3
        if name == "t5":
            cross = record(model, own, TEXTS[0], target="banks gained").attentions["cross"]
            rows = cross.weights[1][:, : len(text.explained.positions)].mean((0, 1))[text.tokens]
            np.testing.assert_allclose(text.scores["last_layer"], rows, atol=1e-6)
            assert "rollout" not in text.scores


def test_a_seq2seq_classifier_answers_from_its_last_token(sentinel_tokenizer):
    """Leave-one-out also removes the token from the decoder's input."""
    ids = IDS | {"eos_token_id": sentinel_tokenizer.eos_token_id}
    config = T5Config(**T5, **ids, decoder_start_token_id=0, num_labels=3)
    model = T5ForSequenceClassification(config).eval()
    inputs = encode(model, sentinel_tokenizer, TEXTS[0], None).inputs
    own = own_answer(model, sentinel_tokenizer, inputs | {"decoder_input_ids": inputs["input_ids"]})
    assert not any(name.startswith("decoder_") for name in own.inputs)
    assert len(leave_one_out(model, sentinel_tokenizer, own, [0, 1])) == 2
    cross = SimpleNamespace(kind="cross")
    assert row_of(model, own, cross) == "last"
    with pytest.raises(UserError, match="its decoder reads the text, too; gradients of the encoder alone mislead"):
        attribute(model, sentinel_tokenizer, own)


def test_lines_say_what_was_measured_in_both_languages(tokenizer):
    found = measure_faithfulness(tiny("bert"), tokenizer, [*TEXTS, "rose on"])
    lines = faithfulness_lines(found, "en")
    assert lines[0] == f"raw attention, last layer: {found.methods['last_layer']}"
    assert "[" in lines[0]
    assert lines[-1] == "Texts with fewer than 5 tokens to leave out, not counted: 1."
    assert any("mean over 5 texts with a 95 % bootstrap interval" in line for line in lines)
    assert any("the mask token replaces one token at a time" in line for line in lines)
    assert len(faithfulness_lines(found, "es")) == len(lines)
    one = faithfulness_lines(summarize(found.texts[:1], found.row, found.removal), "es")
    assert "Menos de 5 textos: sin intervalo." in one
    none = faithfulness_lines(summarize(found.texts[5:], found.row, found.removal), "en")
    assert none[-1] == "No text is long enough, so nothing was measured."


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_scipy_with_ties(seed):
    draw = np.random.default_rng(seed)
    scores, left_out = draw.integers(0, 5, 20) / 4, draw.normal(size=20).round(1)
    expected = stats.spearmanr(np.abs(scores), np.abs(left_out)).statistic
    assert rank_correlation(scores, left_out) == pytest.approx(expected, abs=1e-12)


def test_correlations_need_tokens_and_differences():
    assert np.isnan(rank_correlation(np.arange(4.0), np.arange(4.0)))
    assert np.isnan(rank_correlation(np.ones(6), np.arange(6.0)))
    assert rank_correlation(-np.arange(6.0), np.arange(6.0)) == pytest.approx(1)  # sizes count


def test_estimates_have_an_interval_from_five_texts_on():
    four, five = estimate([0.1, 0.2, 0.3, 0.4]), estimate([0.9, 1.0, 1.0, 0.95, 0.7], within=(-1, 1))
    assert (four.mean, four.low) == (pytest.approx(0.25), None)
    assert str(four) == "0.25"
    assert five.high == 1
    assert 0.7 < five.low < five.mean
    assert np.isnan(estimate([]).mean)


def test_models_without_one_answer_are_refused(tokenizer):
    model = AutoModelForTokenClassification.from_config(BertConfig(**SIZES)).eval()
    with pytest.raises(UserError, match="BertForTokenClassification gives no single answer to a text"):
        measure_faithfulness(model, tokenizer, TEXTS)
    regression = AutoModelForSequenceClassification.from_config(BertConfig(**SIZES, num_labels=1)).eval()
    with pytest.raises(UserError, match="gives no single answer"):
        measure_faithfulness(regression, tokenizer, TEXTS)
    with pytest.raises(UserError, match="needs a text"):
        measure_faithfulness(model, tokenizer, [])
    with pytest.raises(UserError, match="2 targets for 5 texts"):
        measure_faithfulness(tiny("bert"), tokenizer, TEXTS, targets=["a", "b"])


def test_a_t5_with_a_deeper_decoder_writes_the_answer_it_shows():
    """The cache of `generate` has the layers of the encoder, so it is not used."""
    config = T5Config(**T5 | {"num_layers": 1}, num_decoder_layers=3, **IDS, decoder_start_token_id=0)
    ids = _write(AutoModelForSeq2SeqLM.from_config(config).eval(), {"input_ids": torch.tensor([[5, 6, 7]])}, 6)
    assert 1 < ids.shape[1] <= 6
