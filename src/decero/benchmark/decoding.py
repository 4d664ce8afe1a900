"""Build the decoding arms: decero's `decode` and `generate` of transformers.

`generate` is called as in the examples of transformers.
Models with random weights rarely write an end token. So each source has a fixed answer length, the same for all arms.
Lengths have a skewed distribution, like those of sentences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from decero.config.benchmark import Workload
from decero.data.sizes import BatchSize
from decero.errors import UserError
from decero.execution.weight_layout import prepacked_weights
from decero.inference.decode import decode
from decero.planning.cost import flops

SHORTEST = 4  # tokens of a source
SOURCE_SPREAD = 0.6  # standard deviation of log length; half of the lengths are 0.67 to 1.5 times the median
ANSWER_SPREAD = 0.2  # standard deviation of log(answer / source), as between two languages


def skewed_lengths(work: Workload, count: int, seed: int) -> np.ndarray:
    """Draw source lengths: log-normal with mean fill x length, limited to `length`."""
    rng = np.random.default_rng(seed)
    drawn = work.fill * work.length * rng.lognormal(-(SOURCE_SPREAD**2) / 2, SOURCE_SPREAD, count)
    return drawn.clip(SHORTEST, work.length).round().astype(int)


def answer_lengths(work: Workload, sources: Sequence[Sequence[int]], seed: int) -> list[int]:
    """Return the length of each answer: `answer_length`, or about that of the source."""
    if work.answer_length is not None:
        return [work.answer_length] * len(sources)
    rng = np.random.default_rng([seed, 1])
    drawn = np.array([len(source) for source in sources]) * rng.lognormal(0, ANSWER_SPREAD, len(sources))
    return drawn.round().astype(int).clip(1).tolist()


class Ends(StoppingCriteria):
    """Stop each row of `generate` at its own length."""

    def __init__(self, limits: Sequence[int]):
        self.limits_B = torch.tensor(limits)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs) -> Any:
        self.limits_B = self.limits_B.to(input_ids.device)
        return input_ids.shape[1] - 1 >= self.limits_B  # minus the start token


@dataclass
class Decoder:
    """Hold one competitor of a decoding benchmark. A call decodes all sources to `written`."""

    model: PreTrainedModel
    write: Callable[[], list[list[int]]]
    says: list[str]
    written: list[list[int]] = field(default_factory=list)

    def __call__(self) -> None:
        self.written = self.write()


def build_decoders(
    work: Workload,
    pair: tuple[PreTrainedModel, PreTrainedModel],
    sources: list[list[int]],
    device: torch.device,
    seed: int,
) -> dict[str, Decoder]:
    """Build the arms on the device, with weights in fp32, or in bfloat16 if `work.bf16`.

    stock: `generate` of the stock class, in batches of `work.batch_size` in the given order, padded on the right.
    ours: `decode` with the decero class. Batches have the same size but are sorted by source length, because answer
    lengths are unknown in advance. Without `work.tricks`: `generate` with the batches of stock.
    uncached: as ours without tricks, but each step reads all written tokens again.
    """
    ours, stock = (model.to(device, torch.bfloat16 if work.bf16 else torch.float32).eval() for model in pair)  # type: ignore[arg-type]
    for model in pair:
        model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    limits = answer_lengths(work, sources, seed)
    given = [f"batches of {work.batch_size}, in the given order"]
    lean = [f"batches of {work.batch_size}, sorted by source length; finished rows leave"]
    generate = partial(_generate, sources=sources, limits=limits, batch_size=work.batch_size)
    best = partial(_decode_sorted, ours, sources, limits, work.batch_size)
    arms = (
        Decoder(stock, partial(generate, stock), given),
        Decoder(ours, best, lean) if work.tricks else Decoder(ours, partial(generate, ours), given),
        Decoder(ours, partial(generate, ours, use_cache=False), given),
    )
    return dict(zip(work.arms(), arms, strict=False))


def _decode_sorted(model: Any, sources: list[list[int]], limits: list[int], batch_size: int) -> list[list[int]]:
    order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
    answers: list[list[int]] = [[] for _ in sources]
    with prepacked_weights(model):  # once for all batches, as `decode` does
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            most = [limits[i] for i in batch]
            whole = len(batch) * (max(map(len, sources)) + max(limits))  # so that `decode` does not split the batch
            written = decode(model, [sources[i] for i in batch], max_new_tokens=most, tokens_per_batch=whole)
            for i, answer in zip(batch, written, strict=True):
                answers[i] = answer
    return answers


def _generate(
    model: Any, sources: list[list[int]], limits: list[int], batch_size: int, use_cache: bool = True
) -> list[list[int]]:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    answers: list[list[int]] = []
    for start in range(0, len(sources), batch_size):
        batch, ends = sources[start : start + batch_size], limits[start : start + batch_size]
        ids_BL = torch.full((len(batch), max(map(len, batch))), model.config.pad_token_id)
        mask_BL = torch.zeros_like(ids_BL)
        for row, source in enumerate(batch):
            ids_BL[row, : len(source)], mask_BL[row, : len(source)] = torch.tensor(source), 1
        written_BL = model.generate(
            ids_BL.to(model.device), attention_mask=mask_BL.to(model.device), max_new_tokens=max(ends), do_sample=False,
            num_beams=1, use_cache=use_cache, stopping_criteria=StoppingCriteriaList([Ends(ends)]),
        )  # fmt: skip
        answers += [row[1 : 1 + end] for row, end in zip(written_BL.tolist(), ends, strict=True)]
    transformers.logging.set_verbosity(level)
    return answers


def check_equal_answers(name: str, work: Workload, written: Mapping[str, list[list[int]]]) -> dict[str, float]:
    """Return for each arm the share of its tokens that are equal to those of ours.

    Raises UserError if they differ in fp32, because then the comparison would not be fair.
    """
    our_tokens = [token for answer in written["ours"] for token in answer]
    shares = {}
    for arm, answers in written.items():
        tokens = [token for answer in answers for token in answer]
        shares[arm] = float(np.mean([a == b for a, b in zip(tokens, our_tokens, strict=True)]))
    if not work.bf16 and min(shares.values()) < 1:
        values = ", ".join(f"{arm} {share:.4f}" for arm, share in shares.items())
        raise UserError(f"works.{name}: the arms write different answers, share of equal tokens: {values}")
    return shares


def describe_decoding(work: Workload, sources: list[list[int]], ours: PreTrainedModel, seed: int) -> dict[str, Any]:
    """Count as `describe` does: useful tokens are the written ones, FLOPs assume a cache."""
    read, written = (np.array(each) for each in ([len(s) for s in sources], answer_lengths(work, sources, seed)))
    batches = [slice(start, start + work.batch_size) for start in range(0, len(read), work.batch_size)]
    steps = sum(int(written[batch].max()) * len(written[batch]) for batch in batches)
    tokens = int(written.sum())
    load = BatchSize(
        examples=len(read), tokens=int(read.sum()) + tokens, scored=tokens, places=read.sum(), pairs=(read**2).sum(),
        written_places=tokens, written_pairs=float((written * (written + 1) / 2).sum()),
        crossed_pairs=(read * written).sum(),
    )  # fmt: skip
    facts = {"texts": len(read), "useful_tokens": tokens, "fill": tokens / steps, "scored": tokens}
    return facts | {"flops": float(flops(ours, load)) / 3}  # a forward pass takes 2 of the 6 FLOPs per weight and token


def sources_of(texts: Any) -> list[list[int]]:
    return [list(row) for row in texts["input_ids"]]
