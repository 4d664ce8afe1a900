"""Packed rows in decero and stock models: loss and gradients as padded, texts do not affect each other."""

import pytest
import torch
import transformers as hf
from datasets import Dataset
from torch.testing import assert_close

import decero.models as ours
from decero.data.packing import Packed
from decero.errors import UserError
from decero.execution.attention_kernels import choose_attention, matmul_attention
from decero.execution.objective import Objective, classification, token_loss
from decero.execution.optimize import pack_if_proven
from decero.execution.packed_forward import logits_of, packed_logits, prove

LENGTHS, WRITTEN = [7, 5, 2, 11, 3, 3, 9, 1], [3, 8, 6, 1, 4, 2, 5, 7]
V, S = (
    37,
    {"vocab_size": 37, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41},
)
STOCK = S | {
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
NONE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SLOTS = {
    "rotary": {},
    "learned": {"position_embedding_type": "learned", "norm_placement": "post"},
    "sinusoidal": {"position_embedding_type": "sinusoidal", "norm_type": "rmsnorm"},
    "relative": {"position_embedding_type": "relative", "scale_attn_weights": False},
}


def distilbert(head, **more):
    return head(hf.DistilBertConfig(
        vocab_size=V, dim=36, n_layers=2, n_heads=3, hidden_dim=41, max_position_embeddings=32, pad_token_id=1,
        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, **more,
    ))  # fmt: skip


TOKENS = {
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**STOCK)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**STOCK)),
    "electra": lambda: hf.ElectraForMaskedLM(hf.ElectraConfig(**STOCK, embedding_size=24)),
    "mpnet": lambda: hf.MPNetForMaskedLM(hf.MPNetConfig(**STOCK)),
    "distilbert": lambda: distilbert(hf.DistilBertForMaskedLM),
    "modernbert": lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(
        **S, max_position_embeddings=32, pad_token_id=1, local_attention=4, bos_token_id=0, eos_token_id=2,
        cls_token_id=0, sep_token_id=2)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(
        vocab_size=V, n_embd=36, n_layer=2, n_head=3, n_positions=32, bos_token_id=0, eos_token_id=2, **NONE)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**S, max_position_embeddings=32)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(
        vocab_size=V, d_model=36, d_kv=12, num_layers=2, num_heads=3, d_ff=41, decoder_start_token_id=0,
        dropout_rate=0.0)),
}  # fmt: skip
for slot, fields in SLOTS.items():
    TOKENS[f"our encoder, {slot}"] = lambda f=fields: ours.DeceroEncoderForMaskedLM(
        ours.DeceroEncoderConfig(**S, **f, pad_token_id=1, type_vocab_size=2)
    )
    TOKENS[f"our decoder, {slot}"] = lambda f=fields: ours.DeceroDecoderForCausalLM(
        ours.DeceroDecoderConfig(**S, **f, pad_token_id=1)
    )
    TOKENS[f"our encoder-decoder, {slot}"] = lambda f=fields: ours.DeceroEncoderDecoderForConditionalGeneration(
        ours.DeceroEncoderDecoderConfig(**S, **f, pad_token_id=1)
    )
TOKENS["our encoder, windows"] = lambda: ours.DeceroEncoderForMaskedLM(
    ours.DeceroEncoderConfig(**S, pad_token_id=1, sliding_window=3, layer_types=["full_attention", "sliding_attention"])
)
TOKENS["our decoder, windows"] = lambda: ours.DeceroDecoderForCausalLM(
    ours.DeceroDecoderConfig(**S, pad_token_id=1, sliding_window=3)
)
TEXTS = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**STOCK, num_labels=5)),
    "roberta": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**STOCK, num_labels=5)),
    "distilbert": lambda: distilbert(hf.DistilBertForSequenceClassification, num_labels=5),
    "our encoder, first token": lambda: ours.DeceroEncoderForSequenceClassification(
        ours.DeceroEncoderConfig(**S, pad_token_id=1, num_labels=5)
    ),
    "our encoder, mean": lambda: ours.DeceroEncoderForSequenceClassification(
        ours.DeceroEncoderConfig(**S, pad_token_id=1, num_labels=5, classifier_pooling="mean")
    ),
}
REFUSED = {
    "xlnet": lambda: hf.XLNetLMHeadModel(hf.XLNetConfig(
        vocab_size=V, d_model=36, n_layer=2, n_head=3, d_inner=41, pad_token_id=1)),
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(
        vocab_size=V, d_model=36, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=41, decoder_ffn_dim=41, pad_token_id=1, decoder_start_token_id=1,
        max_position_embeddings=64,
        bos_token_id=0, eos_token_id=2)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**S, num_key_value_heads=3, sliding_window=4)),
    "xlm": lambda: hf.XLMWithLMHeadModel(hf.XLMConfig(vocab_size=V, emb_dim=36, n_layers=2, n_heads=3)),  # asserts
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=V, hidden_size=36, n_layer=2, n_head=3)),
    "our encoder, lstm": lambda: ours.DeceroEncoderForMaskedLM(ours.DeceroEncoderConfig(
        **S, mixer_type="lstm", position_embedding_type="none", pad_token_id=1)),
    "our decoder, conv": lambda: ours.DeceroDecoderForCausalLM(ours.DeceroDecoderConfig(
        **S, mixer_type="conv", position_embedding_type="none", pad_token_id=1)),
}  # fmt: skip


@pytest.fixture(autouse=True)
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
        if parameter.requires_grad:  # Marian's sinusoidal positions are fixed
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch_for(model, per_text=False):
    generator = torch.Generator().manual_seed(5)
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.where(real, torch.randint(3, V, real.shape, generator=generator), 1)
    batch = {"input_ids": ids, "attention_mask": real.long()}
    if per_text:
        return batch | {"labels": torch.randint(5, (len(LENGTHS),), generator=generator)}
    if not model.config.is_encoder_decoder:
        asked = real & (torch.rand(real.shape, generator=generator) < 0.4)
        return batch | {"labels": torch.where(asked, ids, -100)}
    written = torch.arange(max(WRITTEN)) < torch.tensor(WRITTEN)[:, None]
    target = torch.randint(3, V, written.shape, generator=generator)
    return batch | {
        "decoder_input_ids": torch.where(written, target, 1),
        "decoder_attention_mask": written.long(),
        "labels": torch.where(written, target, -100),
    }


def pack(batch, per_text=()):
    return Packed(lambda rows: dict(batch), 16, per_text=per_text)([])


def gradients(loss, model):
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_dropout_of_the_matmul_kernel_keeps_the_mean():
    """The mean over many draws equals attention without dropout."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 7, 5) for _ in range(3))
    expected, _ = matmul_attention(torch.nn.Identity(), q, k, v)
    many, _ = matmul_attention(torch.nn.Identity(), *(x.expand(20_000, -1, -1, -1) for x in (q, k, v)), dropout=0.2)
    torch.testing.assert_close(many.mean(dim=0, keepdim=True), expected, rtol=0, atol=0.02)


def test_the_matmul_kernel_adds_a_mask_of_any_type():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 5, 7).unbind()
    mask = torch.randn(2, 1, 5, 5).masked_fill(torch.eye(5).bool(), float("-inf"))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
    for dtype, atol in ((torch.float32, 1e-6), (torch.bfloat16, 3e-2)):
        found, _ = matmul_attention(torch.nn.Identity(), *(x.to(dtype) for x in (q, k, v, mask)))
        assert_close(found.float(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("backend", ["sdpa", "eager", "matmul"])
@pytest.mark.parametrize("name", TOKENS)
def test_packed_loss_and_gradients_equal_the_padded_ones(name, backend):
    model = redraw(TOKENS[name]())
    if name == "mpnet" and backend != "sdpa":
        pytest.skip("MPNet has its own attention")
    model.set_attn_implementation(backend)
    batch = batch_for(model)
    packed = pack(batch)
    assert packed["input_ids"].shape[0] < len(LENGTHS)
    losses = [token_loss(model, b) for b in (batch, packed)]
    assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    expected = gradients(losses[0], model)
    scale = max(float(g.abs().max()) for g in expected.values())
    for parameter, gradient in gradients(losses[1], model).items():
        assert_close(
            gradient,
            expected[parameter],
            atol=1e-5 * max(1.0, scale),
            rtol=1e-4,
            msg=lambda m, p=parameter: f"{p}: {m}",
        )


@pytest.mark.parametrize("name", TEXTS)
def test_a_classifier_reads_each_text_of_a_packed_row(name):
    model = redraw(TEXTS[name]())
    batch = batch_for(model, per_text=True)
    objective = classification(lambda rows: dict(batch), "single_label_classification")
    packed = pack(batch, per_text=("labels",))
    assert_close(logits_of(model, packed, per_text=True), logits_of(model, batch), atol=1e-5, rtol=1e-5)
    losses = [objective.loss(model, b) for b in (batch, packed)]
    assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    expected = gradients(losses[0], model)
    for parameter, gradient in gradients(losses[1], model).items():
        assert_close(gradient, expected[parameter], atol=1e-4, rtol=1e-4, msg=lambda m, p=parameter: f"{p}: {m}")


@pytest.mark.parametrize("name", [*TOKENS, *(f"{name} classifier" for name in TEXTS)])
def test_texts_of_a_row_do_not_affect_each_other(name):
    per_text = name.endswith(" classifier")
    model = redraw((TEXTS[name.removesuffix(" classifier")] if per_text else TOKENS[name])())
    packed = pack(batch_for(model, per_text), ("labels",) if per_text else ())
    side = "decoder_text_ids" if model.config.is_encoder_decoder else "text_ids"
    with torch.no_grad():
        before = packed_logits(model, packed, per_text)
        for text in (1, 4):
            changed = packed["input_ids"].clone()
            changed[packed["text_ids"] == text] = 36 - changed[packed["text_ids"] == text] % 30
            after = packed_logits(model, packed | {"input_ids": changed}, per_text)
            real = torch.ones(len(before), dtype=torch.bool) if per_text else packed[side] > 0
            own = torch.arange(1, len(before) + 1) == text if per_text else packed[side] == text
            assert_close(after[real & ~own], before[real & ~own], atol=1e-6, rtol=0)
            assert not torch.allclose(after[own], before[own], atol=1e-3)


@pytest.mark.parametrize("name", TOKENS)
def test_prove_accepts_untrained_models_that_pack(name):
    model = TOKENS[name]().eval()
    batch = batch_for(model)
    assert prove(model, batch, pack(batch)) is None


@pytest.mark.parametrize("name", REFUSED)
def test_prove_refuses_untrained_models_that_do_not_pack(name):
    model = REFUSED[name]().eval()
    batch = batch_for(model)
    assert prove(model, batch, pack(batch))


def test_prove_detects_a_small_leak_between_texts(monkeypatch):
    model = hf.BertForMaskedLM(hf.BertConfig(**STOCK))
    batch = batch_for(model)
    leaky = lambda q, k, *rest: torch.ones(len(q), 1, q.shape[1], k.shape[1]).bool()  # noqa: E731
    monkeypatch.setattr("decero.execution.packed_forward.block_mask", leaky)
    for numbers in (3 * V, 1 << 22):
        monkeypatch.setattr("decero.execution.packed_forward.LOGITS_AT_ONCE", numbers)
        assert prove(model, batch, pack(batch)) == "texts in the same row affect each other"


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "our encoder, rotary"])
def test_prove_compares_few_logits_at_a_time(name, monkeypatch):
    model, sizes = TOKENS[name]().eval(), []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: sizes.append(logits.numel()))
    monkeypatch.setattr("decero.execution.packed_forward.LOGITS_AT_ONCE", 3 * V)
    batch = batch_for(model)
    assert prove(model, batch, pack(batch)) is None
    assert len(sizes) > 3 * sum(LENGTHS if name != "t5" else WRITTEN) // 3
    assert max(sizes) <= max(3, len(LENGTHS)) * V, "three tokens, or one of each row"


@pytest.mark.parametrize(("choice", "packs"), [("auto", True), ("on", True), ("off", False)])
def test_packing_follows_the_setting(choice, packs):
    model = TOKENS["bert"]()
    objective = Objective(lambda rows: batch_for(model), token_loss, lambda batch: 1)
    chosen, line = pack_if_proven(objective, model, Dataset.from_dict({"input_ids": [[3]] * 8}), 16, choice)
    assert isinstance(chosen.collate, Packed) is packs
    assert line.startswith("packing: rows of 16" if packs else "packing: off")


def test_a_model_that_cannot_be_packed_is_padded_or_refused():
    model = REFUSED["xlnet"]()
    objective = Objective(lambda rows: batch_for(model), token_loss, lambda batch: 1)
    chosen, line = pack_if_proven(objective, model, Dataset.from_dict({"input_ids": [[3]] * 8}), 16, "auto")
    assert chosen is objective
    assert "packed rows would change the result" in line
    with pytest.raises(UserError, match=r"training\.packing: xlnet cannot be packed"):
        pack_if_proven(objective, model, Dataset.from_dict({"input_ids": [[3]] * 8}), 16, "on")


def test_prove_does_not_change_the_model():
    model = TOKENS["bert"]().train()
    before, state = {n: p.clone() for n, p in model.state_dict().items()}, torch.get_rng_state()
    batch = batch_for(model)
    prove(model, batch, pack(batch))
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(("precision", "kernel"), [("no", "sdpa"), ("bf16", "matmul")])
def test_the_kernel_is_chosen_by_device_and_precision(precision, kernel):
    model = TOKENS["bert"]()
    assert choose_attention(model, torch.device("cpu"), precision).startswith(f"attention: {kernel}")
    assert model.config._attn_implementation == kernel


def test_the_kernel_of_the_config_is_kept():
    model = TOKENS["bert"]()
    model.set_attn_implementation("eager")
    said = choose_attention(model, torch.device("cpu"), "bf16")
    assert said.partition(";")[0] == "attention: eager, from the model's config"  # it may warn of emulated bf16


@pytest.mark.parametrize(
    "name", ["our encoder, rotary", "our decoder, rotary", "llama", "our encoder-decoder, relative"]
)
def test_the_matmul_kernel_equals_sdpa(name):
    model = redraw(TOKENS[name]())
    batch = {n: t for n, t in batch_for(model).items() if n != "labels"}
    text = batch.get("decoder_attention_mask", batch["attention_mask"]).bool()
    expected = model(**batch).logits
    model.set_attn_implementation("matmul")
    assert_close(model(**batch).logits[text], expected[text], atol=3e-5, rtol=1e-4)
    del batch["attention_mask"]  # also without a mask
    model.set_attn_implementation("sdpa")
    expected = model(**batch).logits
    model.set_attn_implementation("matmul")
    assert_close(model(**batch).logits[text], expected[text], atol=3e-5, rtol=1e-4)


WINDOWS = {
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**S, num_key_value_heads=3, sliding_window=8)),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_shorter_than_only_the_longest_texts_is_found(name):
    """Short texts come first. Packing only them shows no difference, but longer texts would lose their window."""
    rows = [{"input_ids": list(range(3, 3 + size))} for size in [4, 5, 4, 6, 3, 5, 4, 4, 5, 23, 21]]
    dataset = Dataset.from_list(rows)

    def collate(rows):
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r["input_ids"]) for r in rows], True, 1)
        return {"input_ids": ids, "attention_mask": (ids != 1).long(), "labels": ids}

    objective = Objective(collate, token_loss, lambda batch: 1)
    model = redraw(WINDOWS[name]())
    assert "packed rows would change the result" in pack_if_proven(objective, model, dataset, 64, "auto")[1]
    short = Dataset.from_list(rows[:9])
    assert "attention stays within each text" in pack_if_proven(objective, model, short, 64, "auto")[1]


@pytest.mark.parametrize("family", ["bart", "gpt2"])
def test_a_classifier_that_cannot_be_packed_is_padded(family):
    small = {"d_model": 36, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 3}
    small |= {"decoder_attention_heads": 3, "encoder_ffn_dim": 41, "decoder_ffn_dim": 41}
    model = {
        "bart": lambda: hf.BartForSequenceClassification(hf.BartConfig(
            vocab_size=V, **small, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2)),
        "gpt2": lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(
            vocab_size=V, n_embd=36, n_layer=2, n_head=3, n_positions=32, pad_token_id=1, **NONE)),
    }[family]()  # fmt: skip
    dataset = Dataset.from_list([{"input_ids": [*range(3, 3 + size), 2], "labels": size % 2} for size in (4, 7, 5)])

    def collate(rows):
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r["input_ids"]) for r in rows], True, 1)
        labels = torch.tensor([r["labels"] for r in rows])
        return {"input_ids": ids, "attention_mask": (ids != 1).long(), "labels": labels}

    objective = classification(collate, "single_label_classification")
    kept, line = pack_if_proven(objective, redraw(model), dataset, 32, "auto")
    assert kept is objective
    assert line.startswith("packing: off, packed rows would change the result")
    with pytest.raises(UserError, match="cannot be packed"):
        pack_if_proven(objective, model, dataset, 32, "on")
