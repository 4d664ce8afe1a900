"""What `decero import` refuses: complete folders or none, and no foreign code runs."""

import json
import shutil

import pytest
import torch
import transformers as hf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tests.hub.stock.folders import edit, refused

from decero.errors import UserError
from decero.hub.convert import export_model, import_model


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model_type": "brt"},
            "model_type brt has no counterpart in decero; did you mean bert\\? .families: bert, roberta",
        ),
        ({"model_type": "decero_encoder"}, "already a decero model"),
        (
            {"architectures": ["BertForMakedLM"]},
            "BertForMakedLM has no counterpart .*; did you mean BertForMaskedLM",
        ),
        ({"architectures": ["BertForPreTrainingOfMine"]}, "BertForPreTrainingOfMine has no counterpart in decero"),
        ({"auto_map": {"AutoModel": "modeling_mine.Mine"}}, "auto_map names custom code, which is never run"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: the weights are quantized"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' has no counterpart"),
        ({"is_decoder": True}, "bert option is_decoder=True has no counterpart in decero"),
        ({"hidden_act": "sinc"}, "unknown hidden_act sinc"),
        ({"num_hidden_layers": 3}, "tensor bert.encoder.layer.2.attention.output.LayerNorm.bias is missing"),
        ({"num_hidden_layers": 1}, "unexpected tensor bert.encoder.layer.1.*; BertForMaskedLM has no such"),
        (
            {"intermediate_size": 43},
            r"layer.0.intermediate.dense.bias has shape \[41\], but BertForMaskedLM needs \[43\]",
        ),
        ({"hidden_size": 35}, r"hidden size \(35\) is not a multiple|head_dim=11 has no"),
    ],
)
def test_an_option_without_counterpart_is_named(changes, said, stock_folder, tmp_path):
    folder = stock_folder()
    edit(folder / "config.json", **changes)
    assert refused(folder, tmp_path / "ours", said).startswith(str(folder))


def test_code_of_a_folder_is_never_run(stock_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_TRUST_REMOTE_CODE", "1")
    folder = stock_folder()
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    mine = {
        "AutoConfig": "mine.Config",
        "AutoModelForMaskedLM": "mine.Model",
        "AutoTokenizer": ["mine.Tokenizer", None],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": mine, "tokenizer_class": "Mine"}))
    refused(folder, tmp_path / "ours", "cannot load its tokenizer")
    edit(folder / "config.json", auto_map=mine)
    refused(folder, tmp_path / "ours", "auto_map names custom code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "trick", ["pickle", "nothing", "cut short", "outside", "absolute", "link", "adapter", "float8"]
)
def test_weights_other_than_plain_safetensors_are_refused(trick, stock_folder, tmp_path):
    folder = stock_folder()
    weights = folder / "model.safetensors"
    elsewhere = tmp_path / "elsewhere.safetensors"
    if trick == "pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
        said = "pytorch_model.bin is not read, because loading it may run code"
    if trick == "nothing":
        weights.unlink()
        said = "there is no model.safetensors "
    if trick == "cut short":
        weights.write_bytes(weights.read_bytes()[:-7])
        said = "model.safetensors: not a complete safetensors file"
    if trick in ("outside", "absolute"):
        shutil.move(weights, elsewhere)
        name = "../elsewhere.safetensors" if trick == "outside" else str(elsewhere)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"bert.pooler": name}}))
        said = "are outside the folder and are not read"
    if trick == "link":
        shutil.move(weights, elsewhere)
        weights.symlink_to(elsewhere)
        said = "the weights model.safetensors are outside the folder"
    if trick == "adapter":
        (folder / "adapter_config.json").write_text("{}")
        said = "holds an adapter for another model"
    if trick == "float8":
        save_file({"bert.pooler.dense.bias": torch.zeros(3).to(torch.float8_e4m3fn)}, weights)
        said = "tensor bert.pooler.dense.bias is stored as F8_E4M3, which decero does not read"
    refused(folder, tmp_path / "ours", said)


def test_an_existing_folder_is_not_overwritten(stock_folder, tmp_path):
    folder = stock_folder()
    (tmp_path / "ours").mkdir()
    import_model(folder, tmp_path / "ours")  # an empty folder counts as none
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ours").iterdir()}
    for again in (lambda: import_model(folder, tmp_path / "ours"), lambda: export_model(folder, tmp_path / "ours")):
        with pytest.raises(UserError, match=r"already exists|not a decero model"):
            again()
    with pytest.raises(UserError, match="already exists"):
        export_model(tmp_path / "ours", tmp_path / "ours", "bert")
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ours").iterdir()}
    with pytest.raises(UserError, match="already exists"):
        import_model(folder, folder / "config.json")


FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_ends_a_conversion_in_one_line(stock_folder, tmp_path, monkeypatch):
    folder = stock_folder()

    def full(*args, **kwargs):
        raise FULL

    import_model(folder, tmp_path / "ours")
    monkeypatch.setattr(hf.PreTrainedModel, "save_pretrained", full)
    refused(folder, tmp_path / "out", "out: cannot be written: No space left on device; fix this")
    with pytest.raises(UserError, match="back: cannot be written: No space left on device"):
        export_model(tmp_path / "ours", tmp_path / "back", to="bert")
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "ours"}


@pytest.mark.parametrize("content", ["{}", "{", '{"model": {"type": "WordLevel"}, "new": -1}'])
def test_a_damaged_tokenizer_is_one_line(content, stock_folder, tmp_path):
    folder = stock_folder()
    (folder / "tokenizer.json").write_text(content)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert "\n" not in refused(folder, tmp_path / "out", "cannot load its tokenizer")
