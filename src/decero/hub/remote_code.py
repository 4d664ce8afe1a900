"""A model of ours as a folder that loads where decero is not installed: its own code travels with it."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from decero.errors import UserError
from decero.execution.transformers_internals import get_relative_import_files
from decero.hub.card import read_run
from decero.hub.folders import claimed
from decero.hub.publish import model_files, run_files
from decero.hub.verification import OUTPUTS, TOLERANCE, random_batch
from decero.models import AUTO_CLASSES


def export_remote_code(model: Path | str | PreTrainedModel, out: Path | str) -> Path:
    """Write `out`, which AutoModel*.from_pretrained(out, trust_remote_code=True) loads without decero. Returns it.

    model: the folder of a model of ours, whose tokenizer and run record come along, or the model itself.
    out: gets the weights (safetensors), config.json with an `auto_map` of every head of the model's shape, and the
    files of decero.models that these need, as they are.

    Raises UserError: `model` is no folder of ours, `out` is there and not empty.
    """
    with claimed(out) as folder:
        if isinstance(model, PreTrainedModel):
            classes = _classes(model.config.model_type, type(model).__name__)
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
    """Weights, configuration, tokenizer and run record, as they are. Returns what `_classes` says of the model."""
    files = model_files(source)
    if "config.json" not in files:
        raise UserError(f"{source}: holds a tokenizer and no model")
    classes = _classes(json.loads(files["config.json"].read_text(encoding="utf-8"))["model_type"], str(source))
    for name, path in files.items():
        shutil.copyfile(path, target / name)
    for name, content in run_files(*read_run(source)).items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)
    return classes


def _classes(model_type: str, where: str) -> dict[str, type]:
    """Name of an Auto class -> ours, for the configuration and every head of a shape."""
    for config_class, heads in AUTO_CLASSES.items():
        if config_class.model_type == model_type:
            return {"AutoConfig": config_class} | {auto.__name__: head for auto, head in heads.items()}
    raise UserError(f"{where}: holds a {model_type}, which is none of decero's own models and needs no code of ours")


ALONE = """
import sys
sys.modules["decero"] = None  # as where it is not installed
import torch, transformers
from safetensors.torch import load_file, save_file
auto_class, folder, batch, outputs = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
with torch.no_grad():
    said = model(**load_file(batch))
save_file({name: value.contiguous() for name, value in said.items() if isinstance(value, torch.Tensor)}, outputs)
"""


def check_remote_code(ours: PreTrainedModel, folder: Path | str) -> str:
    """Load `folder` as somebody without decero would, in a process of its own, and say how far its outputs are from
    those of `ours`, which is left in fp32 and in evaluation mode.

    Raises UserError when it does not load, or outputs differ by more than an equal model may.
    """
    classes = _classes(ours.config.model_type, str(folder))
    auto_class = next(name for name, c in classes.items() if c is type(ours))
    batch = random_batch(ours)
    with torch.no_grad():
        mine = ours.float().eval()(**batch)
    with TemporaryDirectory() as scratch:
        asked, answered = f"{scratch}/batch.safetensors", f"{scratch}/outputs.safetensors"
        save_file(batch, asked)
        environment = os.environ | {"HF_MODULES_CACHE": f"{scratch}/modules", "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, "-c", ALONE, auto_class, str(Path(folder).absolute()), asked, answered]
        child = subprocess.run(words, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
        if child.returncode:
            said = child.stderr.strip().splitlines() or ["it ended without a word"]
            raise UserError(f"{folder}: does not load without decero: {said[-1]}")
        theirs = load_file(answered)
    names = [name for name in OUTPUTS if name in theirs]
    apart = max(float((mine[name] - theirs[name]).abs().max()) for name in names)
    if not apart <= TOLERANCE * max(1.0, *(float(mine[name].abs().max()) for name in names)):
        raise UserError(f"{folder}: outputs without decero differ by {apart:.1e}; this is a defect of decero")
    return f"largest difference of {', '.join(names)} in fp32, loaded without decero: {apart:.1e}"
