"""Every exported head loads and computes the same without decero installed."""

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from tests.hub.conftest import TOKEN
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, BertForSequenceClassification

import decero.models
from decero.errors import UserError
from decero.hub.convert import export_model
from decero.hub.publish import push
from decero.hub.remote_code import export_remote_code
from decero.inference.loading import load
from decero.models import (
    AUTO_CLASSES,
    DeceroDecoderConfig,
    DeceroDecoderForCausalLM,
    DeceroDetectionConfig,
    DeceroDiffusionConfig,
    DeceroEncoderConfig,
    DeceroEncoderForMaskedLM,
    DeceroVisionConfig,
)

pytestmark = pytest.mark.long

VISION = {
    "image_size": [8, 12], "patch_size": 4, "num_channels": 2, "hidden_size": 33, "num_attention_heads": 3,
    "intermediate_size": 41, "stem": "conv", "decode_head": "pup", "decoder_hidden_size": 6, "out_indices": [0, 2],
}  # fmt: skip

HEADS = {
    f"{config_class.model_type}-{auto.__name__}": (config_class, auto)
    for config_class, heads in AUTO_CLASSES.items()
    for auto in heads
}
MIXERS = ["lstm", "min_gru", "conv"]

ELSEWHERE = """
import json, sys

class NoDecero:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "decero":
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, NoDecero())

import torch, transformers
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
jobs, out = json.loads(sys.argv[1]), {}
for name, job in jobs.items():
    auto = getattr(transformers, job["auto"])
    if job["auto"] == "AutoBackbone":  # its from_pretrained only takes names on the hub
        config = transformers.AutoConfig.from_pretrained(job["path"], trust_remote_code=True)
        model = auto.from_config(config, trust_remote_code=True).eval()
        model.load_state_dict(load_file(job["path"] + "/model.safetensors"))
    else:
        model = auto.from_pretrained(job["path"], trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    inputs = {key: torch.tensor(value) for key, value in job["inputs"].items()}
    with torch.no_grad():
        first = model(**inputs)[0]
        out[name] = (torch.cat(first) if isinstance(first, tuple) else first).contiguous()
        if job["auto"] in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
            ids = model.generate(inputs["input_ids"][:1], max_new_tokens=3, do_sample=False)
            out[f"{name}-generated"] = ids.contiguous()
    if job["base"]:
        out[f"{name}-base"] = transformers.AutoModel.from_pretrained(
            job["path"], trust_remote_code=True
        ).eval()(**inputs)[0].detach().contiguous()
tokenizer = transformers.AutoTokenizer.from_pretrained(jobs["on the hub"]["path"])
out["tokens"] = torch.tensor(tokenizer("the bank in tokyo")["input_ids"])
assert "decero" not in sys.modules
save_file(out, sys.argv[2])
"""


def build(config_class, auto, sizes):
    """A model with random parameters; zeros and ones of a new model would hide parameters that were not loaded."""
    if config_class is DeceroVisionConfig:
        config = config_class(**VISION, num_hidden_layers=sizes["num_hidden_layers"])
    elif config_class is DeceroDiffusionConfig:
        sizes = {name: value for name, value in sizes.items() if name != "vocab_size"}
        config = config_class(**sizes, image_size=[8, 12], patch_size=4, num_channels=2)
    elif config_class is DeceroDetectionConfig:
        config = config_class(**sizes | {"hidden_size": 34}, patch_size=4, num_channels=2, num_queries=3)
    else:
        width = sizes["hidden_size"] + ("seq2seq" in config_class.model_type)  # two directions need an even one
        config = config_class(**(sizes | {"hidden_size": width}), bos_token_id=2, eos_token_id=3)
    if config.is_encoder_decoder:
        config.decoder_start_token_id = 2
    if config_class is DeceroDecoderConfig:
        config.pretraining_objective = "hybrid_lm"  # else its head that fills holes is not exported
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


def has_base(model):
    """Whether AutoModel reads what the model reads. Heads of an encoder-decoder that classify read one text."""
    return not model.config.is_encoder_decoder or "decoder_input_ids" in inspect.signature(model.forward).parameters


def inputs_of(model):
    if isinstance(model.config, DeceroVisionConfig | DeceroDetectionConfig):
        return {"pixel_values": torch.linspace(-1, 1, 2 * 2 * 8 * 12).view(2, 2, 8, 12).sin().tolist()}
    if isinstance(model.config, DeceroDiffusionConfig):
        pixels = torch.linspace(-1, 1, 2 * 2 * 8 * 12).view(2, 2, 8, 12).sin().tolist()
        return {"pixel_values": pixels, "timestep": [0.2, 0.9], "class_labels": [1, 0]}
    inputs = {"input_ids": [[5, 7, 11, 13, 17, 19, 23], [29, 31, 37, 0, 0, 0, 0]]}
    inputs["attention_mask"] = [[1] * 7, [1] * 3 + [0] * 4]
    if model.config.is_encoder_decoder and has_base(model):
        inputs["decoder_input_ids"] = [[2, 41, 43], [2, 47, 53]]
    return inputs


def first(outputs):
    return torch.cat(outputs[0]) if isinstance(outputs[0], tuple) else outputs[0]


def answers(model, name, auto):
    inputs = {key: torch.tensor(value) for key, value in inputs_of(model).items()}
    with torch.no_grad():
        out = {name: first(model(**inputs))}
        if has_base(model):
            out[f"{name}-base"] = model.base_model(**inputs)[0]
        if auto.__name__ in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
            out[f"{name}-generated"] = model.generate(inputs["input_ids"][:1], max_new_tokens=3, do_sample=False)
    return out


@pytest.fixture(scope="module")
def computed(sizes, tokenizer, tmp_path_factory, hub_of_this_module, server):
    """(with decero, without): name -> output tensor, of every head from a folder and of one from the hub."""
    work = tmp_path_factory.mktemp("remote")
    torch.manual_seed(0)
    here, jobs = {}, {}
    for name, (config_class, auto) in HEADS.items():
        model = build(config_class, auto, sizes)
        path = export_remote_code(model, work / name)
        here |= answers(model, name, auto)
        jobs[name] = {"auto": auto.__name__, "path": str(path), "inputs": inputs_of(model), "base": has_base(model)}
    for mixer in MIXERS:
        fields = sizes | {"mixer_type": mixer, "position_embedding_type": "none"}
        model = build(DeceroDecoderConfig, AutoModelForCausalLM, fields)
        here |= answers(model, mixer, AutoModelForCausalLM)
        path = str(export_remote_code(model, work / mixer))
        jobs[mixer] = {"auto": "AutoModelForCausalLM", "path": path, "inputs": inputs_of(model), "base": True}
    model = build(DeceroEncoderConfig, AutoModelForMaskedLM, sizes)
    model.save_pretrained(work / "plain")
    tokenizer.save_pretrained(work / "plain")
    push(export_remote_code(work / "plain", work / "pushed"), "me/tiny")
    here |= answers(model, "on the hub", AutoModelForMaskedLM)
    here["tokens"] = torch.tensor(tokenizer("the bank in tokyo")["input_ids"])
    jobs["on the hub"] = {"auto": "AutoModelForMaskedLM", "path": "me/tiny", "inputs": inputs_of(model), "base": True}
    words = [work / "modules", ELSEWHERE, json.dumps(jobs), work / "out.safetensors"]
    reach = {"url": constants.ENDPOINT, "token": TOKEN}
    done = server.run("tests.faults.server:script", words, bare=True, place=work / "elsewhere", cwd=work, hub=reach)
    assert done.code == 0, done.err[-5000:]
    return here, load_file(work / "out.safetensors")


@pytest.mark.parametrize("name", [*HEADS, *MIXERS, "on the hub"])
def test_a_head_computes_the_same_without_decero(computed, name):
    here, elsewhere = computed
    for key in (name, f"{name}-base", f"{name}-generated"):
        if key in here:
            assert here[key].float().std() > 0
            torch.testing.assert_close(elsewhere[key], here[key], atol=1e-6, rtol=0)


def test_the_tokenizer_is_exported(computed):
    here, elsewhere = computed
    assert torch.equal(here["tokens"], elsewhere["tokens"])


def test_all_shapes_are_exported():
    assert {config_class.model_type for config_class, _ in HEADS.values()} == {
        "decero_encoder", "decero_decoder", "decero_encoder_decoder", "decero_recurrent", "decero_recurrent_seq2seq",
        "decero_textcnn", "decero_vision", "decero_detection", "decero_diffusion",
    }  # fmt: skip
    assert len(HEADS) >= 10


def test_only_the_needed_code_is_copied_unchanged(model_folder, tmp_path):
    out = export_remote_code(model_folder, tmp_path / "out")
    source = Path(inspect.getfile(decero.models)).parent
    copied = {path.name: path.read_bytes() for path in out.glob("*.py")}
    assert copied
    for name, content in copied.items():
        assert content == (source / name).read_bytes(), name
    assert "__init__.py" not in copied
    assert "modeling_decoder.py" not in copied


def test_an_export_has_all_heads_tokenizer_weights_and_record(model_folder, tmp_path):
    out = export_remote_code(model_folder, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config.pop("auto_map") == {
        "AutoConfig": "configuration_decero.DeceroEncoderConfig",
        **{
            auto.__name__: f"{head.__module__.rpartition('.')[2]}.{head.__name__}"
            for auto, head in AUTO_CLASSES[DeceroEncoderConfig].items()
        },
    }
    assert config == json.loads((model_folder / "config.json").read_text())
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (model_folder / name).read_bytes()
    assert json.loads((out / "run" / "result.json").read_text())["metric"]["eval_loss"] == 2.5


def test_other_models_and_existing_folders_are_refused(model_folder, tokenizer_folder, tmp_path):
    stock = BertConfig(vocab_size=11, hidden_size=6, num_hidden_layers=1, num_attention_heads=1, intermediate_size=5)
    with pytest.raises(UserError, match="BertForMaskedLM: holds a bert"):
        export_remote_code(AutoModelForMaskedLM.from_config(stock), tmp_path / "out")
    with pytest.raises(UserError, match="holds a tokenizer but no model"):
        export_remote_code(tokenizer_folder, tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        export_remote_code(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="already exists"):
        export_remote_code(model_folder, model_folder)


SIZES = {
    "vocab_size": 37, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41,
}  # fmt: skip


@pytest.mark.parametrize("objective", [None, "hybrid_lm"])
def test_only_a_decoder_that_learnt_to_fill_is_exported_to_fill(objective, tokenizer, tmp_path):
    model = DeceroDecoderForCausalLM(
        DeceroDecoderConfig(**SIZES | {"vocab_size": 101}, pretraining_objective=objective)
    )
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    for source, out in ((model, tmp_path / "a"), (tmp_path / "ours", tmp_path / "b")):
        names = json.loads((export_remote_code(source, out) / "config.json").read_text())["auto_map"]
        assert ("AutoModelForMaskedLM" in names) is (out / "modeling_hybrid.py").exists() is (objective is not None)
        assert "AutoModelForCausalLM" in names
    if objective is None:
        with pytest.raises(UserError, match="continues texts; use decero generate"):
            load(tmp_path / "b", "fill")
    else:
        load(tmp_path / "b", "fill")


@pytest.mark.parametrize("process", ["elsewhere", pytest.param("of its own", marks=pytest.mark.slow)])
def test_a_remote_code_export_is_checked_without_decero(process, tmp_path, request):
    if process == "elsewhere":
        request.getfixturevalue("elsewhere")
    DeceroEncoderForMaskedLM(DeceroEncoderConfig(**SIZES)).save_pretrained(tmp_path / "ours")
    said = []
    export_model(tmp_path / "ours", tmp_path / "out", "remote-code", say=said.append)
    assert re.search(r"largest difference of logits in fp32, loaded without decero: 0\.0e\+00", said[0])


@pytest.mark.slow
def test_an_export_with_other_outputs_is_removed(elsewhere, tmp_path, monkeypatch):
    DeceroEncoderForMaskedLM(DeceroEncoderConfig(**SIZES)).save_pretrained(tmp_path / "ours")
    copy = shutil.copyfile

    def bend(source, target):
        copy(source, target)
        if Path(target).name == "layers.py":
            Path(target).write_text(Path(target).read_text().replace("hidden_BLD + self.dropout(mix_BLD)", "mix_BLD"))

    monkeypatch.setattr("decero.hub.remote_code.shutil.copyfile", bend)
    with pytest.raises(UserError, match="outputs without decero differ by"):
        export_model(tmp_path / "ours", tmp_path / "out", "remote-code")
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_to_load_is_removed(elsewhere, tmp_path, monkeypatch):
    DeceroEncoderForMaskedLM(DeceroEncoderConfig(**SIZES)).save_pretrained(tmp_path / "ours")
    monkeypatch.setattr("decero.hub.remote_code.get_relative_import_files", lambda source: [])
    with pytest.raises(UserError, match="does not load without decero"):
        export_model(tmp_path / "ours", tmp_path / "out", "remote-code")
    assert not (tmp_path / "out").exists()


RAN = """
import os
os.makedirs(os.environ["RAN"], exist_ok=True)
from transformers import BertConfig, BertForSequenceClassification
class Config(BertConfig):
    model_type = "theirs"
class Model(BertForSequenceClassification):
    config_class = Config
"""
COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def on_the_hub(hub, tokenizer, tmp_path, monkeypatch):
    """Put alice/model, whose code is in `repository` ("" for its own), and mallory/code on the hub."""
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def add(repository):
        folder = tmp_path / "model"
        config = BertConfig(vocab_size=101, hidden_size=6, num_hidden_layers=1, num_attention_heads=1)
        BertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        prefix = f"{repository}--" if repository else ""
        raw = json.loads((folder / "config.json").read_text()) | {
            "model_type": "theirs",
            "auto_map": {
                "AutoConfig": f"{prefix}code.Config", "AutoModelForSequenceClassification": f"{prefix}code.Model",
            },
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(raw))
        files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"code.py": RAN.encode()}
        hub.add("alice/model", private=False, **{name.replace(".", "__"): data for name, data in files.items()})
        hub.add("mallory/code", private=False, code__py=RAN.encode())
        return hub

    return add


def test_code_of_another_repository_is_not_fetched(on_the_hub, tmp_path):
    hub = on_the_hub("mallory/code")
    with pytest.raises(UserError, match=r"alice/model: it runs code of another repository, mallory/code; .*@COMMIT"):
        load("alice/model", "classify", revision=COMMIT, trust_remote_code=True)
    assert not any("mallory" in request for request in hub.requests)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("repository", "commit"), [("mallory/code", OTHER), ("alice/model", COMMIT), ("", None)])
def test_only_code_of_the_named_commit_runs(repository, commit, on_the_hub, tmp_path):
    hub = on_the_hub(repository)
    options = {"code_revision": f"{repository}@{commit}"} if repository == "mallory/code" else {}
    load("alice/model", "classify", revision=COMMIT, trust_remote_code=True, **options)
    assert (tmp_path / "ran").exists()
    assert not any("main" in request for request in hub.requests)
    if commit:
        assert f"GET /{repository}/resolve/{commit}/code.py" in hub.requests


@pytest.mark.parametrize("revision", ["main", "v1", COMMIT[:7]])
def test_a_branch_is_no_pin(revision, on_the_hub, tmp_path):
    hub = on_the_hub("")
    with pytest.raises(UserError, match="give all 40 digits"):
        load("alice/model", "classify", revision=revision, trust_remote_code=True)
    assert hub.requests == []
    assert not (tmp_path / "ran").exists()
