"""Models that write: an answer to each text (translate, summarize), or how it goes on (generate)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from decero.errors import UserError
from decero.execution.weight_layout import prepacked_weights
from decero.inference.chunking import FIRST_WINDOW, TooLong, Warn, in_order, pieces, windows
from decero.inference.decode import TOKENS_PER_BATCH, decode_batches
from decero.inference.generation_check import check_generation
from decero.inference.loading import Loaded, load
from decero.inference.sampling import Sampling

MAX_NEW_TOKENS = 256  # where neither the caller nor the model says
TEXT = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for the text in a turn
TASK_NAMES = {"translate": "translation", "summarize": "summarization"}  # as T5's configuration names them


def silent(message: str) -> None:
    """Warnings go nowhere."""


def translate(model: str | Path | Loaded, texts: Iterable[str], **options: Any) -> Iterator[str]:
    """What the model answers to each text, in order; nothing to an empty one. An encoder-decoder.

    options: prefix (None: the one that the checkpoint names for this task), beams and max_new_tokens (None: its own),
    batch_tokens, too_long (`split` at ends of sentences, which is the default, or `cut`), warn (called with a line for
    what was not read or written in full), first_window (texts that are read before the first is answered; 1: each is
    answered as it comes).

    Raises UserError: what `load` refuses; a checkpoint that names several prefixes, and none was given.
    """
    return _answer("translate", model, texts, **options)


def summarize(model: str | Path | Loaded, texts: Iterable[str], **options: Any) -> Iterator[str]:
    """As `translate`, but a text that is too long is cut, as it is in training; split, it is answered part by part."""
    return _answer("summarize", model, texts, **options)


def generate(model: str | Path | Loaded, texts: Iterable[str], **options: Any) -> Iterator[str]:
    """How each text goes on, in order, without the text itself. A causal model. options: as for `translate`, and
    chat: the text is a turn of the user, as the tokenizer's chat template writes it, and the answer the model's own.
    temperature, top_p: draw tokens (`Sampling`), by `seed` and the number of the line, instead of taking the likeliest.

    Of a text that is too long the end is read, for what follows follows the end; so there is no `too_long`.
    Raises UserError, too: chat with a tokenizer that has no template, a temperature or share that is none.
    """
    if "too_long" in options:
        raise TypeError("generate has no too_long: of a text that is too long the end is read")
    return _answer("generate", model, texts, **options)


def _answer(
    command: str, model: str | Path | Loaded, texts: Iterable[str], *, prefix: str | None = None,
    beams: int | None = None, max_new_tokens: int | None = None, batch_tokens: int = TOKENS_PER_BATCH,
    too_long: TooLong | None = None, warn: Warn = silent, first_window: int = FIRST_WINDOW, chat: bool = False,
    temperature: float | None = None, top_p: float | None = None, seed: int | None = None,
) -> Iterator[str]:  # fmt: skip
    loaded = load(model, command)
    if not loaded.generation_checked:  # once a model
        loaded.generation_checked = True
        if said := check_generation(loaded.model):
            warn(said)
    too_long = too_long or ("cut" if command == "summarize" else "split")
    prefix, suffix = frame_of(loaded, command, prefix)
    if chat:
        prefix, suffix = chat_frame(loaded, prefix)
    own = loaded.model.generation_config
    most, limit = max_new_tokens or own.max_new_tokens or own.max_length or MAX_NEW_TOKENS, loaded.positions()
    if command == "generate":  # what is read and what is written share the positions
        most = most if max_new_tokens or not limit else min(most, max(1, limit // 2))
        cut = partial(pieces, loaded, too_long="cut", warn=warn, prefix=prefix, suffix=suffix, reserve=most)
        encode = partial(_encode_start, loaded, prefix, suffix, None if limit is None else limit - most, chat)
    else:
        cut = partial(pieces, loaded, too_long=too_long, warn=warn, prefix=prefix)
        encode = partial(_encode, loaded, prefix, limit)
    settings = {"max_new_tokens": most, "num_beams": beams, "tokens_per_batch": batch_tokens}
    how = {name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None}
    sampling = Sampling((), **how) if how else None
    if seed is not None and seed < 0:
        raise UserError(f"seed {seed} is below 0; any number from 0 on is one")
    if seed is not None and not sampling:
        raise UserError("seed: nothing is drawn without --temperature or --top-p; give one, or leave it out")
    says = silent if command == "generate" else warn  # that a text could go on is no news
    return _stream(loaded, windows(texts, first_window), cut, encode, settings, says, sampling, seed or 0)


def _stream(
    loaded: Loaded, read: Iterable[list[str]], cut: Callable[..., list[str]], encode: Callable[[str], list[int]],
    settings: dict[str, Any], stopped: Warn, sampling: Sampling | None, seed: int,
) -> Iterator[str]:  # fmt: skip
    ends = loaded.model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    number = 0
    with prepacked_weights(loaded.model):
        for window in read:
            parts = [[part for part in cut(text, number + i + 1) if part.strip()] for i, text in enumerate(window)]
            sources = [encode(part) for some in parts for part in some]
            if sampling:
                lines = [number + i + 1 for i, some in enumerate(parts) for _ in some]
                settings = settings | {"sampling": replace(sampling, seeds=[(seed, line) for line in lines])}
            places = iter(range(len(sources)))
            pieces_of = [[next(places) for _ in some] for some in parts]
            for answers in in_order(pieces_of, decode_batches(loaded.model, sources, **settings)):
                number += 1
                for ids in answers:
                    if ids[-1] not in ends:
                        stopped(f"line {number}: its answer was stopped after {len(ids)} new tokens, before its end")
                yield " ".join(str(loaded.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers)


def _encode(loaded: Loaded, prefix: str, limit: int | None, text: str) -> list[int]:
    return loaded.tokenizer(prefix + text, truncation=limit is not None, max_length=limit, verbose=False)["input_ids"]


def _encode_start(loaded: Loaded, prefix: str, suffix: str, limit: int | None, chat: bool, text: str) -> list[int]:
    """What the model goes on from, without the token that would end it: prefix and suffix whole, and of a text that is
    too long as much of its end as there is room for. chat: a template writes the special tokens itself."""
    ends = (loaded.tokenizer.eos_token_id, loaded.tokenizer.sep_token_id)
    while True:
        ids = loaded.tokenizer(prefix + text + suffix, add_special_tokens=not chat, verbose=False)["input_ids"]
        while not chat and len(ids) > 1 and ids[-1] in ends:
            ids = ids[:-1]
        if limit is None or len(ids) <= limit or not text:
            return ids
        text = text[max(1, len(text) * (len(ids) - limit) // len(ids)) :]


def chat_frame(loaded: Loaded, prefix: str = "") -> tuple[str, str]:
    """What the tokenizer's chat template puts before and behind a turn of the user that begins with `prefix`.

    Raises UserError when it has none, or one that changes what it is given.
    """
    if loaded.tokenizer.chat_template is None:
        raise UserError(f"{loaded.name}: its tokenizer has no chat template; leave --chat out")
    turn = [{"role": "user", "content": prefix + TEXT}]
    written = str(loaded.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    if written.count(TEXT) != 1:
        raise UserError(f"{loaded.name}: its chat template does not write a turn as it is; leave --chat out")
    before, _, behind = written.partition(TEXT)
    return before, behind


def frame_of(loaded: Loaded, command: str, prefix: str | None = None) -> tuple[str, str]:
    """What the checkpoint's `task_specific_params` put before and behind a text for this command; "" where nothing.

    prefix: which task of several is meant; behind it goes what its tasks have there, or all tasks if it is of none.
    Raises UserError when they say several things and no prefix was given.
    """
    named = getattr(loaded.model.config, "task_specific_params", None) or {}
    found = {
        name: (task["prefix"], task.get("suffix", ""))
        for name, task in named.items()
        if isinstance(task, dict) and "prefix" in task
    }
    if prefix is not None:
        behind = {suffix for before, suffix in found.values() if before == prefix} or {s for _, s in found.values()}
        return prefix, behind.pop() if len(behind) == 1 else ""
    own = {frame for name, frame in found.items() if name.startswith(TASK_NAMES.get(command, command))}
    others = tuple(n for each, n in TASK_NAMES.items() if each != command) if command in TASK_NAMES else ()
    frames = own or {frame for name, frame in found.items() if not name.startswith(others)}
    if len(frames) > 1:
        known = " or ".join(repr(before) for before, _ in sorted(frames))
        raise UserError(f"{loaded.name}: knows several tasks; say which with --prefix {known}")
    return next(iter(frames), ("", ""))
