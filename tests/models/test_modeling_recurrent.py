"""LSTM language model, BiLSTM, TextCNN, and translation with additive attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from decero.models import (
    DeceroRecurrentConfig,
    DeceroRecurrentForCausalLM,
    DeceroRecurrentForSequenceClassification,
    DeceroRecurrentForTokenClassification,
    DeceroRecurrentSeq2SeqConfig,
    DeceroRecurrentSeq2SeqForConditionalGeneration,
    DeceroTextCNNConfig,
    DeceroTextCNNForSequenceClassification,
)
from decero.models.modeling_recurrent import LockedDropout

TEXT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])
SIZES = {"vocab_size": 37, "hidden_size": 34, "num_labels": 5}
BOTH = DeceroRecurrentConfig(**SIZES, bidirectional=True)
CLASSIFIERS = {
    "max": (DeceroRecurrentForSequenceClassification, BOTH),
    "mean": (
        DeceroRecurrentForSequenceClassification,
        DeceroRecurrentConfig(**SIZES, bidirectional=True, classifier_pooling="mean"),
    ),
    "one way": (DeceroRecurrentForSequenceClassification, DeceroRecurrentConfig(**SIZES, mixer_type="gru")),
    "tags": (DeceroRecurrentForTokenClassification, BOTH),
    "textcnn": (DeceroTextCNNForSequenceClassification, DeceroTextCNNConfig(**SIZES, num_filters=7)),
}


@pytest.fixture
def ids():
    return torch.randint(1, 36, TEXT.shape)


@pytest.fixture
def lstm(randomize):
    return randomize(DeceroRecurrentForCausalLM(DeceroRecurrentConfig(**SIZES))).eval()


@pytest.fixture
def translator(randomize):
    config = DeceroRecurrentSeq2SeqConfig(**SIZES, attention_size=19, eos_token_id=36)
    return randomize(DeceroRecurrentSeq2SeqForConditionalGeneration(config)).eval()


def test_the_language_model_is_two_lstms_of_torch(lstm, ids):
    theirs = nn.LSTM(34, 34, num_layers=2, batch_first=True)
    with torch.no_grad():
        for i, layer in enumerate(lstm.model.layers):
            for name, tensor in layer.mixer.forwards.named_parameters():
                getattr(theirs, name.replace("_l0", f"_l{i}")).copy_(tensor)
    table = lstm.model.embed_tokens.weight
    assert lstm.lm_head.weight is table
    expected = F.linear(theirs(F.embedding(ids, table))[0], table, lstm.lm_head.bias)
    assert_close(lstm(ids).logits, expected)
    labels = F.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert_close(lstm(ids, labels=ids).loss, labels)


def test_the_language_model_writes_the_same_with_states(lstm, ids):
    whole, cache = lstm(ids, attention_mask=TEXT).logits, None
    for start, end in ((0, 3), (3, 6), (6, 7)):
        out = lstm(ids[:, start:end], attention_mask=TEXT[:, :end], past_key_values=cache, use_cache=True)
        cache, text = out.past_key_values, TEXT[:, start:end].bool()
        assert_close(out.logits[text], whole[:, start:end][text], atol=1e-5, rtol=1e-5)
    left = {"input_ids": ids[:2], "attention_mask": TEXT[:2], "max_new_tokens": 5, "num_beams": 3, "pad_token_id": 0}
    written = lstm.generate(**left)
    assert torch.equal(written, lstm.generate(**left, use_cache=False))
    alone = lstm.generate(ids[:1, 2:], max_new_tokens=5, num_beams=3, pad_token_id=0)
    assert torch.equal(written[0, 2:], alone[0])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_reads_a_row_as_if_it_were_alone(name, ids, randomize):
    model_class, config = CLASSIFIERS[name]
    model = randomize(model_class(config)).eval()
    together = model(ids, attention_mask=TEXT).logits
    for row, text, logits in zip(ids, TEXT.bool(), together, strict=True):
        alone = model(row[None, text]).logits[0]
        assert_close(logits[text] if name == "tags" else logits, alone, atol=1e-5, rtol=1e-5)
    changed = ids.clone()
    changed[1, 6] += 1
    assert not torch.allclose(model(changed).logits[1], model(ids).logits[1])
    labels = torch.randint(5, (3, 7)) if name == "tags" else torch.tensor([0, 4, 2])
    model(ids, attention_mask=TEXT, labels=labels).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_locked_dropout_drops_a_feature_everywhere_in_a_text():
    dropped = LockedDropout(0.5)(torch.ones(3, 7, 101))
    assert torch.equal(dropped, dropped[:, :1].expand(3, 7, 101))
    assert sorted(dropped.unique().tolist()) == [0.0, 2.0]
    assert not torch.equal(dropped[0], dropped[1])
    assert torch.equal(LockedDropout(0.5).eval()(dropped), dropped)
    model = DeceroRecurrentForCausalLM(DeceroRecurrentConfig(**SIZES, hidden_dropout_prob=0.9)).train()
    ids = torch.randint(1, 36, (2, 5))
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_textcnn_is_the_maximum_of_windows_by_hand(randomize):
    model = randomize(DeceroTextCNNForSequenceClassification(CLASSIFIERS["textcnn"][1])).eval()
    ids = torch.randint(1, 36, (1, 2))  # shorter than any filter
    x = F.pad(model.model.embed_tokens(ids)[0], (0, 0, 0, 4))
    best = []
    for conv, size in zip(model.model.filters, (3, 4, 5), strict=True):
        windows = [torch.einsum("fdk,kd->f", conv.weight, x[i : i + size]) + conv.bias for i in range(2)]
        best.append(torch.stack(windows).relu().amax(0))
    assert_close(model(ids).logits[0], model.classifier(torch.cat(best)))


# --- translation


def by_hand(model, source, target):
    """Write one text with the equations of Bahdanau et al. 2015, gate by gate."""
    decoder, attention = model.model.decoder, model.model.decoder.attention
    h = model.model.encoder(source[None]).last_hidden_state[0]
    start = decoder.start(h.mean(0)).tanh().chunk(2)
    s, c = list(start), [torch.zeros(34), torch.zeros(34)]
    logits = []
    for y in decoder.embed_tokens(target):
        energy = torch.stack([attention.score((attention.q_proj(s[1]) + attention.k_proj(each)).tanh()) for each in h])
        mix = (energy.softmax(0) * h).sum(0)
        read = torch.cat([y, mix])
        for i, cell in enumerate(decoder.cells):
            gates = cell.weight_ih @ read + cell.bias_ih + cell.weight_hh @ s[i] + cell.bias_hh
            enter, forget, new, out = gates.chunk(4)
            c[i] = forget.sigmoid() * c[i] + enter.sigmoid() * new.tanh()
            s[i] = read = out.sigmoid() * c[i].tanh()
        logits.append(model.lm_head(decoder.output(torch.cat([s[1], mix, y])).tanh()))
    return torch.stack(logits)


def test_translation_follows_the_equations_and_skips_padding(translator, ids):
    target = torch.randint(1, 36, (3, 5))
    out = translator(ids, attention_mask=TEXT, decoder_input_ids=target, output_attentions=True)
    for row in range(3):
        expected = by_hand(translator, ids[row, TEXT[row].bool()], target[row])
        assert_close(out.logits[row], expected, atol=1e-5, rtol=1e-5)
    (weights,) = out.cross_attentions
    assert weights.shape == (3, 1, 5, 7)
    assert_close(weights.sum(-1), torch.ones(3, 1, 5))
    assert weights[TEXT[:, None, None].expand_as(weights) == 0].eq(0).all()
    states = translator(ids, decoder_input_ids=target, output_hidden_states=True)
    assert [len(states.decoder_hidden_states), len(states.encoder_hidden_states)] == [3, 3]


def test_translation_with_states_equals_one_pass(translator, ids):
    target, cache, parts = torch.randint(1, 36, (3, 5)), None, []
    read = {"input_ids": ids, "attention_mask": TEXT}
    for start, end in ((0, 2), (2, 3), (3, 5)):
        out = translator(**read, decoder_input_ids=target[:, start:end], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    whole = translator(**read, decoder_input_ids=target).logits
    assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    written = [translator.generate(**read, max_new_tokens=6, num_beams=3, use_cache=use) for use in (True, False)]
    assert torch.equal(*written)
    left = torch.tensor([[0, 0, 1, 1, 1]] * 3)  # padding of a target does not move its state
    padded = translator(**read, decoder_input_ids=target, decoder_attention_mask=left).logits
    assert_close(padded[:, 2:], translator(**read, decoder_input_ids=target[:, 2:]).logits)


def test_labels_are_shifted_and_every_weight_learns(translator, ids):
    labels = torch.randint(1, 36, (3, 5)).index_fill(1, torch.tensor([4]), -100)
    read = torch.cat((torch.zeros(3, 1, dtype=torch.long), labels[:, :-1]), dim=1)
    out = translator.train()(ids, attention_mask=TEXT, labels=labels)
    logits = translator(ids, attention_mask=TEXT, decoder_input_ids=read).logits
    assert_close(out.loss, F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100))
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in translator.parameters())


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForSeq2SeqLM])
def test_a_saved_model_is_the_same_and_tied(auto, lstm, translator, ids, tmp_path):
    model = lstm if auto is AutoModelForCausalLM else translator
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path).eval()
    more = {} if model is lstm else {"decoder_input_ids": ids[:, :3]}
    assert_close(again(ids, **more).logits, model(ids, **more).logits)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    again.resize_token_embeddings(41)
    assert again(ids, **more).logits.shape[-1] == 41


def test_what_cannot_work_is_refused_in_one_line(lstm, ids):
    with pytest.raises(ValueError, match="reads in one direction; set bidirectional to false"):
        DeceroRecurrentForCausalLM(BOTH)
    with pytest.raises(ValueError, match="has no attention to show: output_attentions needs attention"):
        lstm(ids, output_attentions=True)
    with pytest.raises(ValueError, match="pad, do not pack"):
        lstm(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))
    with pytest.raises(ValueError, match="a cache needs one direction"):
        DeceroRecurrentForTokenClassification(BOTH).model(
            ids, past_key_values=lstm(ids, use_cache=True).past_key_values
        )
    with pytest.raises(Exception, match="hidden_size 33 must be even"):
        DeceroRecurrentConfig(hidden_size=33, bidirectional=True)
    with pytest.raises(Exception, match="filter_sizes"):
        DeceroTextCNNConfig(filter_sizes=[0])
