"""Damaged folders and tokenizers, and a full disk, end a conversion in one line."""

import pytest
import transformers as hf
from safetensors import SafetensorError
from tests.hub.stock.conftest import edit, refused

from decero.errors import UserError
from decero.hub.convert import export_model, import_model


def test_a_damaged_decero_folder_is_refused(find_case, tmp_path):
    find_case("bert", "ForMaskedLM").ours().save_pretrained(tmp_path / "ours")
    edit(tmp_path / "ours" / "config.json", num_hidden_layers=3, layer_types=None)
    with pytest.raises(UserError, match=r"ours: tensor model\.layers\.2\.mlp\.down_proj\.bias is missing"):
        export_model(tmp_path / "ours", tmp_path / "back")
    edit(tmp_path / "ours" / "config.json", architectures=["DeceroEncoderForMaskLM"])
    with pytest.raises(UserError, match="unknown architecture DeceroEncoderForMaskLM"):
        export_model(tmp_path / "ours", tmp_path / "back")


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
