"""Merge an adapter into its model: `decero merge`. The result is an ordinary checkpoint, checked before it is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import decero.models
from decero.errors import UserError
from decero.execution.merging import merged
from decero.execution.model_folder import TOKENIZER, open_checkpoint
from decero.execution.pretrained import load_adapted, one_line, read_model_config
from decero.execution.saving import save_pretrained
from decero.hub.card import read_run
from decero.hub.folders import claimed, copy_tokenizer
from decero.hub.publish import run_files
from decero.hub.verification import largest_difference, random_batch

Say = Callable[[str], None]
TOLERANCE = 1e-5  # absolute for outputs up to 1, relative above


def merge(source: str | Path, out: Path | str, say: Say = print) -> Path:
    """Merge the adapter of a run or of a model folder into its model, and write the model to `out`. Returns `out`.

    Tokenizer, generation settings and the run's record are copied. Weights are fp32.

    Raises UserError and leaves `out` untouched: no adapter; a model that is missing, or that has changed; outputs that
    differ from those of the adapter by more than `TOLERANCE`; a non-empty `out`.
    """
    run = Path(source)
    name = str(run / "model") if (run / "config.yaml").is_file() and (run / "model").is_dir() else str(source)
    checkpoint = open_checkpoint(name)
    if checkpoint.adapter is None:
        raise UserError(f"{name}: holds no adapter; give the folder of a run with peft, or of an adapter")
    with claimed(out) as partial, one_line(name):
        kind = _class_of(name, read_model_config(checkpoint))
        tuner = load_adapted(kind, checkpoint)
        batch = random_batch(tuner.model)
        with torch.no_grad():
            adapted = tuner.model.eval()(**batch)
            model = merged(tuner).eval()
            save_pretrained(model, partial)
            again = kind.from_pretrained(partial, use_safetensors=True).eval()(**batch)
        apart, scale = largest_difference(adapted, again, batch)
        if not apart <= TOLERANCE * max(1.0, scale):
            raise UserError(f"the merged model differs from its adapter by {apart:.1e} (largest value {scale:.1e})")
        home = checkpoint.adapter
        has_tokenizer = any(any(home.glob(pattern)) for pattern in TOKENIZER)
        copy_tokenizer(home if has_tokenizer else checkpoint.weights, partial)
        for file, content in run_files(*read_run(home)).items():
            (partial / file).parent.mkdir(exist_ok=True)
            (partial / file).write_bytes(content)
    say(f"largest difference from the adapter in fp32: {apart:.1e} (largest value {scale:.1e})")
    say(f"{out}: an ordinary {type(model).__name__}")
    return Path(out)


def _class_of(name: str, config: Any) -> Any:
    """Return the class that config.json names."""
    architecture = str((config.architectures or [None])[0])
    kind = getattr(decero.models, architecture, None) or getattr(transformers, architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UserError(f"{name}: config.json names no class of transformers or decero ({architecture})")
    return kind
