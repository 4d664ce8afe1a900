"""Check that a written model computes and writes what the stock model does, and measure both."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from decero.errors import UserError
from decero.execution.positions import positions_of
from decero.execution.transformers_internals import has_short_cache
from decero.hub.engines.engine import Engine, Running
from decero.hub.verification import (
    OUTPUTS,
    TOLERANCE,
    behind_the_best,
    greedy_tokens,
    prompts_of,
    random_batch,
)

QUANTIZED_TOLERANCE = 0.5  # of the outputs' root mean square; another model's outputs differ by 1.4 of it
ROUNDS, TEXTS, LENGTH, NEW = 3, 8, 128, 64  # of a measurement: repeats; texts and tokens read; tokens written


@dataclass(frozen=True)
class Measured:
    """What an export was measured to be. Sizes in bytes, speeds in tokens a second, each (original, written)."""

    checks: list[str]
    size: tuple[int, int]
    speed: tuple[float, float]
    what: str
    threads: int


@torch.no_grad()
def check_engine(model: PreTrainedModel, running: Running, engine: Engine, quantization: str | None) -> list[str]:
    """Compare outputs, and texts written by greedy search. Returns a sentence for each.

    model: in fp32 and in evaluation mode; its own generation settings are put aside. Raises UserError: without
    quantization, outputs that differ by more than `TOLERANCE`, or a written token that is not the model's best one;
    with it, outputs that differ by more than `QUANTIZED_TOLERANCE`.
    """
    plain_generation(model)
    checks = []
    if running.outputs is not None:
        checks.append(_compare_outputs(model, running.outputs, engine, quantization))
    if running.write is not None:
        checks.append(_compare_texts(model, running.write, engine, quantization))
    return checks


def plain_generation(model: Any) -> None:
    """Set plain greedy search, which every engine has: no beams, no sampling, no forbidden tokens."""
    if model.can_generate():
        kept = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        ids = {name: getattr(model.generation_config, name) for name in kept}
        ids = {name: getattr(model.config, name, None) if ids[name] is None else ids[name] for name in kept}
        model.generation_config = GenerationConfig(**ids, do_sample=False, use_cache=not has_short_cache(model))


def _compare_outputs(model: Any, run: Callable, engine: Engine, quantization: str | None) -> str:
    batch = random_batch(model)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"][:, 0] = model.config.decoder_start_token_id
    found, expected = run(batch), dict(model(**batch))
    expected |= _derived(model, batch, expected)
    names = [name for name in (*OUTPUTS, "token_log_probs", "sentence_embedding") if name in found]
    pairs = [_real(name, expected[name].float(), found[name].float(), batch) for name in names]
    apart = max((a - b).abs().max().item() for a, b in pairs)
    scale = max(a.abs().max().item() for a, _ in pairs)
    relative = max(((a - b).square().mean() / a.square().mean()).sqrt().item() for a, b in pairs)
    what = f"largest difference of {', '.join(names)} in {engine.name}"
    if quantization:
        if not relative <= QUANTIZED_TOLERANCE:
            raise UserError(
                f"{engine.name} with {quantization}: outputs differ by {relative:.0%} of their root mean square, more "
                f"than {QUANTIZED_TOLERANCE:.0%}; export without --quantization"
            )
        return f"{what}, {quantization}: {apart:.1e} (largest value {scale:.1e}); root mean square {relative:.1%}"
    if not apart <= TOLERANCE * max(1.0, scale):
        raise UserError(
            f"{', '.join(names)} in {engine.name} and in {type(model).__name__} differ by {apart:.1e} (largest value "
            f"{scale:.1e}), so nothing was written"
        )
    return f"{what}: {apart:.1e} (largest value {scale:.1e})"


def _derived(model: Any, batch: dict[str, Tensor], outputs: dict[str, Any]) -> dict[str, Tensor]:
    """Return what engines give instead of the model's outputs."""
    if model.config.is_encoder_decoder:  # the next tokens, and the end token after the last
        end = model.config.eos_token_id
        if end is None:  # CTranslate2, which gives these, refuses such a model
            return {}
        following = batch["decoder_input_ids"].roll(-1, dims=1)
        lengths = batch["decoder_attention_mask"].sum(1)
        following[torch.arange(len(lengths)), lengths - 1] = end[0] if isinstance(end, list) else end
        scores = outputs["logits"].log_softmax(-1).gather(2, following[..., None])[..., 0]
        return {"token_log_probs": scores}
    if not model.can_generate():
        choices = {name: tensor.flatten(0, -2) for name, tensor in batch.items()}
        hidden = model.base_model(**choices).last_hidden_state
        mask = choices["attention_mask"][..., None]
        return {"sentence_embedding": (hidden * mask).sum(1) / mask.sum(1)}
    return {}


def _real(name: str, a: Tensor, b: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Take padding out of outputs that have a value for each token."""
    side = "decoder_attention_mask" if "decoder_attention_mask" in batch else "attention_mask"
    mask = batch[side].bool()
    return (a[mask], b[mask]) if a.shape[: mask.dim()] == mask.shape else (a, b)


def _compare_texts(model: Any, write: Callable, engine: Engine, quantization: str | None) -> str:
    prompts, new = prompts_of(model)
    total = equal = 0
    for prompt in prompts:
        wanted, written = greedy_tokens(model, prompt, new), write(prompt, new)
        total += len(written)
        behind, largest = behind_the_best(model, prompt, written)
        best = behind <= TOLERANCE * max(1.0, largest)
        equal += int(best.sum())
        if not quantization and not (best.all() and (len(written) == new or _ended(model, written))):
            raise UserError(
                f"{engine.name} writes other tokens than {type(model).__name__}: {written} after {prompt}, where "
                f"greedy search gives {wanted}; nothing was written"
            )
    if quantization:
        return f"{equal} of {total} tokens written by greedy search after {len(prompts)} prompts are the original's"
    return f"greedy search writes the same {total} tokens after {len(prompts)} prompts"


def _ended(model: Any, written: list[int]) -> bool:
    ends = model.generation_config.eos_token_id
    return bool(written) and written[-1] in (ends if isinstance(ends, list) else [ends])


def measure(model: Any, running: Running, folder: Path, original: Path, engine: Engine, checks: list[str]) -> Measured:
    """Measure speed and size of the stock model and of the written one, in turn, with torch's number of threads.

    A model that writes: tokens written by greedy search after one prompt. Others: tokens read, in equally long texts.
    """
    generator = torch.Generator().manual_seed(1)
    room = positions_of(model, decoder=True) or 2 * LENGTH
    if running.write is not None:
        prompt = torch.randint(5, model.config.vocab_size, (min(16, max(1, room // 2)),), generator=generator).tolist()
        new = max(1, min(NEW, room - len(prompt)))
        works: list[Callable[[], int]] = [
            lambda: len(greedy_tokens(model, prompt, new)),
            lambda: len(running.write(prompt, new)),  # type: ignore[misc]
        ]
        what = f"written, one text, at most {new} tokens"
    else:
        batch = random_batch(model)
        length = min(LENGTH, positions_of(model) or LENGTH)
        shape = (1, TEXTS, length) if batch["input_ids"].dim() == 3 else (TEXTS, length)
        ids = torch.randint(5, model.config.vocab_size, shape, generator=generator)
        texts = {name: torch.ones_like(ids) if name == "attention_mask" else torch.zeros_like(ids) for name in batch}
        texts["input_ids"] = ids

        def read(run: Callable) -> Callable[[], int]:
            def work() -> int:
                with torch.no_grad():
                    run(texts)
                return ids.numel()

            return work

        works = [read(lambda texts: model(**texts)), read(running.outputs)]  # type: ignore[arg-type]
        what = f"read, {TEXTS} texts of {length} tokens"
    speeds: list[list[float]] = [[], []]
    for number in range(1 + ROUNDS):  # the first is not counted
        for found, work in zip(speeds, works, strict=True):
            start = time.perf_counter()
            tokens = work()
            if number:
                found.append(tokens / (time.perf_counter() - start))
    sizes = (_size(original, ("*.safetensors",)), _size(folder, engine.weights))
    return Measured(checks, sizes, (median(speeds[0]), median(speeds[1])), what, torch.get_num_threads())


def _size(folder: Path, patterns: tuple[str, ...]) -> int:
    return sum(path.stat().st_size for pattern in patterns for path in folder.glob(pattern))
