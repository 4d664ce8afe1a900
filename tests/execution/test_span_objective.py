"""The loss of spans: a sum over windows, equal for packed and padded windows, for encoders and decoders."""

import pytest
import torch
import transformers as hf
from datasets import Dataset
from torch.testing import assert_close

import decero.models as ours
from decero.data.answer_windows import BOTH, END, START
from decero.data.packing import Packed
from decero.errors import UserError
from decero.execution.answer_settings import AnswerSettings, settings_of
from decero.execution.optimize import pack_if_proven
from decero.execution.packed_forward import prove
from decero.execution.span_objective import no_answer_token, span_loss, spans, window_logits

LENGTHS = [7, 5, 3, 11, 3, 4, 9, 3]
V = 37
S = {"vocab_size": V, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41}
STOCK = S | {"max_position_embeddings": 32, "pad_token_id": 1, "type_vocab_size": 2}
STOCK |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NONE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS = {
    "bert": lambda: hf.BertForQuestionAnswering(hf.BertConfig(**STOCK)),
    "roberta": lambda: hf.RobertaForQuestionAnswering(hf.RobertaConfig(**STOCK)),
    "our encoder": lambda: ours.DeceroEncoderForQuestionAnswering(
        ours.DeceroEncoderConfig(**S, pad_token_id=1, type_vocab_size=2)
    ),
    "our decoder": lambda: ours.DeceroDecoderForQuestionAnswering(ours.DeceroDecoderConfig(**S, pad_token_id=1)),
    "llama": lambda: hf.LlamaForQuestionAnswering(hf.LlamaConfig(**S, max_position_embeddings=32, pad_token_id=1)),
}
GPT2 = hf.GPT2Config(vocab_size=V, n_embd=36, n_layer=2, n_head=3, n_positions=32, pad_token_id=1, **NONE)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def redraw(model):
    """Draw large weights, so that the residual stream hides no error."""
    generator = torch.Generator().manual_seed(11)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch_for(model):
    generator = torch.Generator().manual_seed(5)
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.where(real, torch.randint(3, V, real.shape, generator=generator), 1)
    labels = torch.where(real, 0, -100)
    for b, (start, end) in enumerate([(3, 5), (0, 0), (2, 2), (4, 9), (0, 0), (1, 3), (8, 8), (0, 2)]):
        labels[b, start] += START
        labels[b, end] += END
    batch = {"input_ids": ids, "attention_mask": real.long(), "labels": labels}
    return batch | ({"token_type_ids": (ids > 20) & real} if getattr(model.config, "type_vocab_size", 0) > 1 else {})


def batches(model):
    batch = {name: tensor.long() for name, tensor in batch_for(model).items()}
    return batch, Packed(lambda rows: dict(batch), 16)([])


@pytest.mark.parametrize("name", MODELS)
def test_packed_windows_have_the_loss_of_padded_ones(name):
    model = redraw(MODELS[name]())
    batch, packed = batches(model)
    assert len(packed["input_ids"]) < len(LENGTHS)
    assert prove(model, batch, packed) is None
    gradients = []
    for each in (batch, packed):
        loss = span_loss(model, each)
        assert_close(loss, span_loss(model, batch), atol=1e-5, rtol=1e-6)
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    for parameter, expected in gradients[0].items():
        assert_close(gradients[1][parameter], expected, atol=1e-5, rtol=1e-4, msg=lambda m, p=parameter: f"{p}: {m}")


def test_the_loss_is_the_sum_of_two_cross_entropies():
    """Computed from each window alone; transformers halves it and averages, and its softmax takes in padding."""
    model = redraw(MODELS["bert"]())
    batch, _ = batches(model)
    total, halves = 0.0, 0.0
    for b, length in enumerate(LENGTHS):
        alone = {name: tensor[b : b + 1, :length] for name, tensor in batch.items() if name != "labels"}
        labels = batch["labels"][b]
        start, end = (int(((labels == what) | (labels == BOTH)).nonzero()[0]) for what in (START, END))
        outputs = model(**alone, start_positions=torch.tensor([start]), end_positions=torch.tensor([end]))
        halves += outputs.loss.item()
        total -= (outputs.start_logits.log_softmax(1)[0, start] + outputs.end_logits.log_softmax(1)[0, end]).item()
    assert span_loss(model, batch).item() == pytest.approx(total, rel=1e-5) == pytest.approx(2 * halves, rel=1e-5)
    assert spans(lambda rows: batch).count(batch) == len(LENGTHS)


def test_windows_keep_the_order_of_their_rows():
    model = redraw(MODELS["our encoder"]())
    batch, packed = batches(model)
    with torch.no_grad():
        (padded, labels), (unpacked, unpacked_labels) = window_logits(model, batch), window_logits(model, packed)
    assert_close(unpacked, padded, atol=1e-5, rtol=1e-5)
    assert torch.equal(unpacked_labels, labels)
    assert torch.isneginf(padded[2, 3:]).all()


def test_a_leak_between_windows_is_found_and_they_are_padded(monkeypatch):
    model = MODELS["bert"]().eval()
    leaky = lambda q, k, *rest: torch.ones(len(q), 1, q.shape[1], k.shape[1]).bool()  # noqa: E731
    monkeypatch.setattr("decero.execution.packed_forward.block_mask", leaky)
    assert prove(model, *batches(model)) == "texts in the same row affect each other"


PADDED = MODELS | {
    "gpt2": lambda: hf.GPT2ForQuestionAnswering(GPT2),
    "bart": lambda: hf.BartForQuestionAnswering(hf.BartConfig(
        vocab_size=V, d_model=36, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=41, decoder_ffn_dim=41, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, decoder_start_token_id=2)),
    "t5": lambda: hf.T5ForQuestionAnswering(hf.T5Config(
        vocab_size=V, d_model=36, d_kv=12, d_ff=41, num_layers=1, num_heads=3, pad_token_id=1,
        decoder_start_token_id=1)),
}  # fmt: skip


@pytest.mark.parametrize("name", PADDED)
def test_padding_does_not_change_the_logits_of_a_window(name):
    model = redraw(PADDED[name]())
    batch, _ = batches(model)
    with torch.no_grad():
        logits_WL2, _ = window_logits(model, batch)
        for w, length in enumerate(LENGTHS):
            alone, _ = window_logits(model, {each: tensor[w : w + 1, :length] for each, tensor in batch.items()})
            assert_close(logits_WL2[w, :length], alone[0], atol=1e-5, rtol=1e-5, msg=lambda m, w=w: f"{w}: {m}")


@pytest.mark.parametrize("make", [PADDED["gpt2"], PADDED["bart"]], ids=["gpt2", "bart"])
def test_a_model_that_cannot_be_packed_pads_its_windows(make):
    model = redraw(make())
    batch, _ = batches(model)
    objective = spans(lambda rows: {name: tensor[: len(rows)] for name, tensor in batch.items()})
    rows = Dataset.from_list([{"input_ids": [3] * length} for length in LENGTHS])
    chosen, line = pack_if_proven(objective, model, rows, 16, "auto")
    assert chosen is objective
    assert line.startswith("packing: off, packed rows would change the result")
    with pytest.raises(UserError, match="cannot be packed"):
        pack_if_proven(objective, model, rows, 16, "on")


def test_no_answer_is_the_first_token_or_the_end_of_a_decoder(tokenizer, sentinel_tokenizer):
    encoders = [MODELS[name]() for name in ("bert", "roberta", "our encoder")]
    assert {no_answer_token(model, tokenizer) for model in encoders} == {"first"}
    decoders = [*(MODELS[name]() for name in ("our decoder", "llama")), hf.GPT2ForQuestionAnswering(GPT2)]
    assert {no_answer_token(model, tokenizer) for model in decoders} == {"last"}
    assert no_answer_token(encoders[0], sentinel_tokenizer) == "last", "it begins without CLS"


def test_a_checkpoint_says_how_it_reads_or_the_defaults_count():
    config = hf.BertConfig()
    assert settings_of(config, 512, "m") == AnswerSettings(384, 128, 30, None)
    assert settings_of(config, 64, "m") == AnswerSettings(64, 32, 30, None)
    config.question_answering = AnswerSettings(48, 7, 5, 1.5)._asdict()
    assert settings_of(config, 512, "m") == AnswerSettings(48, 7, 5, 1.5)
    for damage in (7, {"stride": -1}, {"max_length": "x"}, {"no_answer_threshold": "y"}, {"max_answer_length": True}):
        config.question_answering = damage
        with pytest.raises(UserError, match=r"m: config\.json: question_answering.*; remove it"):
            settings_of(config, 512, "m")
