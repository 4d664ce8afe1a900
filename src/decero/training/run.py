"""What surrounds a run: its topology, its folder, its model, and the record it leaves."""

import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, broadcast_object_list
from filelock import FileLock, Timeout
from huggingface_hub import get_token
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from decero.data.packages import resolve_package_path
from decero.data.tokenizer import check_fits_model, load_tokenizer
from decero.errors import CLEANUPS, UserError, did_you_mean
from decero.models import AUTO_CLASSES
from decero.training.config import ModelSection, OptimSection, RunConfig, TokenizerSection, TrainingSection, read_yaml
from decero.training.optim import build_optimizer, learning_rate_at

RECORDED = ("decero", "torch", "transformers", "datasets", "accelerate", "tokenizers")


def start(config: RunConfig, training: TrainingSection | None = None) -> Accelerator:
    """Say which topology the launcher gave, refuse another than was asked for, and claim the output folder.

    Raises UserError: one process where several were asked for, a folder that holds another run.
    """
    training = training or TrainingSection(max_train_steps=1)
    # `accelerate launch --cpu --num_processes 2` prepares an address for two processes, then starts one.
    asked_for_more = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if asked_for_more and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise UserError(
            "topology: the launcher was asked for several processes and started one; on CPU use "
            "accelerate launch --config_file configs/accelerate/cpu_2_processes.yaml ..."
        )
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"),
        log_with=_trackers(config) or None,
        project_config=ProjectConfiguration(project_dir=config.output, logging_dir=f"{config.output}/logs"),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    accelerator.gradient_accumulation_steps = 1  # ours to count; the launcher's would divide the loss once more
    if str(accelerator.distributed_type).removeprefix("DistributedType.") not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise UserError(f"topology: {accelerator.distributed_type} is not supported; use configs/accelerate/ddp.yaml")
    if config.hub.repo_id and get_token() is None:
        raise UserError("hub.repo_id: there is no token to push with; run `hf auth login` or set HF_TOKEN")
    processes, device = accelerator.num_processes, accelerator.device.type
    if training.num_processes not in (None, processes):
        raise UserError(
            f"topology: training.num_processes asks for {training.num_processes}, the launcher gave {processes}"
        )
    if device == "cpu":  # accelerate's launcher sets one thread a process, whatever the machine has
        local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local))
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    each = f", {torch.get_num_threads()} threads each" if device == "cpu" else ""
    kind = str(accelerator.distributed_type).removeprefix("DistributedType.").lower().replace("no", "not distributed")
    precision = training.mixed_precision.replace("no", "fp32")
    accelerator.print(
        f"topology: {processes} process{'es' if processes > 1 else ''} on {device} ({kind}{each}), {precision}"
    )
    if not config.dry_run:
        _claim(config, accelerator)
        if accelerator.log_with:
            accelerator.init_trackers(config.tracking.project_name)
    reset_peak_memory()
    return accelerator


def _trackers(config: RunConfig) -> list[str]:
    if config.tracking.trackers != "auto":
        for name in config.tracking.trackers:
            if name not in LOGGER_TYPE_TO_CLASS:
                near = did_you_mean(name, LOGGER_TYPE_TO_CLASS) or f"; there are {', '.join(LOGGER_TYPE_TO_CLASS)}"
                raise UserError(f"tracking.trackers: {name} is no tracker of accelerate{near}")
        return list(config.tracking.trackers)
    return ["tensorboard"] if find_spec("tensorboard") and not config.dry_run else []


_LOCKS: list[FileLock] = []  # held until the process ends


def _claim(config: RunConfig, accelerator: Accelerator) -> None:
    """Make the folder this run's own. One that holds a finished or unfinished run is never written over.

    Every process raises the main one's UserError, so that none is left waiting.
    """
    refusal: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            _claim_on_main(Path(config.output), config.to_yaml(), config.resume)
        except UserError as error:
            refusal = [str(error)]
    broadcast_object_list(refusal)
    if refusal[0]:
        raise UserError(refusal[0])


def _claim_on_main(output: Path, mine: str, resume: bool) -> None:
    other = "give another output=FOLDER"
    try:
        output.mkdir(parents=True, exist_ok=True)
        fresh = not any(output.iterdir())
        lock = FileLock(output / ".lock")
        lock.acquire(timeout=0)
        _LOCKS.append(lock)
    except Timeout:
        raise UserError(f"output: {output} is being written by another run; wait for it, or {other}") from None
    except OSError as error:
        raise UserError(f"output: {output} cannot be written: {error.strerror}; {other}") from None
    record = output / "config.yaml"
    begun = _begun(output)
    if begun and not record.is_file():
        raise UserError(f"output: {output} is not empty and holds no run; {other}")
    if begun and not resume:
        raise UserError(f"output: {output} holds another run; --resume it, delete it, or {other}")
    theirs = record.read_text(encoding="utf-8") if record.is_file() else mine
    if begun and theirs != mine:
        pairs = itertools.zip_longest(theirs.splitlines(), mine.splitlines(), fillvalue="")
        changed = next(b or a for a, b in pairs if a != b).strip()
        raise UserError(
            f"output: {output} holds a run with other settings (here: {changed}); use the same ones, or {other}"
        )
    if not begun:  # a run that stopped before its first step left nothing to lose
        beside = output / ".config.yaml.tmp"
        beside.write_text(mine, encoding="utf-8")
        beside.replace(record)
        if fresh:
            CLEANUPS.append(lambda: _unclaim(output, lock))


def _begun(output: Path) -> set[str]:
    """What a run left in its folder besides its claim."""
    return {path.name for path in output.iterdir()} - {".lock", "logs", "config.yaml", ".config.yaml.tmp"}


def _unclaim(output: Path, lock: FileLock) -> None:
    """Take back the folder that was made for a run which was refused before it left anything there."""
    if output.is_dir() and not _begun(output):
        lock.release()
        shutil.rmtree(output, ignore_errors=True)


@contextmanager
def main_first(accelerator: Accelerator):
    """The main process goes first and the others find its cache. Unlike accelerate's, it lets them go when it fails."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_main_process:
            accelerator.wait_for_everyone()


def finished(config: RunConfig) -> dict[str, Any] | None:
    """The record of a run that is over, when this is a resume of it."""
    record = Path(config.output) / "result.json"
    if not config.resume or not record.is_file():
        return None
    return json.loads(record.read_text(encoding="utf-8"))


def tokenizer_for(tokenizer: TokenizerSection, model: ModelSection, needs: Sequence[str]) -> PreTrainedTokenizerFast:
    """The tokenizer that was named, or the checkpoint's own. Raises UserError for none, or one without `needs`."""
    name = tokenizer.name_or_path or model.name_or_path
    if name is None:
        raise UserError(
            "tokenizer.name_or_path is missing: a model from a preset brings no tokenizer; "
            "train one with recipes/train_tokenizer.py and name its folder"
        )
    found = load_tokenizer(name, needs=needs)
    if tokenizer.name_or_path and model.name_or_path:
        try:
            own = load_tokenizer(model.name_or_path).get_vocab()
        except UserError:
            own = found.get_vocab()  # a checkpoint that brings no tokenizer cannot contradict one
        if own != found.get_vocab():
            raise UserError(
                f"tokenizer: {tokenizer.name_or_path} does not match {model.name_or_path}, whose own gives other ids; "
                "leave tokenizer.name_or_path out"
            )
    return found


def vocab_size_of(section: ModelSection) -> int:
    """The vocabulary of a preset or a checkpoint, without building it."""
    if section.config is not None:
        fields = read_yaml(section.config) | section.overrides
        return AutoConfig.for_model(fields.pop("model_type"), **fields).vocab_size
    return AutoConfig.from_pretrained(resolve_package_path(str(section.name_or_path))).get_text_config().vocab_size


def build_model(
    section: ModelSection,
    auto_class: type,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    seed: int,
    **fields: Any,
) -> PreTrainedModel:
    """A checkpoint's model, or a preset's with random weights drawn from `seed`, in fp32.

    fields: configuration fields that the task decides (num_labels, id2label, problem_type).

    Raises UserError: an unknown field, a checkpoint that cannot be read, a tokenizer with ids beyond the model's
    vocabulary, `max_length` beyond its positions.
    """
    overrides = section.overrides | fields
    if section.attn_implementation:
        overrides["attn_implementation"] = section.attn_implementation
    where = str(section.config or section.name_or_path)
    if section.attn_implementation in ("flash_attention_2", "flex_attention") and not torch.cuda.is_available():
        raise UserError(f"model.attn_implementation: {section.attn_implementation} needs a GPU to train; use sdpa")
    transformers.set_seed(seed)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # a new head is what is wanted, not news
    transformers.logging.disable_progress_bar()
    try:
        if section.config is not None:
            config = read_preset(section.config, overrides, tokenizer)
            _check_shape(config, auto_class)
            check_fits_model(tokenizer, config.vocab_size, where)
            model = auto_class.from_config(config)  # type: ignore[attr-defined]
        else:
            path = resolve_package_path(where)
            hub = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
            config = AutoConfig.from_pretrained(path, **hub)
            _check_fields(config, section.overrides, where)
            check_fits_model(tokenizer, section.overrides.get("vocab_size", config.get_text_config().vocab_size), where)
            # A classifier for other labels than ours is replaced; any other tensor that does not fit is an error.
            new_head = fields.get("num_labels", config.num_labels) != config.num_labels
            model = auto_class.from_pretrained(  # type: ignore[attr-defined]
                path, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=new_head, **overrides, **hub
            )
    except (StrictDataclassError, ValueError, OSError, KeyError, RuntimeError, ImportError, ArithmeticError) as error:
        raise UserError(f"model: {where}: {' '.join(str(error).split())}") from error
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
    positions = _positions(model.config)
    if positions is not None and max_length > positions:
        raise UserError(
            f"data.max_length {max_length} exceeds the {positions} positions of {where}; lower it to {positions}"
        )
    return model


def read_preset(path: str, overrides: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None = None) -> Any:
    """The configuration that a preset describes, with fields changed and, where there is one, a tokenizer's ids.

    Raises UserError for a field that its architecture does not have; sizes that do not fit raise transformers' own.
    """
    fields = read_yaml(path)
    model_type = fields.pop("model_type", None)
    known = transformers.CONFIG_MAPPING
    if model_type not in known:
        near = did_you_mean(str(model_type), known)
        raise UserError(f"{path}: model_type {model_type!r} is none that transformers knows{near}")
    _check_fields(known[model_type](), fields, path)
    _check_fields(known[model_type](), overrides, "model.overrides")
    ids = {} if tokenizer is None else _special_ids(fields, tokenizer)
    return AutoConfig.for_model(model_type, **(fields | ids | overrides))


def _special_ids(fields: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """The ids that the tokenizer has; those that a preset states belong to the vocabulary it was published with."""
    stated = {f"{name}_token_id": fields.get(f"{name}_token_id") for name in ("pad", "bos", "eos")}
    ids = {
        name: value if getattr(tokenizer, name) is None else getattr(tokenizer, name) for name, value in stated.items()
    }
    start = fields.get("decoder_start_token_id")
    same = [name for name, value in stated.items() if start is not None and value == start]
    return ids | ({"decoder_start_token_id": ids[same[0]]} if same else {})


def _check_shape(config: PreTrainedConfig, auto_class: type) -> None:
    """Raise ValueError for a preset of another shape; transformers would list every configuration it knows."""
    if type(config) not in auto_class._model_mapping:  # type: ignore[attr-defined]
        ours = [known.model_type for known, heads in AUTO_CLASSES.items() if auto_class in heads]
        raise ValueError(f"no {auto_class.__name__} for model_type {config.model_type}; take a {' or '.join(ours)}")


def _check_fields(config, fields: dict[str, Any], where: str) -> None:
    """transformers accepts unknown fields in silence; a misspelt one would train another model than was meant."""
    known = set(config.to_dict()) | set(config.attribute_map) | {"num_labels", "attn_implementation", "problem_type"}
    if config.is_encoder_decoder:
        known.add("decoder_start_token_id")  # T5's configuration has it only when it is given
    for name in fields:
        if name not in known:
            raise UserError(f"{where}: {name} is no field of {type(config).__name__}{did_you_mean(name, known)}")


def _positions(config) -> int | None:
    """How many tokens a row may have. RoBERTa's family counts positions from the padding id on."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return None
    offset = "roberta" in config.model_type or config.model_type in (
        "camembert",
        "mpnet",
        "longformer",
        "data2vec-text",
    )
    return positions - (config.pad_token_id or 0) - 1 if offset else positions


def forecast(
    config: RunConfig, optim: OptimSection, training: TrainingSection, model: nn.Module, examples: int, tokens: int
) -> None:
    """What --dry-run says: settings as resolved, parameters, tokens a step, steps. Nothing was written."""
    parameters = sum(p.numel() for p in model.parameters())
    per_epoch = -(-examples // training.global_batch_size)
    steps = training.max_train_steps or (training.num_train_epochs or 0) * per_epoch
    a_step = tokens / examples * min(training.global_batch_size, examples)
    flops = 6 * model.num_parameters(exclude_embeddings=True) * a_step  # type: ignore[operator]
    learning_rate_at(build_optimizer(model, optim), optim, steps)  # their settings are checked, too
    print(config.to_yaml())
    print(f"parameters        {parameters:,}")
    print(f"training rows     {examples:,} of {tokens / examples:.1f} tokens on average")
    print(f"tokens a step     {a_step:,.0f} ({training.global_batch_size} rows)")
    print(f"steps             {steps:,} ({steps / per_epoch:.2f} epochs)")
    print(
        f"FLOPs             {flops:.3g} a step, {flops * steps:.3g} in all (6 x parameters without embeddings x tokens)"
    )
    print("dry run: nothing was trained and nothing written")


def write_result(output: Path, accelerator: Accelerator, result: dict[str, Any]) -> dict[str, Any]:
    """result.json: the run's own figures, then what is needed to read and repeat them. Returns the whole record."""
    record = result | {
        "peak_memory_bytes": peak_memory(accelerator),
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "machine": f"{platform.machine()}, {psutil.cpu_count(logical=False) or os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in RECORDED},
        "commit": _commit(),
    }
    if accelerator.is_main_process:
        beside = output / ".result.json.tmp"
        beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        beside.replace(output / "result.json")
    accelerator.wait_for_everyone()
    return record


def _commit() -> str | None:
    """The commit of the working folder, marked when it holds changes; None outside a repository."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def reset_peak_memory() -> None:
    """Start counting anew, so that several runs in one process each get their own peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: peak resident set := resident set


def peak_memory(accelerator: Accelerator) -> int:
    """Bytes at the highest point: of the accelerator where there is one, else of the process."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        import resource  # not on every platform

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
