"""Check token rows, the match of tokenizer and model, and the loss of token frequencies."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoConfig

from decero.data.causal import PLAIN
from decero.data.tokenizer import load_tokenizer
from decero.doctor.answers import frequent_spans, has_spans, uniform_spans
from decero.doctor.findings import Finding, percent
from decero.doctor.inspected_run import InspectedRun
from decero.doctor.picture_rows import UNBOUNDED, pictures

ALPHABET = 512  # unused embedding rows to accept: bytes and special tokens in a small corpus
SHORT = 5  # a text with fewer ordinary tokens is very short


def rows(work: InspectedRun) -> Iterator[Finding]:
    """Find very short texts (warn from 5 % on) and truncated texts (warn from 10 % on).

    Of pictures it says in which form the model reads them, and finds those of one colour (warn from 1 % on).
    """
    if work.reads == "pictures":
        yield from pictures(work)
        return
    lengths, of, pretrains = work.objective.row_sizes(work.rows).most, _of(work), work.name.startswith("pretrain")
    beginnings = [text[:200] for text in work.sample_texts(1000)]
    ids = work.tokenizer(beginnings, **PLAIN)["input_ids"] if beginnings else []
    short, found = float(np.mean([len(each) < SHORT for each in ids] or [False])), False
    if short >= 0.05:
        found, what = True, f"{percent(short)} of {len(ids):,} sampled texts have fewer than {SHORT} tokens"
        mend = "join them (data.sample_by=paragraph or document)" if pretrains else "fine if they should be short"
        mend += f", or check that column {work.corpus.columns[0]!r} holds the text"
        yield Finding("rows", "warn" if pretrains else "note", what, "train", mend)
    cut = float(np.mean(work.rows["truncated"][:])) if "truncated" in work.rows.column_names else 0.0
    if cut >= 0.1:
        found = True
        settings = (
            "data.max_source_length or data.max_target_length"
            if hasattr(work.config.data, "tasks")
            else "data.max_length"
        )
        yield Finding("rows", "warn", f"{percent(cut)} of the texts are truncated", f"train{of}", f"raise {settings}")
    if not found:
        lost = f", {percent(cut)} truncated" if cut else ""
        spread = f"{int(lengths.min())} to {int(lengths.max())} tokens, mean {lengths.mean():.0f}"
        what = f"{len(lengths):,} rows of {spread}{lost}"
        yield Finding("rows", "ok", what, f"train{of}")


def _of(work: InspectedRun) -> str:
    return "" if work.share == 1 else f" (an even sample of {percent(work.share)})"


def tokenizer(work: InspectedRun) -> Iterator[Finding]:
    """Check that the tokenizer fits texts and model.

    This covers unknown tokens, ids, special tokens and unused embedding rows. Pictures have no tokenizer.
    """
    if work.reads == "pictures":
        return
    found = list(_special(work.tokenizer, work.model_config, "model.config" if work.config.model.config else "model"))
    if work.trained:
        own = load_tokenizer(str(work.trained))
        config = AutoConfig.from_pretrained(work.trained, trust_remote_code=False)
        largest, size = max(own.get_vocab().values()), config.get_text_config().vocab_size
        if own.get_vocab() != work.tokenizer.get_vocab():
            what = "the tokenizer in model/ is not the one of the training run: its ids differ"
            found.append(Finding("tokenizer", "bad", what, str(work.trained), "save the tokenizer of the run there"))
        if largest >= size:
            what = f"the largest id is {largest}, beyond the vocabulary of {size}"
            found.append(Finding("tokenizer", "bad", what, str(work.trained), "save the tokenizer of the run there"))
        found += _special(own, config, str(work.trained))
    counts = np.zeros(max(work.model_config.get_text_config().vocab_size, len(work.tokenizer)), dtype=np.int64)
    for column in ("input_ids", "labels"):
        if (
            column == "input_ids"
            or getattr(getattr(work.rows.features.get(column), "feature", None), "dtype", "") == "int32"
        ):
            counts += np.bincount(_flat(work.rows, column), minlength=len(counts))[: len(counts)]
    found += _unknown(work, counts)
    unused = float((counts == 0).mean())
    idle = int((counts == 0).sum())
    if unused > 0.5 and idle > ALPHABET and work.config.model.config and work.share == 1:
        what = f"{percent(unused)} of the {len(counts):,} embedding rows are not used in train"
        mend = "train a smaller vocabulary (tokenizer.vocab_size), or match the preset's vocab_size to the tokenizer"
        found.append(Finding("tokenizer", "warn", what, "train", mend))
    used = f"{len(work.tokenizer):,} tokens, {percent(1 - unused)} of the {len(counts):,} embedding rows used"
    yield from found or [Finding("tokenizer", "ok", used + _of(work))]


def _flat(dataset: Dataset, column: str) -> np.ndarray:
    chunks = dataset.select_columns([column]).with_format("arrow")[:][column].chunks
    return np.concatenate([np.empty(0, dtype=np.int64), *(chunk.flatten().to_numpy() for chunk in chunks)])


def _unknown(work: InspectedRun, counts: np.ndarray) -> Iterator[Finding]:
    """Check the share of unknown tokens among ordinary ones: warn from 0.5 %, bad from 10 %."""
    unknown = work.tokenizer.unk_token_id
    if (
        unknown is None or work.tokenizer.unk_token == work.tokenizer.eos_token
    ):  # GPT-2: the unknown token is the end token, and byte-level BPE never needs it
        return
    other_special = [i for i in work.tokenizer.all_special_ids if i != unknown]
    share = counts[unknown] / max(1, counts.sum() - counts[other_special].sum())
    if share >= 0.005:
        what = f"{percent(share)} of the tokens are {work.tokenizer.unk_token}"
        mend = (
            "train a tokenizer on this text, or use tokenizer.algorithm=byte_level_bpe, which has no unknown characters"
        )
        yield Finding("tokenizer", "bad" if share >= 0.1 else "warn", what, f"train{_of(work)}", mend)


def _special(tokenizer: Any, config: Any, where: str) -> Iterator[Finding]:
    """Find special tokens whose id differs between model configuration and tokenizer.

    A model may have several end tokens; the tokenizer must have one of them.
    """
    for role in ("pad", "bos", "eos", "sep", "cls", "mask"):
        theirs, ours = getattr(config, f"{role}_token_id", None), getattr(tokenizer, f"{role}_token_id", None)
        ends = theirs if isinstance(theirs, list) else [theirs]
        if theirs is None or ours is None or ours in ends:
            continue
        token = getattr(tokenizer, f"{role}_token")
        what = f"{role}_token_id is {theirs} in the model but {ours} ({token}) in the tokenizer"
        yield Finding("tokenizer", "warn", what, where, f"set model.overrides.{role}_token_id={ours}")


def entropy(labels: Tensor) -> float:
    """Return the loss per item of the best model that ignores its input: nats, or variance.

    labels can be:
    (items,) ids or classes: the entropy of their distribution. Plus (K - 1) / 2N, the bias of the estimate from N items
    of K kinds (Miller 1955).
    (examples, labels) of 0 and 1: the mean entropy over the labels.
    (items,) floats: the variance.
    """
    if labels.dim() > 1:
        p = labels.double().mean(dim=0)
        return float(-(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean())
    if labels.is_floating_point():
        return float(labels.double().var(unbiased=False))
    counts = torch.unique(labels, return_counts=True)[1].double()
    p = counts / counts.sum()
    return float(-(p * p.log()).sum()) + (len(counts) - 1) / (2 * float(counts.sum()))


def floor(work: InspectedRun) -> Iterator[Finding]:
    """Compare the loss of the run with that of label frequencies.

    The loss of the run is the best validation loss, or else the last training loss. Boxes and pixels have no such loss.
    """
    if work.name in UNBOUNDED:
        yield Finding("floor", "ok", UNBOUNDED[work.name])
        return
    if has_spans(work):
        bound, unit = frequent_spans(work), "nats"
    else:
        bound, unit = (
            entropy(work.labels) + detection(work)[1],
            "nats" if not _numbers(work.labels) else "squared error",
        )
    held_out = [row["eval_loss"] for row in work.metrics if "eval_loss" in row]
    trained = [row["loss"] for row in work.metrics if "loss" in row]
    smoothed = getattr(work.config.objective, "label_smoothing", 0) > 0
    baseline = f"predicting by frequency alone gives a loss of {bound:.3f} {unit}"
    if changed := changes_the_loss(work):
        yield Finding("floor", "ok", f"{baseline}; {changed} changes the loss, which cannot be compared")
        return
    best = min(held_out) if held_out else None if smoothed else (trained[-1] if trained else None)
    if best is None:
        after = (
            "the run logged only a smoothed loss, which cannot be compared" if trained else "training must get below it"
        )
        yield Finding("floor", "ok", f"{baseline}; {after}")
        return
    which = "the best validation loss" if held_out else "the last training loss"
    if best < bound:
        yield Finding("floor", "ok", f"{which} {best:.3f} is below {bound:.3f} {unit}, the loss of frequencies alone")
    elif held_out and trained and not smoothed and trained[-1] < 0.8 * bound:
        what = f"{which} {best:.3f} is not below {bound:.3f} (frequencies alone), training loss is {trained[-1]:.3f}"
        mend = "the model overfits train: add text, or use fewer steps, more dropout or weight_decay"
        yield Finding("floor", "bad", what, "metrics.jsonl", mend)
    else:
        what = f"{which} {best:.3f} is not below {bound:.3f} {unit}: the model has learned only frequencies"
        mend = "train longer or raise optim.learning_rate; if the check overfit is bad too, check masks and labels"
        yield Finding("floor", "bad", what, "metrics.jsonl", mend)


def changes_the_loss(work: InspectedRun) -> str:
    """Return the setting that makes the model learn other odds than those of the labels; "" for none."""
    objective = work.config.objective
    weighted = getattr(objective, "class_weights", "none") != "none"
    taught = getattr(objective, "distill", None)
    return "objective.class_weights" if weighted else "objective.distill" if taught else ""


def uniform(work: InspectedRun) -> float | None:
    """Return the loss of uniform guessing: ln of the number of choices; None for numbers."""
    if has_spans(work):
        return uniform_spans(work)
    if work.name in UNBOUNDED:
        return None
    labels = work.labels
    if _numbers(labels):
        return None
    if labels.dim() > 1:
        return math.log(2)
    choices = len(work.corpus.label_names) or work.model_config.get_text_config().vocab_size
    return math.log(choices) + detection(work)[0]


def detection(work: InspectedRun) -> tuple[float, float]:
    """Return what a discriminator adds to the loss of guessing: uniformly, and by frequency alone. 0 without one."""
    objective = work.config.objective
    weight, p = (getattr(objective, name, None) or 0.0 for name in ("discriminator_weight", "mlm_probability"))
    if not weight:
        return 0.0, 0.0
    return weight * math.log(2), -weight * (p * math.log(p) + (1 - p) * math.log(1 - p))


def _numbers(labels: Tensor) -> bool:
    return labels.is_floating_point() and labels.dim() == 1
