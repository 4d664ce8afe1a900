"""Pushing the folder of an engine: known by its files, sent whole, never taken for a model of transformers."""

import json
import struct

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from decero.errors import UserError
from decero.hub.card import MARK
from decero.hub.engine_folders import engine_named, engine_of
from decero.hub.publish import push

CARD = f"---\nlibrary_name: an engine\nlicense: mit\n---\n\n# ct2\n\n## In the engine\n\nMeasured.\n\n{MARK}\n"
BERT = json.dumps({"model_type": "bert", "architectures": ["BertModel"]}).encode()
SPEC = b"TransformerEncoderSpec\0"
PICKLE = b"\x80\x02}q\x00."
FOLDERS = {
    "ctranslate2": {
        "model.bin": struct.pack("<IH", 6, len(SPEC)) + SPEC + b"weights", "config.json": b'{"unk_token": "[UNK]"}',
        "vocabulary.json": b"[]", "head.safetensors": b"head", "tokenizer.json": b"{}", "LICENSE": b"mine",
    },
    "onnx": {"model.onnx": b"graph", "model.onnx.data": b"weights", "config.json": BERT, "tokenizer.json": b"{}"},
    "gguf": {"model.gguf": b"GGUF", "model-q4.gguf": b"GGUF"},
    "sentence-transformers": {
        "modules.json": b'[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]',
        "1_Pooling/config.json": b'{"pooling_mode": "mean"}', "config.json": BERT, "model.safetensors": b"weights",
        "sentence_bert_config.json": b"{}", "config_sentence_transformers.json": b"{}", "vocab.txt": b"a",
    },
}  # fmt: skip
ENGINES = list(FOLDERS)


@pytest.fixture
def write(tmp_path):
    """Write the folder of an engine, as an export leaves it, with the record of its run."""

    def written(engine, name="out"):
        record = b'{"metric": {"accuracy": 0.5}, "command": "x.py /home/jane/a.yaml"}\n'
        for path, content in (FOLDERS[engine] | {"README.md": CARD.encode(), "run/result.json": record}).items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return tmp_path / name

    return written


@pytest.mark.parametrize("engine", ENGINES)
def test_a_folder_is_sent_whole_in_one_commit(engine, write, hub, capfd):
    folder = write(engine)
    (folder / ".cache").mkdir()
    for hidden in (".env", ".cache/lock"):
        (folder / hidden).write_text("secret")
    push(folder, "me/tiny", dry_run=True)
    said = capfd.readouterr().out
    push(folder, "me/tiny")
    sent = hub.repos["model", "me/tiny"]
    assert set(sent.files) == {*FOLDERS[engine], "README.md", "run/result.json", ".gitattributes"}
    for name, content in FOLDERS[engine].items():
        assert sent.files[name] == content, name
        assert f"bytes  {name}\n" in said
    assert sent.files["README.md"].decode() == CARD
    assert b"jane" not in sent.files["run/result.json"]
    assert "not sent: .cache, .env\n" in said
    push(folder, "me/tiny")
    assert len(sent.commits) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_another_kind_is_replaced_only_on_request(engine, write, hub):
    hub.add("me/tiny", config__json=b'{"model_type": "gpt2"}', model__safetensors=b"old", modules__json=b"[]")
    with pytest.raises(UserError, match=r"holds a gpt2 for sentence-transformers, and this is a .*; give another"):
        push(write(engine), "me/tiny")
    push(write(engine), "me/tiny", replace=True)
    assert set(hub.repos["model", "me/tiny"].files) == {*FOLDERS[engine], "README.md", "run/result.json"}


def test_a_file_that_the_engine_no_longer_has_is_deleted(write, hub):
    folder = write("onnx")
    push(folder, "me/tiny")
    hub.repos["model", "me/tiny"].files["notes.txt"] = b"mine"
    (folder / "model.onnx.data").unlink()
    push(folder, "me/tiny")
    assert "model.onnx.data" not in hub.repos["model", "me/tiny"].files
    assert hub.repos["model", "me/tiny"].files["notes.txt"] == b"mine"


def test_files_of_engines_beside_a_stock_model_stay(model_folder, hub):
    config = (model_folder / "config.json").read_bytes()
    hub.add("me/tiny", config__json=config, model__safetensors=b"old", model__onnx=b"mine")
    push(model_folder, "me/tiny")
    assert hub.repos["model", "me/tiny"].files["model.onnx"] == b"mine"


def test_a_license_and_a_language_go_into_the_card(write, hub):
    push(write("onnx"), "me/tiny", license="apache-2.0", languages=["es"])
    card = ModelCard(hub.repos["model", "me/tiny"].files["README.md"].decode())
    assert (card.data.license, card.data.language, card.data.library_name) == ("apache-2.0", ["es"], "an engine")
    assert card.text.strip() == CARD.partition("---\n\n")[2].strip()
    with pytest.raises(UserError, match="the license or the language of the model: "):
        push(write("onnx"), "me/tiny", license="apache2.0000")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "README.md").unlink(), "without README.md; write one, or use hf upload REPO "),
        (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), r"README\.md"),
        (lambda f: (f / "1_Pooling" / "pytorch_model.bin").write_bytes(PICKLE), r"pytorch_model\.bin may be a pickle"),
        (lambda f: (f / "LICENSE.md").symlink_to("/etc/passwd"), r"LICENSE\.md: this is a link to /etc/passwd"),
        (lambda f: (f / "more").symlink_to("/etc"), "more: this is a link, which is not followed"),
    ],
    ids=["no card", "damaged card", "pickle", "link", "linked folder"],
)
def test_what_is_not_sent(engine, spoil, said, write, hub):
    folder = write(engine)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    spoil(folder)
    with pytest.raises(UserError, match=said) as refused:
        push(folder, "me/tiny")
    assert "\n" not in str(refused.value)
    assert hub.requests == []


@pytest.mark.parametrize(
    "content", [PICKLE, b"PK\x03\x04\x14\x00Spec\0", b"", struct.pack("<IH", 6, 9) + b"os.system\0"]
)
def test_a_pickle_is_not_taken_for_a_model_of_ctranslate2(content, write, hub):
    folder = write("ctranslate2")
    assert engine_of(folder) == "ctranslate2"
    (folder / "model.bin").write_bytes(content)
    assert engine_of(folder) is None
    with pytest.raises(UserError, match=r"model\.bin may be a pickle"):
        push(folder, "me/tiny")


def test_models_of_transformers_are_no_folders_of_engines(model_folder, tmp_path):
    (model_folder / "model.onnx").write_bytes(b"graph")
    (model_folder / "model.gguf").write_bytes(b"GGUF")
    assert engine_of(model_folder) is None
    (model_folder / "modules.json").write_text('{"mine": 1}')
    assert engine_of(model_folder) is None
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert engine_of(tmp_path) is None
    assert engine_of(tmp_path / "none") is None
    assert engine_named(["onnx/model.onnx", "README.md"]) is None
