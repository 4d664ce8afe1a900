"""Train a stock class as the no-trainer examples of transformers do: run_mlm_no_trainer.py, run_clm_no_trainer.py.

There is no such example for span corruption; its rows are those of run_t5_mlm_flax.py.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
import transformers
from accelerate.utils import send_to_device
from datasets import Dataset, Features, Sequence, Value
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedModel, PreTrainedTokenizerFast, get_scheduler

from decero.config.race import StockRecipe
from decero.data.collators import IGNORED
from decero.data.corruption import SpanCorruption
from decero.data.order import RowIndex, Rows
from decero.data.special_tokens import TEXT, special_tokens_around
from decero.data.tokenization import map_rows
from decero.errors import UserError

NO_DECAY = ("bias", "LayerNorm.weight")
Batch = dict[str, Tensor]


def blocks(
    texts: Dataset, tokenizer: PreTrainedTokenizerFast, length: int, text_column: str, rows: str = "concatenated"
) -> Dataset:
    """Cut texts to rows of `input_ids` and `special_tokens_mask`, as the examples do.

    concatenated: all texts, each with its special tokens, joined and cut to rows of exactly `length` tokens; 256 texts
    at a time (the examples: 1,000), and what is left of each 256 is dropped. padded: a row for each text, cut at
    `length`.
    Raises UserError when no row is left.
    """
    names = ("input_ids", "special_tokens_mask")
    cut: dict[str, Any] = {"truncation": True, "max_length": length} if rows == "padded" else {}
    before, after = special_tokens_around(tokenizer)
    # A decoder's tokenizer leaves its texts open, and in a row of several something must end them
    end = {"input_ids": [tokenizer.eos_token_id], "special_tokens_mask": [1]} if before and not after else None

    def group(batch: dict[str, list]) -> dict[str, list]:
        kept = [text for text in batch[text_column] if text and not text.isspace()]
        if not kept:
            return {name: [] for name in names}
        encoded = tokenizer(kept, return_special_tokens_mask=True, **cut, **TEXT)
        if rows == "padded":
            return {name: encoded[name] for name in names}
        texts_of = {name: [[*ids, *end[name]] for ids in encoded[name]] if end else encoded[name] for name in names}
        joined = {name: list(chain.from_iterable(texts_of[name])) for name in names}
        ends = range(length, len(joined["input_ids"]) + 1, length)
        return {name: [joined[name][end - length : end] for end in ends] for name in names}

    features = Features({name: Sequence(Value("int32")) for name in names})
    key = ("blocks", length, text_column, rows)
    found = map_rows(texts, group, features, tokenizer, key, None, "join texts to rows")
    if not len(found):
        raise UserError(f"race.data: the text does not fill one row of {length} tokens; lower data.max_length")
    return found


def stock_collator(
    recipe: str, tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel, length: int, seed: int
) -> Callable[[list[dict]], Batch]:
    """Return the collator of the example: rows -> what the stock class reads, with its labels."""
    if recipe == "pretrain_seq2seq":
        start: Any = model.config.decoder_start_token_id
        return SpanCorruption(tokenizer, start, max_length=length, seed=seed)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # as users of GPT-2's tokenizer do; full rows have no padding
    theirs = DataCollatorForLanguageModeling(tokenizer, mlm=recipe == "pretrain_mlm", mlm_probability=0.15)

    def collate(rows: list[dict]) -> Batch:
        wanted = ("input_ids", *(("special_tokens_mask",) if theirs.mlm else ()))
        return dict(theirs([{name: row[name] for name in wanted} for row in rows]))

    return collate


def epochs(rows: Dataset, size: int) -> Iterator[list[dict]]:
    """Yield batches of `size` rows, in a new random order each epoch, without end: DataLoader(shuffle=True)."""
    read, epoch = Rows(rows), 0
    while True:
        order = torch.randperm(len(rows)).tolist()
        for start in range(0, len(order), size):
            yield read.__getitems__([RowIndex(epoch, row) for row in order[start : start + size]])
        epoch += 1


def train_stock(
    settings: StockRecipe, model: PreTrainedModel, rows: Dataset, collate: Callable[[list[dict]], Batch], seed: int,
    judge: Callable[..., Any],
) -> None:  # fmt: skip
    """Train in fp32 with the loss of the class, AdamW, no clipping. Call `judge(model, step, tokens)` every interval.

    tokens: read so far, without padding; for an encoder-decoder also the labels.
    """
    transformers.set_seed(seed)
    model.train()
    named = list(model.named_parameters())
    decays = {name: not any(part in name for part in NO_DECAY) for name, _ in named}
    groups = [
        {"params": [p for name, p in named if decays[name]], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in named if not decays[name]], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    last, tokens = settings.max_train_steps, 0
    schedule = get_scheduler(
        settings.lr_scheduler_type, optimizer, num_warmup_steps=settings.num_warmup_steps, num_training_steps=last
    )
    for step, examples in zip(range(1, last + 1), epochs(rows, settings.per_device_train_batch_size), strict=False):
        batch = collate(examples)
        tokens += int(batch["attention_mask"].sum())
        if "decoder_input_ids" in batch:
            tokens += int((batch["labels"] != IGNORED).sum())
        loss = model(**send_to_device(batch, model.device)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % settings.interval == 0 or step == last:
            judge(model, step, tokens)
