"""Adapters inside stock and decero models: as peft used by hand, packed as before, and merged as they were."""

import json
import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    LlamaConfig,
    T5Config,
    set_seed,
)

from decero.config.sections import ModelSection
from decero.config.training_run import PeftSection
from decero.errors import UserError
from decero.execution.adapters import adapter_of, add_adapter, costs, save_whole
from decero.execution.merging import BASE
from decero.execution.model_folder import fingerprint_of, open_checkpoint
from decero.execution.objective import language_model, only_projects
from decero.execution.packed_forward import prove
from decero.execution.pretrained import load_pretrained
from decero.hub.merge import merge
from decero.inference.loading import commands_of
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig, DeceroEncoderDecoderConfig

CLASSIFY, WRITE, ANSWER = AutoModelForSequenceClassification, AutoModelForCausalLM, AutoModelForSeq2SeqLM
SIZES = {"vocab_size": 31, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
LABELS = {"num_labels": 3, "pad_token_id": 0}
ENDS, START = {"bos_token_id": 1, "eos_token_id": 1}, {"decoder_start_token_id": 0}
OURS = SIZES | {"num_attention_heads": 1}
MODELS = {
    "decero classifier": (CLASSIFY, DeceroEncoderConfig(**OURS, **LABELS)),
    "bert classifier": (CLASSIFY, BertConfig(**SIZES, **LABELS)),
    "gpt2": (WRITE, GPT2Config(vocab_size=31, n_embd=22, n_layer=2, n_head=2, n_positions=41, **ENDS)),
    "llama": (WRITE, LlamaConfig(**OURS, num_key_value_heads=1, tie_word_embeddings=True)),
    "decero decoder": (WRITE, DeceroDecoderConfig(**OURS)),
    "t5": (ANSWER, T5Config(vocab_size=31, d_model=22, d_kv=11, d_ff=37, num_layers=2, num_heads=2, **START)),
    "decero encoder-decoder": (ANSWER, DeceroEncoderDecoderConfig(**OURS, **START)),
}
PEFT = PeftSection(r=3, alpha=5.0)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return name -> folder of a checkpoint."""
    folders = {}
    for name, (auto, config) in MODELS.items():
        set_seed(0)
        model = auto.from_config(config)
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if hasattr(model.config, key):
                setattr(model.config, key, 0.0)
        folders[name] = tmp_path_factory.mktemp("base") / "model"
        model.save_pretrained(folders[name])
    return folders


def adapted(bases, name, section=PEFT):
    auto, base = MODELS[name][0], bases[name]
    model = load_pretrained(auto, open_checkpoint(str(base)), new_head=True)
    return add_adapter(model, section, ModelSection(name_or_path=str(base)), auto, seed=7)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("decero")])
def test_peft_knows_the_layers_of_our_models(name):
    auto, config = MODELS[name]
    model = get_peft_model(auto.from_config(config), LoraConfig(r=3))
    trained = {part.partition(".lora_")[0] for part, weight in model.named_parameters() if weight.requires_grad}
    named = {part for part, _ in model.named_modules() if part.endswith((".q_proj", ".v_proj"))}
    assert trained == named
    assert len(named) == (12 if "encoder-decoder" in name else 4)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["decero", "peft"])
def test_peft_is_imported_before_or_after_decero_and_never_by_it(first):
    table = "peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"
    lines = {
        "decero": "import sys, decero; assert not {'peft', 'transformers'} & set(sys.modules); import peft",
        "peft": "import peft, decero",
    }
    code = f"{lines[first]}; assert {table}['decero_decoder'] == ['q_proj', 'v_proj']"
    subprocess.run([sys.executable, "-c", code], check=True)


def disturb(model):
    """Give the adapter weights that matter: B starts at zero."""
    torch.manual_seed(1)
    names = adapter_of(model).names
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in names:
                weight.add_(torch.randn(weight.shape) * 0.2)
    return model


def batch(model):
    torch.manual_seed(2)
    inputs = {"input_ids": torch.randint(1, 31, (3, 11)), "attention_mask": torch.ones(3, 11, dtype=torch.long)}
    if model.config.is_encoder_decoder:
        inputs |= {"decoder_input_ids": torch.randint(1, 31, (3, 7))}
    return inputs


def logits(model):
    with torch.no_grad():
        return model.eval()(**batch(model)).logits


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_gradients_are_those_of_peft_by_hand(bases, name):
    auto, ours = MODELS[name][0], adapted(bases, name)
    stock = auto.from_pretrained(bases[name])
    whole = [n for n, _ in stock.named_children() if n in ("classifier", "score")] or None
    torch.manual_seed(7)
    kind = {CLASSIFY: "SEQ_CLS", WRITE: "CAUSAL_LM", ANSWER: "SEQ_2_SEQ_LM"}[auto]
    config = LoraConfig(
        task_type=kind, r=3, lora_alpha=5.0, target_modules="all-linear", modules_to_save=whole, lora_dropout=0.0
    )
    theirs = get_peft_model(stock, config)
    pairs = list(zip(ours.named_parameters(), theirs.named_parameters(), strict=True))
    assert all(torch.equal(p, q) and p.requires_grad == q.requires_grad for (_, p), (_, q) in pairs)
    torch.manual_seed(3)
    change = {n: torch.randn(p.shape) * 0.1 for n, p in ours.named_parameters() if p.requires_grad}
    for (n, p), (_, q) in pairs:
        if n in change:
            p.data.add_(change[n])
            q.data.add_(change[n])
    for model in (ours, theirs):
        torch.logsumexp(model.eval()(**batch(ours)).logits, dim=-1).sum().backward()
    assert logits(ours).sub(logits(theirs)).abs().max() == 0
    for (n, p), (_, q) in pairs:
        assert (p.grad is None) == (q.grad is None), n
        assert p.grad is None or torch.equal(p.grad, q.grad), n


@pytest.mark.parametrize("name", MODELS)
def test_inputs_are_kept_once_and_gradients_do_not_change(bases, name):
    """Under autocast, peft's cast to fp32 ends as a second bf16 copy of each input."""

    def step(casts):
        model, kept = disturb(adapted(bases, name)), {}
        for module in model.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                assert not module.cast_input_dtype_enabled
                module.cast_input_dtype_enabled = casts

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
            loss = torch.logsumexp(model.eval()(**batch(model)).logits.float(), dim=-1).sum()
        loss.backward()
        return sum(kept.values()), [p.grad for p in model.parameters() if p.grad is not None]

    (once, ours), (twice, theirs) = step(False), step(True)
    assert once < twice
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_adapter_merges_into_the_same_outputs(bases, name, tmp_path):
    """Read by decero, merged in memory and on disk, and by peft's own class."""
    model = disturb(adapted(bases, name))
    wanted, folder = logits(model), tmp_path / "model"
    folder.mkdir()
    save_whole(model, folder)
    assert {path.name for path in folder.glob("*.safetensors")} == {"adapter_model.safetensors"}
    auto = MODELS[name][0]
    again = load_pretrained(auto, open_checkpoint(str(folder)), new_head=False)
    assert type(again) is type(model)
    assert set(again.state_dict()) == set(auto.from_pretrained(bases[name]).state_dict())
    assert logits(again).sub(wanted).abs().max() <= 1e-5 * wanted.abs().max()
    merge(folder, tmp_path / "merged", say=lambda line: None)
    merged = auto.from_pretrained(tmp_path / "merged")
    assert logits(merged).sub(wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert logits(auto.from_pretrained(bases[name])).sub(wanted).abs().max() > 1e-2 * wanted.abs().max()
    if name in ("bert classifier", "llama"):
        kind = AutoPeftModelForSequenceClassification if auto is CLASSIFY else AutoPeftModelForCausalLM
        theirs = kind.from_pretrained(folder, **({"num_labels": 3} if auto is CLASSIFY else {}))
        assert torch.equal(logits(theirs), wanted)


def test_packed_rows_and_the_scored_only_head_are_kept(bases):
    model = disturb(adapted(bases, "llama")).eval()
    ids, places = torch.randint(1, 31, (2, 6)), torch.arange(6)
    padded = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    packed = {
        "input_ids": ids.reshape(1, 12), "position_ids": places.repeat(2)[None], "labels": ids.reshape(1, 12),
        "text_ids": torch.tensor([1] * 6 + [2] * 6)[None],
    }  # fmt: skip
    assert prove(model, padded, packed) is None
    assert only_projects(model, padded, torch.ones_like(ids, dtype=torch.bool))
    loss = language_model(lambda rows: padded).loss(model, padded)
    plain = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten(), reduction="sum")
    assert loss.detach().sub(plain).abs() <= 1e-4


def test_a_new_pooler_is_trained_and_saved_whole(bases, tmp_path):
    """A checkpoint without a pooler gets one with random weights, which an adapter of low rank would lose."""
    folder = tmp_path / "base"
    folder.mkdir()
    tensors = load_file(bases["bert classifier"] / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if "pooler" not in n and not n.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((bases["bert classifier"] / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    model = disturb(adapted({"bert classifier": folder}, "bert classifier"))
    assert {n.partition(".modules_to_save")[0] for n in adapter_of(model).names if "lora" not in n} == {
        "bert.pooler", "classifier",
    }  # fmt: skip
    wanted = logits(model)
    (tmp_path / "model").mkdir()
    save_whole(model, tmp_path / "model")
    again = load_pretrained(CLASSIFY, open_checkpoint(str(tmp_path / "model")), new_head=False)
    assert logits(again).sub(wanted).abs().max() <= 1e-5


def test_the_costs_count_what_is_trained(bases):
    model = adapted(bases, "bert classifier")
    full = CLASSIFY.from_pretrained(bases["bert classifier"])
    linear, r = 2 * (4 * (22 + 22) + 2 * (22 + 37)) + (22 + 22), 3  # the pooler's last
    trained = r * linear + 3 * 22 + 3
    found = costs(model, tokens=10)
    assert found["trained_parameters"] == trained
    assert found["num_parameters"] == full.num_parameters() + r * linear
    weights = full.num_parameters(exclude_embeddings=True) + r * linear
    assert found["total_flos"] == 10 * (4 * weights + 2 * trained)
    assert "trained_parameters" not in costs(full, tokens=10)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_pro"], "q_pro names no layer of this model; did you mean q_proj?"),
        (["lm_head"], "lm_head is no linear layer of the body; there are q_proj, k_proj, v_proj, o_proj"),
        (["embed_tokens"], "embed_tokens is no linear layer of the body"),
    ],
)
def test_layers_that_cannot_be_adapted_are_named(bases, targets, said):
    with pytest.raises(UserError, match=said):
        adapted(bases, "llama", PeftSection(target_modules=targets))
    model = adapted(bases, "llama", PeftSection(target_modules=["q_proj", "v_proj"]))
    assert len(adapter_of(model).names) == 8


def settings(change):
    def harm(folder, base):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return harm


def tensors(change):
    def harm(folder, base):
        path = folder / "adapter_model.safetensors"
        found = change(load_file(path))
        save_file(found, path, metadata={"format": "pt"})

    return harm


def other_base(folder, base):
    found = load_file(base / "model.safetensors")
    name = next(iter(found))
    save_file(found | {name: found[name] + 1}, base / "model.safetensors", metadata={"format": "pt"})


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (settings({"peft_type": "PREFIX_TUNING"}), "peft_type is 'PREFIX_TUNING'; decero reads LORA only"),
        (settings({"base_model_name_or_path": None}), "base_model_name_or_path is None, not a name"),
        (settings({"base_model_name_or_path": "./gone"}), r"an adapter for the model ./gone: .*no such folder"),
        (settings({"layer_replication": [[0, 2]]}), "uses layer_replication, which decero does not read"),
        (settings({"target_modules": ["nothing"]}), "it does not fit LlamaForCausalLM"),
        (tensors(lambda t: {n: v for n, v in t.items() if n != FIRST}), "down_proj.lora_A.weight is missing"),
        (tensors(lambda t: t | {"a": t[FIRST].clone()}), "a has no place in LlamaForCausalLM"),
        (tensors(lambda t: t | {FIRST: t[FIRST][:2].clone()}), r"has shape \[2, 37\], not \[3, 37\]"),
        (tensors(lambda t: t | {FIRST: t[FIRST] * torch.nan}), "holds NaN or infinity"),
        (other_base, "has other weights than the model that this adapter was trained on"),
        (lambda folder, base: (folder / "adapter_model.safetensors").unlink(), "safetensors: no such file"),
    ],
)  # fmt: skip
def test_a_damaged_adapter_is_one_line(bases, tmp_path, harm, said):
    base, folder = tmp_path / "base", tmp_path / "model"
    WRITE.from_pretrained(bases["llama"]).save_pretrained(base)
    folder.mkdir()
    save_whole(disturb(adapted({"llama": base}, "llama")), folder)
    assert BASE in (folder / "adapter_model.safetensors").read_bytes()[:300].decode("utf-8", "ignore")
    harm(folder, base)
    with pytest.raises(UserError, match=said):
        merge(folder, tmp_path / "merged", say=lambda line: None)
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_peft_needs_the_labels_of_its_model(bases, tmp_path):
    """peft saves no configuration; the one of its model names the class that the model had before."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    BertForMaskedLM.from_pretrained(bases["bert classifier"]).save_pretrained(base)
    model = CLASSIFY.from_pretrained(base, num_labels=3, id2label={0: "bad", 1: "good", 2: "so so"})
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["pooler"])
    theirs = get_peft_model(model, lora)
    theirs.save_pretrained(folder)
    line = r"a new head \(SEQ_CLS\) needs a config.json with its labels; save model.config .* or merge it with peft"
    with pytest.raises(UserError, match=line):
        merge(folder, tmp_path / "merged", say=lambda line: None)
    with pytest.raises(UserError, match=line):
        commands_of(str(folder))
    theirs.config.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert commands_of(str(folder)) == ("classify",)
    merge(folder, tmp_path / "merged", say=lambda line: None)
    merged = CLASSIFY.from_pretrained(tmp_path / "merged")
    assert merged.config.id2label[2] == "so so"
    assert logits(merged).sub(logits(theirs)).abs().max() <= 1e-5


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_in_an_adapter_are_named(bases, tmp_path, tied):
    base, folder = tmp_path / "base", tmp_path / "adapter"
    model = WRITE.from_pretrained(bases["gpt2"], tie_word_embeddings=tied)
    model.save_pretrained(base)
    model = WRITE.from_pretrained(base)
    model.resize_token_embeddings(33)
    get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"])).save_pretrained(folder)
    with pytest.raises(UserError, match=r"holds embeddings of the model, perhaps for added tokens .* merge it with"):
        merge(folder, tmp_path / "merged", say=lambda line: None)


def test_a_fingerprint_tells_adapters_and_their_bases_apart(bases, tmp_path):
    base, folder = tmp_path / "base", tmp_path / "model"
    WRITE.from_pretrained(bases["llama"]).save_pretrained(base)
    folder.mkdir()
    model = adapted({"llama": base}, "llama")
    save_whole(model, folder)
    seen = [fingerprint_of(open_checkpoint(str(folder))) for _ in range(2)]
    save_whole(disturb(model), folder)
    seen.append(fingerprint_of(open_checkpoint(str(folder))))
    other_base(folder, base)
    seen.append(fingerprint_of(open_checkpoint(str(folder))))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_what_an_adapter_cannot_start_from_is_refused(bases, tmp_path, monkeypatch):
    model = adapted(bases, "llama")
    (tmp_path / "model").mkdir()
    save_whole(model, tmp_path / "model")
    with pytest.raises(UserError, match="is an adapter itself; run decero merge"):
        adapted({"llama": tmp_path / "model"}, "llama")
    with pytest.raises(UserError, match="holds no adapter; give the folder"):
        merge(bases["llama"], tmp_path / "merged")
    with pytest.raises(UserError, match="an adapter keeps its num_labels; to change it, run decero merge"):
        load_pretrained(WRITE, open_checkpoint(str(tmp_path / "model")), new_head=True, num_labels=5)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"need the package peft: pip install 'decero\[peft\]'"):
        adapted(bases, "llama")
