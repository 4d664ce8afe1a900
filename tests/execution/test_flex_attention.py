"""FlexAttention over packed rows equals a dense mask; it is chosen only where it is supported.

Its kernels need a GPU to train. These tests run torch's uncompiled form, which applies the same mask to each pair. Only
a compiled kernel can show that the blocks match the mask (the slow test, without gradients).
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers as hf
from accelerate import Accelerator
from datasets import Dataset
from torch.nn.attention import flex_attention
from torch.testing import assert_close
from transformers.integrations import flex_attention as through

import decero.models as ours
from decero.config.sections import ModelSection, TrainingSection
from decero.data.packing import Packed
from decero.execution import attention_kernels as attention
from decero.execution import flex_attention as flex
from decero.execution import optimize as optimizing
from decero.execution.attention_kernels import choose_attention
from decero.execution.build import build_model
from decero.execution.objective import Objective, classification, takes_selected_positions, token_loss
from decero.execution.optimize import compile_layers, optimize
from decero.execution.packed_forward import block_mask, packed_logits, prove

CPU, CUDA, V = torch.device("cpu"), torch.device("cuda"), 37
PRESETS = Path(__file__).parents[2] / "configs" / "model"
LENGTHS = [150, 31, 97, 130, 5, 61]  # rows of 300 tokens: three blocks with one or several texts; the last is partial
S = {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 31}
OURS = S | {"num_attention_heads": 6, "num_key_value_heads": 2, "pad_token_id": 1}
STOCK = S | {"max_position_embeddings": 160, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = {
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**STOCK)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**S, num_key_value_heads=1)),
    "our encoder": lambda: ours.DeceroEncoderForMaskedLM(ours.DeceroEncoderConfig(**OURS)),
    "our decoder": lambda: ours.DeceroDecoderForCausalLM(ours.DeceroDecoderConfig(**OURS)),
    "our encoder-decoder": lambda: ours.DeceroEncoderDecoderForConditionalGeneration(
        ours.DeceroEncoderDecoderConfig(**OURS)
    ),
    "our classifier": lambda: ours.DeceroEncoderForSequenceClassification(
        ours.DeceroEncoderConfig(**OURS, num_labels=5, classifier_pooling="mean")
    ),
}
FLASH = "flash_attention_2"


def stock_t5():
    sizes = {"vocab_size": V, "d_model": 24, "d_kv": 12, "num_layers": 1, "num_heads": 2, "d_ff": 31}
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes, dropout_rate=0.0))


@pytest.fixture
def uncompiled(monkeypatch):
    """Allow gradients on a CPU: torch refuses them because of its compiled kernels."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(through, "WrappedFlexAttention", lambda training: lambda: flex_attention.flex_attention)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)  # untraced


def model_of(name):
    """Build a model with large weights, so that the residual stream hides no error."""
    model, generator = MODELS[name]().eval(), torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def batch_for(model, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(5)

    def side(lengths):
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return real, torch.where(real, torch.randint(3, V, real.shape, generator=generator), 1)

    real, ids = side(lengths)
    batch = {"input_ids": ids, "attention_mask": real.long()}
    if "Classification" in type(model).__name__:
        return batch | {"labels": torch.arange(len(lengths)) % 5}
    if model.config.is_encoder_decoder:
        written, target = side(lengths[::-1])
        batch |= {"decoder_input_ids": target, "decoder_attention_mask": written.long()}
        return batch | {"labels": torch.where(written, target, -100)}
    return batch | {"labels": torch.where(real & (torch.arange(real.shape[1]) % 3 == 1), ids, -100)}


def objective_for(model):
    collate = lambda lengths: batch_for(model, lengths)  # noqa: E731
    if "Classification" in type(model).__name__:
        return classification(collate, "single_label_classification")
    return Objective(collate, token_loss, lambda batch: 1)


def pack(model):
    return Packed(objective_for(model).collate, 300, per_text=objective_for(model).per_text)(LENGTHS)


def loss_and_gradients(model, batch, backend):
    model.set_attn_implementation(backend)
    loss = objective_for(model).loss(model, batch)
    loss.backward()
    found = {name: p.grad / len(LENGTHS) for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), found


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_flex_on_packed_rows_gives_padded_loss_and_gradients(name, uncompiled):
    model = model_of(name)
    expected, gradients = loss_and_gradients(model, batch_for(model), "eager")
    packed = pack(model)
    assert packed["input_ids"].shape[1] > 2 * 128
    loss, found = loss_and_gradients(model, packed, "flex")
    assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert found.keys() == gradients.keys()
    scale = max(1.0, *(float(gradient.abs().max()) for gradient in gradients.values()))
    for parameter, gradient in gradients.items():
        assert_close(found[parameter], gradient, atol=1e-5 * scale, rtol=0, msg=lambda m, p=parameter: f"{p}: {m}")


@pytest.mark.parametrize("name", MODELS)
def test_texts_of_a_row_do_not_affect_each_other(name, uncompiled):
    model = model_of(name)
    model.set_attn_implementation("flex")
    packed, per_text = pack(model), "Classification" in type(model).__name__
    text = packed["decoder_text_ids" if model.config.is_encoder_decoder else "text_ids"]
    changed = packed["input_ids"].clone()
    changed[packed["text_ids"] == 3] = 36 - changed[packed["text_ids"] == 3] % 30
    with torch.no_grad():
        before = packed_logits(model, packed, per_text)
        after = packed_logits(model, packed | {"input_ids": changed}, per_text)
    text = torch.arange(1, len(before) + 1) if per_text else text
    others = (text != 3) & (text > 0)
    assert_close(after[others], before[others], atol=1e-6, rtol=0)
    assert not torch.allclose(after[text == 3], before[text == 3], atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "our decoder"])
def test_rotary_positions_do_not_mix_types_under_autocast(name, uncompiled, monkeypatch):
    """Queries and keys are rotated in fp32, values are not. Not every torch release accepts mixed dtypes."""
    model, seen, forward = model_of(name), set(), flex.flex_attention_forward

    def spy(module, *inputs, **kwargs):
        seen.update(x.dtype for x in inputs[:3])
        return forward(module, *inputs, **kwargs)

    monkeypatch.setattr(flex, "flex_attention_forward", spy)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = loss_and_gradients(model, pack(model), "sdpa")
        loss, _ = loss_and_gradients(model, pack(model), "flex")
    assert seen == {torch.bfloat16}
    assert_close(loss, expected, atol=0, rtol=5e-3)


def test_flex_refuses_a_position_bias_and_pads_with_sdpa():
    model = stock_t5().eval()
    batch = batch_for(model)
    expected = model(**batch).logits
    model.set_attn_implementation("flex")
    assert torch.equal(model(**batch).logits, expected)
    assert "flex_attention does not support a position bias" in prove(model, batch, pack(model))


def test_blocks_that_share_no_text_are_skipped():
    text = torch.arange(512)[None] // 128 + 1
    assert flex.document_mask(text, text, causal=False).sparsity() == 75
    assert flex.document_mask(torch.ones_like(text), torch.ones_like(text), causal=True).sparsity() == 37.5


def test_the_mask_of_an_order_is_the_dense_one():
    text, draw = torch.tensor([[1] * 5 + [2] * 4 + [0] * 2]), torch.Generator().manual_seed(3)
    order = tuple(torch.randint(0, 4, text.shape, generator=draw) for _ in range(2))
    mask = flex.document_mask(text, text, causal=True, order=order)
    query, key = torch.arange(11)[:, None], torch.arange(11)
    expected = block_mask(text, text, True, "sdpa", torch.float32, order)[0, 0]
    assert torch.equal(mask.mask_mod(torch.tensor(0), 0, query, key), expected)
    assert not expected.equal(expected.tril())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "our decoder"])  # with fully visible blocks, and without
def test_a_compiled_kernel_reads_the_blocks_of_the_mask(name):
    model = model_of(name)
    packed = pack(model)
    with torch.no_grad():
        expected = packed_logits(model, packed)
        model.set_attn_implementation("flex")
        assert_close(packed_logits(model.requires_grad_(False), packed), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_one_compiled_graph_handles_all_block_masks(monkeypatch):
    """With `training.compile`, each batch passes a new mask to the same graph."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = model_of("our decoder")
    packed = Packed(objective_for(model).collate, 300, full=True)
    batches = [packed(lengths) for lengths in (LENGTHS, [200, 10, 20, 100], [20] * 40, [150, 150, 140, 140, 100])]
    expected = [loss_and_gradients(model, batch, "sdpa") for batch in batches]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(model)
    for batch, (loss, gradients) in zip(batches, expected, strict=True):
        got, found = loss_and_gradients(model, batch, "flex")
        assert_close(got, loss, atol=0, rtol=1e-5)
        assert_close(found, gradients, atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3, "a trial, one length, any number of rows"
    torch._dynamo.reset()


def rows_of(model, tokens=512, **training):
    """Run `optimize` for rows to be packed into `tokens`; it prints its lines."""
    settings = TrainingSection(max_train_steps=1, **training)
    dataset = Dataset.from_dict({"input_ids": [[3] * length for length in LENGTHS]})
    objective = objective_for(model)
    plain = replace(objective, collate=lambda rows: objective.collate([len(row["input_ids"]) for row in rows]))
    return optimize(Accelerator(cpu=True), model, plain, dataset, tokens, settings)


@pytest.fixture
def on_a_gpu(monkeypatch, uncompiled):
    """Choose kernels as on a GPU, and run them uncompiled on the CPU."""
    chosen = attention.choose_attention
    monkeypatch.setattr(optimizing, "choose_attention", lambda model, device, *more: chosen(model, CUDA, *more))
    monkeypatch.setattr(attention, "trial", lambda *tried: None)


def test_flex_is_chosen_if_supported_with_rows_of_one_length(on_a_gpu, capsys):
    model = model_of("our decoder")
    objective = rows_of(model)
    assert model.config._attn_implementation == "flex"
    assert objective.collate(Dataset.from_dict({"input_ids": [[3] * 9] * 3}))["input_ids"].shape == (1, 512)
    kernel, packing = capsys.readouterr().out.splitlines()
    assert kernel.startswith("attention: flex (skips blocks of packed rows that share no text)")
    assert packing == "packing: rows of 512 tokens, attention stays within each text"


def bert(**fields):
    return hf.BertForMaskedLM(hf.BertConfig(**(STOCK | fields)))


UNSUPPORTED = {
    "short rows": (lambda: bert(), 256, "rows of 256 tokens have few blocks to skip"),
    "dropout": (lambda: bert(attention_probs_dropout_prob=0.1), 512, "attention_probs_dropout_prob is 0.1"),
    "selected positions": (MODELS["our encoder"], 512, "the last layer computes only scored positions"),
    "our relative": (
        lambda: ours.DeceroDecoderForCausalLM(ours.DeceroDecoderConfig(**OURS, position_embedding_type="relative")),
        512, "it does not support relative positions"),
    "t5": (stock_t5, 512, "it does not support relative positions"),
    "windows": (
        lambda: ours.DeceroDecoderForCausalLM(ours.DeceroDecoderConfig(**OURS, sliding_window=3)),
        512, "sliding-window layers need a dense mask"),
    "no support": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(
        vocab_size=V, n_embd=24, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
        512, "GPT2LMHeadModel does not support it"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_flex_is_not_used_if_unsupported_with_a_reason(case, on_a_gpu):
    make, row, why = UNSUPPORTED[case]
    model = make()
    line = choose_attention(model, CUDA, "bf16", row)
    assert line.startswith("attention: sdpa, with a block mask for packed rows; flex_attention is not used: ")
    assert why in line
    assert model.config._attn_implementation == "sdpa"


def test_a_failed_trial_keeps_sdpa(monkeypatch):
    def broken(*sizes):
        raise RuntimeError("PTXAS error: no kernel image\nmany more lines")

    model = model_of("our decoder")
    monkeypatch.setattr(flex, "relative_error", broken)
    line = choose_attention(model, CUDA, "bf16", 512)
    assert line.endswith("is not used: a trial failed: PTXAS error: no kernel image")
    monkeypatch.setattr(flex, "relative_error", lambda *sizes: float("nan"))
    assert "is not used: in a trial it differed from sdpa by nan%" in choose_attention(model, CUDA, "no", 512)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_compares_outputs_and_gradients(dtype, uncompiled, monkeypatch):
    sizes = 4, 2, 16, 300
    assert max(flex.relative_error(*sizes, causal, CPU, dtype) for causal in (False, True)) < 0.02
    right = flex.document_mask
    monkeypatch.setattr(flex, "document_mask", lambda query, key, causal: right(query, key, not causal))
    assert flex.relative_error(*sizes, True, CPU, dtype) > 0.1
    monkeypatch.setattr(flex, "document_mask", lambda query, key, causal: right(query.clamp(max=2), key, causal))
    assert flex.relative_error(*sizes, False, CPU, dtype) > 0.1


def test_rows_that_fail_with_flex_are_packed_with_sdpa(on_a_gpu, monkeypatch, capsys):
    everything = lambda query, key, causal, order: flex.create_block_mask(  # noqa: E731
        lambda b, h, q, k: q == q, len(query), None, query.shape[1], key.shape[1], device="cpu"
    )
    monkeypatch.setattr("decero.execution.packed_forward.document_mask", everything)
    model = model_of("our decoder")
    assert isinstance(rows_of(model).collate, Packed)
    assert model.config._attn_implementation == "sdpa"
    assert capsys.readouterr().out.splitlines()[1] == (
        "packing: rows of 512 tokens, attention stays within each text; attention: changed to sdpa, because with "
        "flex_attention texts in the same row affect each other"
    )


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("flash_attention_2", "it does not run on a CPU"),
        ("flash_attention_3", "it does not run on a CPU"),
        ("flex_attention", "it has no backward pass on a CPU"),
    ],
)
def test_an_unsupported_requested_kernel_is_replaced(asked, why, tokenizer):
    section = ModelSection(config=str(PRESETS / "modern_decoder_tiny.yaml"), attn_implementation=asked)
    model = build_model(section, hf.AutoModelForCausalLM, tokenizer, 48, seed=0)
    assert model.config._attn_implementation == "sdpa"
    assert choose_attention(model, CPU, "no", 512, asked).endswith(f"; {asked} was requested, but {why}")
    assert model.config._attn_implementation == "sdpa"


def test_a_gpu_kernel_is_replaced_on_a_cpu():
    model = model_of("bert")
    model.set_attn_implementation("flex_attention")
    assert "flex_attention was requested, but it has no backward pass on a CPU" in choose_attention(model, CPU, "no")
    assert model.config._attn_implementation == "sdpa"


def test_without_package_or_precision_flash_falls_back_to_sdpa():
    def missing(name):
        raise ImportError("the package flash_attn seems to be not installed.\nPlease refer to the documentation")

    model = model_of("llama")
    model.set_attn_implementation = missing
    assert "needs training.mixed_precision=bf16" in choose_attention(model, CUDA, "no", 512, FLASH)
    line = choose_attention(model, CUDA, "bf16", 512, FLASH)
    assert line.startswith("attention: sdpa; ")
    assert "; flash_attention_2 was requested, but the package flash_attn seems to be not installed. Please" in line
    assert "\n" not in line
    assert model.config._attn_implementation == "sdpa"


def test_a_kernel_may_be_set_under_another_name():
    """Without flash_attn, transformers uses flash-attention of the kernels package."""
    model = model_of("llama")

    def renamed(name):
        model.config._attn_implementation = {"flash_attention_2": "kernels-community/flash-attn2"}.get(name, name)

    model.set_attn_implementation = renamed
    line = choose_attention(model, CUDA, "bf16", 512, FLASH)
    assert line == "attention: kernels-community/flash-attn2, as requested"


def test_a_failed_kernel_change_is_undone():
    model = model_of("llama")
    whole = model.set_attn_implementation

    def half(name):
        if "flash" not in name:
            return whole(name)
        model.config._attn_implementation = name
        raise ValueError("an inner model has none")

    model.set_attn_implementation = half
    line = choose_attention(model, CUDA, "bf16", requested=FLASH)
    assert line.endswith("; flash_attention_2 was requested, but an inner model has none")
    assert model.config._attn_implementation == "sdpa"


def test_a_replaced_kernel_is_reported_even_when_quiet(rows, objective, tiny_model, capsys):
    accelerator, model, training = Accelerator(cpu=True), tiny_model(), TrainingSection(max_train_steps=1)
    optimize(accelerator, model, objective, rows, 48, training, quiet=True)
    assert capsys.readouterr().out == ""
    optimize(accelerator, model, objective, rows, 48, training, quiet=True, attention=FLASH)
    assert capsys.readouterr().out.endswith("; flash_attention_2 was requested, but it does not run on a CPU\n")


def test_a_supported_requested_kernel_is_kept(on_a_gpu):
    model = model_of("our encoder")
    assert takes_selected_positions(model)
    flex_kernel = "flex_attention"
    line = "attention: flex (flex_attention for packed rows, sdpa for padded ones), as requested"
    assert choose_attention(model, CUDA, "bf16", 128, flex_kernel) == line
    assert not takes_selected_positions(model), "block masks cannot be indexed by position"
    model.set_attn_implementation("sdpa")
    line = choose_attention(model, CUDA, "bf16", requested=flex_kernel)
    assert line == "attention: flex_attention, as requested"
    for kernel in ("eager", "sdpa"):
        assert choose_attention(model, CPU, "bf16", 512, kernel).startswith(f"attention: {kernel}, as requested")


@pytest.mark.parametrize(
    ("machine", "has", "warns"),
    [
        ("x86_64", {}, True),
        ("x86_64", {"_is_avx512_bf16_supported"}, False),
        ("AMD64", {"_is_amx_tile_supported"}, False),
        ("riscv64", {}, False),
    ],
)
def test_emulated_bf16_is_reported_and_kept(machine, has, warns, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in has)
    warning = "; this CPU emulates bf16, which is slower than fp32"
    assert choose_attention(model_of("bert"), CPU, "bf16").endswith(warning) is warns
    assert warning not in choose_attention(model_of("bert"), CPU, "no")


@pytest.mark.parametrize("has", [True, False])
def test_bf16_support_is_detected_on_arm(has, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    assert ("emulates" in choose_attention(model_of("bert"), CPU, "bf16")) is not has
