"""Build the texts (or pictures) and batches of a workload, and count tokens and FLOPs.

Dimensions: B batch, L length.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from decero.benchmark.decoding import describe_decoding, skewed_lengths, sources_of
from decero.benchmark.image_batches import describe_pictures, make_pictures
from decero.config.benchmark import Workload
from decero.data.collators import IGNORED
from decero.data.corpus import load_corpus
from decero.data.order import RowIndex, Rows, epoch_order
from decero.data.sizes import BatchSize
from decero.data.special_tokens import TEXT
from decero.data.tokenizer import check_fits_model, load_tokenizer
from decero.errors import UserError
from decero.models.modeling_encoder_decoder import shift_right
from decero.planning.cost import flops

Batch = dict[str, Tensor]
SHORTEST = 4  # tokens of a text
FORMULA = (
    "FLOPs are the minimum for the task, equal for all arms: 6 x parameters without embeddings x useful tokens, "
    "6 x vocabulary x width x scored tokens for the projection, and 12 x width x visible token pairs per attention. "
    "Without training a third of this. Padding and unscored positions do not count. Of pictures: 3 x what torch "
    "counts in a forward pass of ours, whose last layer computes the class token only."
)


def make_texts(name: str, work: Workload, config: PreTrainedConfig, seed: int) -> Dataset:
    """Make the token rows of a unit, from files or from random ids; or its pictures."""
    if work.kind == "pictures":
        return make_pictures(work, config, seed)
    count = work.batches * work.batch_size
    if work.texts is not None:
        return _read_texts(name, work, config, count, seed)
    rng = np.random.default_rng(seed)
    mean = work.fill * work.length
    reach = max(0.0, min(mean - SHORTEST, work.length - mean))
    lengths = rng.permutation(np.linspace(mean - reach, mean + reach, count)).round().astype(int)
    if work.kind == "decode":
        lengths = skewed_lengths(work, count, seed)
    words = ordinary_ids(config)
    return Dataset.from_list([{"input_ids": rng.choice(words, size=size).tolist()} for size in lengths])


def _read_texts(name: str, work: Workload, config: PreTrainedConfig, count: int, seed: int) -> Dataset:
    assert work.texts is not None
    corpus = load_corpus(files={"train": work.texts.files}, text_column=work.texts.text_column, columns={})["train"]
    if len(corpus) < count:
        raise UserError(
            f"works.{name}: {len(corpus):,} texts are fewer than batches x batch_size = {count:,}; lower batches"
        )
    tokenizer = load_tokenizer(work.texts.tokenizer)
    check_fits_model(tokenizer, config.vocab_size, f"works.{name}")
    texts = corpus[epoch_order(seed, 0, len(corpus))[:count]][work.texts.text_column]
    rows = tokenizer([text or "" for text in texts], truncation=True, max_length=work.length, **TEXT)["input_ids"]
    return Dataset.from_list([{"input_ids": row} for row in rows if len(row) >= 2])


def ordinary_ids(config: PreTrainedConfig) -> np.ndarray:
    """Return all token ids except special ones."""
    special: list[Any] = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "decoder_start")]
    return np.setdiff1d(np.arange(config.vocab_size), [i for i in np.hstack(special) if i is not None])


@dataclass
class Padded:
    """Collate rows of `input_ids` and `index` to a batch, padded on the right.

    Labels are at the position of their logits. Masks depend only on (seed, index), so they are equal for all arms.
    mlm: a share of the tokens is replaced by one token and scored. causal: all tokens but the first are scored.
    seq2seq: the target has the length that span corruption gives, 2/9 of the source and an end token. (15 % of the
    tokens in spans of 3, with a sentinel each: Raffel et al. 2020, section 3.1.4.) classification: two labels.
    """

    work: Workload
    config: PreTrainedConfig
    seed: int
    width: int | None = None  # pad to this length; the longest text if None

    def __post_init__(self):
        self._hidden = ordinary_ids(self.config)[0]  # replaces masked tokens

    def __call__(self, rows: list[dict]) -> Batch:
        texts = [np.asarray(row["input_ids"]) for row in rows]
        pad = self.config.pad_token_id or 0
        batch = {"attention_mask": stack([np.ones_like(text) for text in texts], 0, self.width)}
        if self.work.kind == "mlm":
            masked = [self._mask(text, row["index"]) for text, row in zip(texts, rows, strict=True)]
            batch["labels"] = stack([labels for _, labels in masked], IGNORED, self.width)
            texts = [read for read, _ in masked]
        elif self.work.kind == "causal":
            batch["labels"] = stack([np.append(text[1:], IGNORED) for text in texts], IGNORED, self.width)
        elif self.work.kind == "seq2seq":
            labels_BL = stack([np.resize(text, round(2 / 9 * len(text)) + 1) for text in texts], IGNORED)
            start: Any = self.config.decoder_start_token_id  # type: ignore[attr-defined]
            batch |= {"labels": labels_BL, "decoder_input_ids": shift_right(labels_BL, start, pad)}
        else:
            batch["labels"] = torch.tensor([row["index"] % 2 for row in rows])
        return batch | {"input_ids": stack(texts, pad, self.width)}

    def _mask(self, ids_L: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, index])
        scored_L = rng.random(len(ids_L)) < self.work.mlm_probability
        scored_L[rng.integers(len(ids_L))] = True  # score at least one token
        return np.where(scored_L, self._hidden, ids_L), np.where(scored_L, ids_L, IGNORED)


def stack(texts: list[np.ndarray], fill: int, width: int | None = None) -> Tensor:
    """Pad the texts on the right with `fill` to (batch, width or longest length)."""
    padded = np.full((len(texts), width or max(map(len, texts))), fill, dtype=np.int64)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = text
    return torch.from_numpy(padded)


def make_batches(work: Workload, texts: Dataset, collate) -> list[Batch]:
    """Return the batches of one unit."""
    rows = Rows(texts)
    starts = range(0, len(texts), work.batch_size)
    indices = [[RowIndex(0, i) for i in range(start, min(start + work.batch_size, len(texts)))] for start in starts]
    return [collate(rows.__getitems__(batch)) for batch in indices]


def padded_batches(work: Workload, texts: Dataset, config: PreTrainedConfig, seed: int) -> list[Batch]:
    """Return the batches of one unit, padded as in the examples of transformers."""
    return make_batches(work, texts, Padded(work, config, seed, work.length if work.padding == "max_length" else None))


def as_stock_reads(work: Workload, batch: Batch) -> Batch:
    """Return the batch with labels for the stock class; causal stock models shift labels."""
    if work.kind != "causal":
        return batch
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}


def describe(work: Workload, texts: Dataset, ours: PreTrainedModel, seed: int) -> dict[str, Any]:
    """Count texts, useful tokens, fill of stock rows, scored tokens and FLOPs of a unit; or pictures and FLOPs."""
    if work.kind == "pictures":
        return describe_pictures(texts, ours, seed)
    if work.kind == "decode":
        return describe_decoding(work, sources_of(texts), ours, seed)
    batches = padded_batches(work, texts, ours.config, seed)
    seq2seq, per_text = work.kind == "seq2seq", work.kind == "classification"
    source = np.concatenate([batch["attention_mask"].sum(dim=1).numpy() for batch in batches])
    target = np.zeros_like(source)
    if seq2seq:
        target = np.concatenate([(batch["labels"] != IGNORED).sum(dim=1).numpy() for batch in batches])
    scored = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    tokens = int(source.sum() + target.sum())
    places = sum(batch["input_ids"].numel() + batch["labels"].numel() * seq2seq for batch in batches)
    load = BatchSize(
        examples=len(source), tokens=tokens, scored=scored, places=source.sum(),
        pairs=_pairs_behind(source) if work.kind == "causal" else (source**2).sum(),
        written_places=target.sum(), written_pairs=_pairs_behind(target), crossed_pairs=(source * target).sum(),
    )  # fmt: skip
    facts = {"texts": len(source), "useful_tokens": tokens, "fill": tokens / places, "scored": scored}
    return facts | {"flops": float(flops(ours, load, per_text))}


def _pairs_behind(lengths_B: np.ndarray) -> float:
    """Count the visible pairs of tokens under a causal mask."""
    return float((lengths_B * (lengths_B + 1) / 2).sum())
