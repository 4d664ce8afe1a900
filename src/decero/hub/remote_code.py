"""Export a decero model with its code, so that it loads where decero is not installed."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, PreTrainedModel

from decero.errors import UserError
from decero.execution.pretraining_objective import HYBRID, objective_of
from decero.execution.transformers_internals import fills_holes, get_relative_import_files
from decero.hub.card import read_run
from decero.hub.folders import claimed, copy_tokenizer
from decero.hub.publish import model_files, run_files
from decero.hub.verification import OUTPUTS, TOLERANCE, behind_the_best, greedy_tokens, prompts_of, random_batch
from decero.models import AUTO_CLASSES


def export_remote_code(model: Path | str | PreTrainedModel, out: Path | str) -> Path:
    """Write `out`, so that AutoModel*.from_pretrained(out, trust_remote_code=True) loads it without decero.

    model: a decero model, or its folder; from a folder, tokenizer and run record are copied, too.
    out: gets the weights (safetensors), config.json with an `auto_map` for every head of the model's shape, and the
        files of decero.models that they need, unchanged. A decoder's head that fills holes is there only if the model
        learnt to. Returned.

    Raises UserError: a `model` folder without a decero model; a non-empty `out`.
    """
    with claimed(out) as folder:
        if isinstance(model, PreTrainedModel):
            classes = _classes(model.config, type(model).__name__)
            model.save_pretrained(folder)
        else:
            classes = _copy(Path(model), folder)
        for source in {inspect.getfile(c) for c in classes.values()}:
            for needed in (source, *get_relative_import_files(source)):
                shutil.copyfile(needed, folder / Path(needed).name)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["auto_map"] = {name: f"{c.__module__.rpartition('.')[2]}.{c.__name__}" for name, c in classes.items()}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return Path(out)


def _copy(source: Path, target: Path) -> dict[str, type]:
    """Copy weights, configuration, tokenizer and run record. Returns the model's `_classes`."""
    files = model_files(source)
    if "config.json" not in files:
        raise UserError(f"{source}: holds a tokenizer but no model")
    raw = json.loads(files["config.json"].read_text(encoding="utf-8"))
    classes = _classes(SimpleNamespace(**raw), str(source))
    for name, path in files.items():
        shutil.copyfile(path, target / name)
    if str(raw.get("architectures")).endswith("ForCausalLM']"):
        copy_tokenizer(source, target, continues=True)  # older checkpoints have one that ends every prompt
    for name, content in run_files(*read_run(source)).items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)
    return classes


def _classes(config: Any, where: str) -> dict[str, type]:
    """Return Auto class name -> decero class, for the configuration and every head of a shape.

    A decoder's head that fills holes is left out unless the model learnt to: it has all its weights in any case.
    """
    for config_class, heads in AUTO_CLASSES.items():
        if config_class.model_type == config.model_type:
            fills = fills_holes(config_class) or objective_of(config) == HYBRID
            fitting = [(auto, head) for auto, head in heads.items() if fills or auto is not AutoModelForMaskedLM]
            return {"AutoConfig": config_class} | {auto.__name__: head for auto, head in fitting}
    raise UserError(f"{where}: holds a {config.model_type}, not a decero model, so it needs no code of decero")


WITHOUT_DECERO = """
import sys
sys.modules["decero"] = None  # as if it were not installed
import torch, transformers
from safetensors.torch import load_file, save_file
auto_class, folder, batch, outputs = sys.argv[1:]
auto = getattr(transformers, auto_class)
if auto_class == "AutoBackbone":  # its from_pretrained only takes names on the hub
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = auto.from_config(config, trust_remote_code=True)
    model.load_state_dict(load_file(f"{folder}/model.safetensors"))
    model.eval().float()
else:
    model = auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
inputs = load_file(batch)
prompt = inputs.pop("prompt", None)
with torch.no_grad():
    result = model(**inputs)
if "feature_maps" in result:
    result["feature_maps"] = torch.cat(result["feature_maps"])
found = {name: value.contiguous() for name, value in result.items() if isinstance(value, torch.Tensor)}
if prompt is not None:
    ids = prompt[:, :-1]  # the last number says how many tokens to write
    settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": int(prompt[0, -1])}
    found["written"] = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
save_file(found, outputs)
"""


def check_remote_code(ours: PreTrainedModel, folder: Path | str) -> str:
    """Load `folder` in a process without decero and compare its outputs, and a greedy text, with those of `ours`.

    Returns a sentence with the largest difference. Leaves `ours` in fp32 and in evaluation mode. Raises UserError when
    the folder does not load, the outputs differ by more than `TOLERANCE`, or it writes another text.
    """
    classes = _classes(ours.config, str(folder))
    auto_class = next(name for name, c in classes.items() if c is type(ours))
    batch = random_batch(ours)
    with torch.no_grad():
        expected = ours.float().eval()(**batch)
    if "feature_maps" in expected:
        expected["feature_maps"] = torch.cat(expected["feature_maps"])
    more: dict[str, torch.Tensor] = {}
    if ours.can_generate():
        (prompt, *_), new = prompts_of(ours)
        more = {"prompt": torch.tensor([[*prompt, new]])}
    with TemporaryDirectory() as scratch:
        batch_file, outputs_file = f"{scratch}/batch.safetensors", f"{scratch}/outputs.safetensors"
        save_file(batch | more, batch_file)
        environment = os.environ | {"HF_MODULES_CACHE": f"{scratch}/modules", "HF_HUB_OFFLINE": "1"}
        arguments = [auto_class, str(Path(folder).absolute()), batch_file, outputs_file]
        command = [sys.executable, "-c", WITHOUT_DECERO, *arguments]
        child = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
        if child.returncode:
            errors = child.stderr.strip().splitlines() or ["no error message"]
            raise UserError(f"{folder}: does not load without decero: {errors[-1]}")
        outputs = load_file(outputs_file)
    names = [name for name in OUTPUTS if name in outputs]
    difference = max(float((expected[name] - outputs[name]).abs().max()) for name in names)
    if not difference <= TOLERANCE * max(1.0, *(float(expected[name].abs().max()) for name in names)):
        raise UserError(f"{folder}: outputs without decero differ by {difference:.1e}; this is a bug in decero")
    text = ""
    if ours.can_generate():
        written = outputs["written"][0, 1 if ours.config.is_encoder_decoder else len(prompt) :].tolist()
        behind, largest = behind_the_best(ours, prompt, written)
        if not behind.max().item() <= TOLERANCE * max(1.0, largest) and written != greedy_tokens(ours, prompt, new):
            raise UserError(f"{folder}: it writes another text without decero; this is a bug in decero")
        text = f"; greedy search writes the same {len(written)} tokens"
    return f"largest difference of {', '.join(names)} in fp32, loaded without decero: {difference:.1e}{text}"
