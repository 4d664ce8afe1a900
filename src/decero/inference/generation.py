"""Answer each text (translate, summarize) or continue it (generate)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from decero.data.special_tokens import encode_behind, encode_framed
from decero.errors import UserError
from decero.execution.weight_layout import prepacked_weights
from decero.inference.chunking import FIRST_WINDOW, TooLong, Warn, in_order, pieces, windows
from decero.inference.decode import TOKENS_PER_BATCH, decode_batches
from decero.inference.generation_check import check_generation
from decero.inference.loading import Loaded, load
from decero.inference.sampling import Sampling

MAX_NEW_TOKENS = 256  # if neither the caller nor the model sets a limit
TEXT = "\N{OBJECT REPLACEMENT CHARACTER}"  # placeholder for the text in a chat turn
TASK_NAMES = {"translate": "translation", "summarize": "summarization"}  # names of the tasks in the configuration of T5


def silent(message: str) -> None:
    """Ignore a warning."""


def translate(model: str | Path | Loaded, texts: Iterable[str], **options: Any) -> Iterator[str]:
    """Translate each text with an encoder-decoder, in order; an empty text gives an empty one.

    Options:
    prefix: text before each source; None takes the prefix that the checkpoint defines for this task.
    beams, max_new_tokens: None takes the values of the checkpoint.
    batch_tokens: most tokens per batch.
    too_long: `split` long texts between sentences (the default), or `cut` them.
    warn: called with one line for each text that is not read or answered in full.
    first_window: texts to read before the first answer; with 1, each text is answered at once.

    Raises UserError as `load` does, and if the checkpoint defines several prefixes and none is given.
    """
    return _answer("translate", model, texts, **options)


def summarize(model: str | Path | Loaded, texts: Iterable[str], **options: Any) -> Iterator[str]:
    """Summarize each text. Options are those of `translate`.

    Long texts are cut by default, as in training. With too_long=`split`, each part is summarized separately.
    """
    return _answer("summarize", model, texts, **options)


def generate(model: str | Path | Loaded, texts: Iterable[str], **options: Any) -> Iterator[str]:
    """Continue each text with a causal model, in order. The answer does not repeat the text.

    Options are those of `translate` without `too_long`, and:
    chat: write the text as a user turn with the tokenizer's chat template, and return the model's turn.
    temperature, top_p: sample tokens (`Sampling`) instead of taking the likeliest one.
    seed: seed of the samples; the draw depends only on the seed and the line number.

    If a text is too long, the model reads its end, because the continuation follows the end.
    Raises UserError as `translate` does, for chat without a chat template, and for a temperature or top_p out of range.
    """
    if "too_long" in options:
        raise TypeError("generate has no too_long: it always reads the end of a long text")
    return _answer("generate", model, texts, **options)


def _answer(
    command: str, model: str | Path | Loaded, texts: Iterable[str], *, prefix: str | None = None,
    beams: int | None = None, max_new_tokens: int | None = None, batch_tokens: int = TOKENS_PER_BATCH,
    too_long: TooLong | None = None, warn: Warn = silent, first_window: int = FIRST_WINDOW, chat: bool = False,
    temperature: float | None = None, top_p: float | None = None, seed: int | None = None,
) -> Iterator[str]:  # fmt: skip
    loaded = load(model, command)
    if not loaded.generation_checked:  # once per model
        loaded.generation_checked = True
        if problem := check_generation(loaded.model):
            warn(problem)
    too_long = too_long or ("cut" if command == "summarize" else "split")
    prefix, suffix = frame_of(loaded, command, prefix)
    if chat:
        prefix, suffix = chat_frame(loaded, prefix)
    own = loaded.model.generation_config
    most, limit = max_new_tokens or own.max_new_tokens or own.max_length or MAX_NEW_TOKENS, loaded.positions()
    if command == "generate":  # prompt and answer share the positions
        most = most if max_new_tokens or not limit else min(most, max(1, limit // 2))
        cut = partial(pieces, loaded, too_long="cut", warn=warn, prefix=prefix, suffix=suffix, reserve=most)
        encode = partial(_encode_start, loaded, prefix, suffix, None if limit is None else limit - most, chat)
    else:
        cut = partial(pieces, loaded, too_long=too_long, warn=warn, prefix=prefix)
        encode = partial(_encode, loaded, prefix, limit)
    settings = {"max_new_tokens": most, "num_beams": beams, "tokens_per_batch": batch_tokens}
    drawing = {name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None}
    sampling = Sampling((), **drawing) if drawing else None
    if seed is not None and seed < 0:
        raise UserError(f"seed {seed} is negative; use 0 or more")
    if seed is not None and not sampling:
        raise UserError("seed has no effect without --temperature or --top-p; add one of them, or remove seed")
    stopped = silent if command == "generate" else warn  # a continuation has no natural end, so do not warn
    return _stream(loaded, windows(texts, first_window), cut, encode, settings, stopped, sampling, seed or 0)


def _stream(
    loaded: Loaded, text_windows: Iterable[list[str]], cut: Callable[..., list[str]],
    encode: Callable[[str], list[int]],
    settings: dict[str, Any], stopped: Warn, sampling: Sampling | None, seed: int,
) -> Iterator[str]:  # fmt: skip
    ends = loaded.model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    number = 0
    with prepacked_weights(loaded.model):
        for window in text_windows:
            parts = [[part for part in cut(text, number + i + 1) if part.strip()] for i, text in enumerate(window)]
            sources = [encode(part) for text_parts in parts for part in text_parts]
            if sampling:
                lines = [number + i + 1 for i, text_parts in enumerate(parts) for _ in text_parts]
                settings = settings | {"sampling": replace(sampling, seeds=[(seed, line) for line in lines])}
            numbers = iter(range(len(sources)))
            pieces_of = [[next(numbers) for _ in text_parts] for text_parts in parts]
            for answers in in_order(pieces_of, decode_batches(loaded.model, sources, **settings)):
                number += 1
                for ids in answers:
                    if ids[-1] not in ends:
                        stopped(
                            f"line {number}: the answer was cut off at {len(ids)} new tokens; raise --max-new-tokens"
                        )
                yield " ".join(str(loaded.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers)


def _encode(loaded: Loaded, prefix: str, limit: int | None, text: str) -> list[int]:
    return encode_behind(loaded.tokenizer, prefix, [text], limit)[0]


def _encode_start(loaded: Loaded, prefix: str, suffix: str, limit: int | None, chat: bool, text: str) -> list[int]:
    """Return the token ids of a prompt, without the end token that some tokenizers add.

    Prefix and suffix stay whole. If the text is too long, its beginning is dropped until the prompt fits `limit`.
    chat: the template writes the special tokens, so the tokenizer adds none.
    """
    ends = (loaded.tokenizer.eos_token_id, loaded.tokenizer.sep_token_id)
    while True:
        ids = encode_framed(loaded.tokenizer, lambda text: prefix + text + suffix, text, special_tokens=not chat)
        while not chat and len(ids) > 1 and ids[-1] in ends:
            ids = ids[:-1]
        if limit is None or len(ids) <= limit or not text:
            return ids
        text = text[max(1, len(text) * (len(ids) - limit) // len(ids)) :]


def chat_frame(loaded: Loaded, prefix: str = "") -> tuple[str, str]:
    """Return what the chat template writes before and after the text of a user turn.

    prefix: text to put at the start of the turn.
    Raises UserError if the tokenizer has no chat template, or one that changes the text.
    """
    if loaded.tokenizer.chat_template is None:
        raise UserError(f"{loaded.name}: the tokenizer has no chat template; remove --chat")
    turn = [{"role": "user", "content": prefix + TEXT}]
    rendered = str(loaded.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    if rendered.count(TEXT) != 1:
        raise UserError(f"{loaded.name}: the chat template changes the text of a turn; remove --chat")
    before, _, after = rendered.partition(TEXT)
    return before, after


def frame_of(loaded: Loaded, command: str, prefix: str | None = None) -> tuple[str, str]:
    """Return the prefix and suffix for a command.

    They come from `task_specific_params` of the checkpoint, and are empty if it defines none.
    prefix: selects the task. Its suffix is that of the tasks with this prefix, or of all tasks if none has it, as long
    as they agree.
    Raises UserError if several tasks match and no prefix is given.
    """
    named = getattr(loaded.model.config, "task_specific_params", None) or {}
    found = {
        name: (task["prefix"], task.get("suffix", ""))
        for name, task in named.items()
        if isinstance(task, dict) and "prefix" in task
    }
    if prefix is not None:
        suffixes = {suffix for before, suffix in found.values() if before == prefix} or {s for _, s in found.values()}
        return prefix, suffixes.pop() if len(suffixes) == 1 else ""
    own = {frame for name, frame in found.items() if name.startswith(TASK_NAMES.get(command, command))}
    other_tasks = tuple(n for each, n in TASK_NAMES.items() if each != command) if command in TASK_NAMES else ()
    frames = own or {frame for name, frame in found.items() if not name.startswith(other_tasks)}
    if len(frames) > 1:
        known = " or ".join(repr(before) for before, _ in sorted(frames))
        raise UserError(f"{loaded.name}: the model has several tasks; choose one with --prefix {known}")
    return next(iter(frames), ("", ""))
