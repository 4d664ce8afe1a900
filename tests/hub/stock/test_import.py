"""`decero import` reads what checkpoints hold: shards, old names, unused tensors, two dtypes, the hub."""

import json

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tests.hub.stock.folders import edit, refused

from decero.hub.convert import export_model, import_model


def test_shards_old_names_and_unused_tensors_are_read(find_case, tmp_path, capsys):
    """As in BERT's own checkpoints: pretraining heads, gamma and beta, position_ids, several files."""
    case = find_case("bert", "ForMaskedLM")
    stock = hf.BertForPreTraining(case.config())
    stock.save_pretrained(tmp_path / "stock")
    tensors = load_file(tmp_path / "stock" / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(17)[None]
    (tmp_path / "stock" / "model.safetensors").unlink()
    halves = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for i, (name, tensor) in enumerate(old.items()):
        halves[sorted(halves)[i % 2]][name] = tensor
    for name, half in halves.items():
        save_file(half, tmp_path / "stock" / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, half in halves.items() for name in half}}
    (tmp_path / "stock" / "model.safetensors.index.json").write_text(json.dumps(index))

    ours = import_model(tmp_path / "stock", tmp_path / "ours")
    said = capsys.readouterr().out
    for name in ("cls.seq_relationship.weight", "bert.pooler.dense.bias", "bert.embeddings.position_ids"):
        assert name in said
    back = load_file(export_model(ours, tmp_path / "back", "bert") / "model.safetensors")
    assert back.keys() == {n for n in tensors if "seq_relationship" not in n and "pooler" not in n}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in back.items())


def test_the_first_gpt2_and_t5_files(find_case, tmp_path, capsys):
    """GPT-2's file has no prefix and stores masks; T5's stores its embeddings three times, and an unused bias."""
    dead = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    for variant, head, buffer in (("gpt2", "ForCausalLM", "h.0.attn.bias"), ("t5", "ForConditionalGeneration", dead)):
        stock = find_case(variant, head).stock()
        stock.save_pretrained(tmp_path / variant)
        tensors = {name.removeprefix("transformer."): t.clone() for name, t in stock.state_dict().items()}
        if variant == "gpt2":
            del tensors["lm_head.weight"]
        save_file(tensors | {buffer: torch.ones(5)}, tmp_path / variant / "model.safetensors", {"format": "pt"})
        back = export_model(import_model(tmp_path / variant, tmp_path / f"our-{variant}"), tmp_path / f"back-{variant}")
        assert f"dropped tensors: {buffer}\n" in capsys.readouterr().out
        again = type(stock).from_pretrained(back).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in stock.state_dict().items())


def test_a_bare_model_without_architectures_and_without_a_pooler(find_case, tmp_path):
    case = find_case("bert", "Model")
    hf.BertModel(case.config(), add_pooling_layer=False).save_pretrained(tmp_path / "stock")
    edit(tmp_path / "stock" / "config.json", architectures=None)
    back = export_model(import_model(tmp_path / "stock", tmp_path / "ours"), tmp_path / "back", "bert")
    assert not any("pooler" in name for name in load_file(back / "model.safetensors"))


def test_from_the_hub(stock_folder, hub, tmp_path):
    folder = stock_folder()
    (folder / "modeling_mine.py").write_text("raise SystemExit\n")
    (folder / "pytorch_model.bin").write_text("a pickle")
    hub.add("me/tiny", **{path.name.replace(".", "__"): path.read_bytes() for path in folder.iterdir()})
    import_model("me/tiny", tmp_path / "ours")
    assert load_file(tmp_path / "ours" / "model.safetensors")
    assert not any(".bin" in request or ".py" in request for request in hub.requests)
    refused("me/other", tmp_path / "none", "me/other: no such folder; cannot download it from the hub: ")


def test_one_file_of_two_dtypes_loses_nothing(stock_folder, tmp_path, capsys):
    folder = stock_folder(dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    wide = "bert.embeddings.LayerNorm.weight"
    tensors[wide] = torch.randn(33)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    ours = load_file(import_model(folder, tmp_path / "ours") / "model.safetensors")
    assert torch.equal(ours["model.embed_norm.weight"], tensors[wide])
    assert {t.dtype for t in ours.values()} == {torch.float32}
    assert "holds torch.bfloat16 and torch.float32; all become torch.float32" in capsys.readouterr().out


def test_sinusoids_in_a_marian_file_are_checked_and_dropped(stock_folder, tmp_path):
    folder = stock_folder("marian", "ForConditionalGeneration")
    tensors = load_file(folder / "model.safetensors")
    name = "model.encoder.embed_positions.weight"
    assert name not in tensors
    model = hf.MarianMTModel.from_pretrained(folder)
    tensors[name] = model.state_dict()[name].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    import_model(folder, tmp_path / "ours")
    tensors[name][2, 3] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, tmp_path / "others", f"tensor {name} differs from the formula")
