"""Answer each text (translate, summarize) or continue it (generate)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from decero.data.chat_template import render_chat
from decero.data.languages import TAG, Direction, check_tag, find_direction, language_ids, target_tags
from decero.data.special_tokens import encode_behind, encode_framed
from decero.errors import UserError
from decero.execution.weight_layout import prepacked_weights
from decero.inference.chosen_sentences import chosen_sentences, is_extractive
from decero.inference.chunking import FIRST_WINDOW, TooLong, Warn, checked_texts, in_order, pieces, windows
from decero.inference.decode import TOKENS_PER_BATCH, UNREAD, decode_batches
from decero.inference.decoding_plan import MAX_NEW_TOKENS
from decero.inference.generation_check import check_generation
from decero.inference.loading import Loaded, load
from decero.inference.sampling import Sampling

TEXT = "\N{OBJECT REPLACEMENT CHARACTER}"  # placeholder for the text in a chat turn
TASK_NAMES = {"translate": "translation", "summarize": "summarization"}  # names of the tasks in the configuration of T5
Read = Callable[[str, int], list[list[int]]]


def silent(message: str) -> None:
    """Ignore a warning."""


def translate(model: str | Path | Loaded, texts: Iterable[str], **options: Any) -> Iterator[str]:
    """Translate each text with an encoder-decoder, in order; an empty text gives an empty one.

    Options:
    prefix: text before each source; None takes the prefix that the checkpoint defines for this task.
    source_lang, target_lang: languages of a multilingual model, as its tokenizer names them; None takes those that the
        checkpoint was saved with.
    beams, max_new_tokens: None takes the values of the checkpoint.
    batch_tokens: most tokens per batch.
    too_long: `split` long texts between sentences (the default), or `cut` them.
    warn: called with one line for each text that is not read or answered in full.
    first_window: texts to read before the first answer; with 1, each text is answered at once.

    Raises UserError as `load` does, if the checkpoint defines several prefixes and none is given, and as
    `find_direction` does.
    """
    _refuse("translate", options, "chat")
    return _answer("translate", model, texts, **options)


def summarize(model: str | Path | Loaded, texts: Iterable[str], **options: Any) -> Iterator[str]:
    """Summarize each text. Options are those of `translate`.

    Long texts are cut by default, as in training. With too_long=`split`, each part is summarized separately.
    A model that was trained to choose sentences chooses them (`chosen_sentences`).
    """
    _refuse("summarize", options, "chat")
    loaded = load(model, "summarize")
    if is_extractive(loaded):
        return chosen_sentences(loaded, texts, **({"warn": silent} | options))
    return _answer("summarize", loaded, texts, **options)


def generate(model: str | Path | Loaded, texts: Iterable[str], **options: Any) -> Iterator[str]:
    """Continue each text with a causal model, in order. The answer does not repeat the text.

    Options are those of `translate` without `too_long` and languages, and:
    chat: write the text as a user turn with the tokenizer's chat template, and return the model's turn.
    temperature, top_p: sample tokens (`Sampling`) instead of taking the likeliest one.
    seed: seed of the samples; the draw depends only on the seed and the line number.

    If a text is too long, the model reads its end, because the continuation follows the end.
    Raises UserError as `translate` does, for chat without a chat template, and for a temperature or top_p out of range.
    """
    _refuse("generate", options, "too_long", "source_lang", "target_lang")
    return _answer("generate", model, texts, **options)


def _refuse(command: str, options: dict[str, Any], *unknown: str) -> None:
    if found := sorted(options.keys() & set(unknown)):
        raise TypeError(f"{command} has no {', '.join(found)}")


def _answer(
    command: str, model: str | Path | Loaded, texts: Iterable[str], *, prefix: str | None = None,
    source_lang: str | None = None, target_lang: str | None = None,
    beams: int | None = None, max_new_tokens: int | None = None, batch_tokens: int = TOKENS_PER_BATCH,
    too_long: TooLong | None = None, warn: Warn = silent, first_window: int = FIRST_WINDOW, chat: bool = False,
    temperature: float | None = None, top_p: float | None = None, seed: int | None = None,
) -> Iterator[str]:  # fmt: skip
    loaded = load(model, command)
    if not loaded.generation_checked:  # once per model
        loaded.generation_checked = True
        if problem := check_generation(loaded.model):
            warn(problem)
        own: Any = loaded.model.generation_config
        unread = [name for name in UNREAD if getattr(own, name, None)]
        if unread and (beams or own.num_beams or 1) == 1:
            warn(f"{loaded.name}: generation_config.json: no effect without beams: {', '.join(unread)}")
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": beams, "tokens_per_batch": batch_tokens}
    if command == "generate":
        read = _prompt_reader(loaded, prefix, chat, max_new_tokens, warn)
    else:
        direction = direction_of(loaded, source_lang, target_lang)
        settings["settings"] = direction.start
        how: TooLong = too_long or ("cut" if command == "summarize" else "split")
        read = _source_reader(loaded, command, prefix, direction, how, warn)
    drawing = {name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None}
    sampling = Sampling((), **drawing) if drawing else None
    if seed is not None and seed < 0:
        raise UserError(f"seed {seed} is negative; use 0 or more")
    if seed is not None and not sampling:
        raise UserError("seed has no effect without --temperature or --top-p; add one of them, or remove seed")
    stopped = silent if command == "generate" else warn  # a continuation has no natural end, so do not warn
    return _stream(loaded, windows(checked_texts(texts), first_window), read, settings, stopped, sampling, seed or 0)


def _stream(
    loaded: Loaded, text_windows: Iterable[list[str]], read: Read, settings: dict[str, Any], stopped: Warn,
    sampling: Sampling | None, seed: int,
) -> Iterator[str]:  # fmt: skip
    ends = loaded.model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    number = 0
    with prepacked_weights(loaded.model):
        for window in text_windows:
            parts = [read(text, number + i + 1) if text.strip() else [] for i, text in enumerate(window)]
            sources = [source for text_parts in parts for source in text_parts]
            if sampling:
                lines = [number + i + 1 for i, text_parts in enumerate(parts) for _ in text_parts]
                settings = settings | {"sampling": replace(sampling, seeds=[(seed, line) for line in lines])}
            numbers = iter(range(len(sources)))
            pieces_of = [[next(numbers) for _ in text_parts] for text_parts in parts]
            for answers in in_order(pieces_of, decode_batches(loaded.model, sources, **settings)):
                number += 1
                for ids in answers:
                    if ids[-1] not in ends:
                        stopped(f"line {number}: {cut_off(loaded.model, len(ids), settings['max_new_tokens'])}")
                yield " ".join(str(loaded.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers)


def cut_off(model: PreTrainedModel, written: int, most: int | None) -> str:
    """Say that an answer has no end, and what helps: more tokens, unless the positions of the model are used up."""
    asked = most or model.generation_config.max_new_tokens or 0  # type: ignore[union-attr]
    if written < asked:
        return f"the answer was cut off at {written} new tokens: the model has no more positions; shorten the text"
    return f"the answer was cut off at {written} new tokens; raise --max-new-tokens"


def _prompt_reader(loaded: Loaded, prefix: str | None, chat: bool, most: int | None, warn: Warn) -> Read:
    """Return read(text, line number), which gives the prompt of a text."""
    prefix, suffix = frame_of(loaded, "generate", prefix)
    if chat:
        check_chat(loaded)
    encode = partial(encode_chat, loaded, prefix) if chat else partial(encode_prompt, loaded, prefix, suffix)

    def read(text: str, number: int) -> list[list[int]]:
        if ids := fit_prompt(loaded, encode, text, number, most, warn):
            return [ids]
        warn(f"line {number}: the tokenizer makes no token of it, so there is no answer")
        return []

    return read


def _source_reader(
    loaded: Loaded, command: str, prefix: str | None, direction: Direction, too_long: TooLong, warn: Warn
) -> Read:
    """Return read(text, line number), which gives the sources of a text: several if it is split."""
    before, limit, tags = frame_of(loaded, command, prefix)[0], loaded.positions(), target_tags(loaded.tokenizer)
    if direction.prefix:  # replaces the language of the checkpoint
        before = direction.prefix + TAG.sub("", before).lstrip()

    def read(text: str, number: int) -> list[list[int]]:
        tag = before
        if tags and not TAG.match(before):
            check_tag(tags, before + text, "--target-lang", f"line {number}: {loaded.name}")
            if not before:  # every part of a text that is split begins with its language
                tag = text[: len(text) - len(TAG.sub("", text, count=1).lstrip())]
                text = text[len(tag) :]
        direction.apply(loaded.tokenizer)
        parts = [part for part in pieces(loaded, text, number, too_long, warn, tag) if part.strip()]
        return [encode_behind(loaded.tokenizer, tag, [part], limit)[0] for part in parts]

    return read


def direction_of(loaded: Loaded, source: str | None, target: str | None) -> Direction:
    """Return how to translate: with the languages given, else with those that the checkpoint was saved with.

    The source is taken from a checkpoint only if its target is there too, because tokenizers have one by default.
    """
    saved, own = loaded.tokenizer.init_kwargs, loaded.model.generation_config
    codes = {id: code for code, id in language_ids(loaded.tokenizer).items()}
    starts = [getattr(own, name, None) for name in ("forced_bos_token_id", "decoder_start_token_id")]
    target_of_model = next((codes[id] for id in starts if id in codes), None)
    if target_of_model is None and saved.get("tgt_lang") != saved.get("src_lang"):  # transformers copies the source
        target_of_model = saved.get("tgt_lang")
    if codes and target_of_model:
        source, target = source or saved.get("src_lang"), target or target_of_model
    return find_direction(loaded.tokenizer, source, target, ("--source-lang", "--target-lang"), loaded.name)


def encode_prompt(loaded: Loaded, prefix: str, suffix: str, text: str) -> list[int]:
    """Return the token ids of a prompt, without the end token that some tokenizers add."""
    ids = encode_framed(loaded.tokenizer, lambda text: prefix + text + suffix, text, special_tokens=True)
    while len(ids) > 1 and ids[-1] in (loaded.tokenizer.eos_token_id, loaded.tokenizer.sep_token_id):
        ids = ids[:-1]
    return ids


def encode_chat(loaded: Loaded, prefix: str, text: str) -> list[int]:
    """Return the ids that `apply_chat_template` gives for a user turn, up to where the model's turn begins.

    Only a special token that is spelt out in the text differs: it is text here, as in training.
    """

    def turn(text: str) -> str:
        return render_chat(loaded.tokenizer, [{"role": "user", "content": prefix + text}], "remove --chat")

    return encode_framed(loaded.tokenizer, turn, text)


def check_chat(loaded: Loaded) -> None:
    """Raise UserError if the tokenizer has no chat template, or one that leaves out the text."""
    if loaded.tokenizer.chat_template is None:
        raise UserError(f"{loaded.name}: the tokenizer has no chat template; remove --chat")
    if TEXT not in render_chat(loaded.tokenizer, [{"role": "user", "content": TEXT}], "remove --chat"):
        raise UserError(f"{loaded.name}: the chat template leaves out the text of a turn; remove --chat")


def fit_prompt(
    loaded: Loaded, encode: Callable[[str], list[int]], text: str, number: int, most: int | None, warn: Warn
) -> list[int]:
    """Encode a prompt so that its answer fits the model, too; a prompt that is too long loses its beginning.

    What `encode` puts around the text stays whole. most: the new tokens that were asked for; all of them must fit.
    Otherwise the limits of the model count: with max_new_tokens all of them, but at most half of the positions; with
    max_length, which counts the prompt, a single token.

    Raises UserError if there is no room for text.
    """
    own, room, ids = loaded.model.generation_config, loaded.positions(), encode(text)
    total_is_set = most is None and own.max_new_tokens is None and own.max_length is not None
    if total_is_set:
        room = min(room or own.max_length, own.max_length)
    if room is None:
        return ids
    reserve = most or min(room // 2 if total_is_set else own.max_new_tokens or MAX_NEW_TOKENS, max(1, room // 2))
    if len(ids) + (1 if total_is_set else reserve) <= room:
        return ids
    limit, length = room - reserve, len(ids)
    if len(encode("")) >= limit:
        raise UserError(
            f"{loaded.name}: {reserve} new tokens and what surrounds a text fill all {room} positions; shorten one of "
            "them"
        )
    warn(f"line {number}: cut; its {length} tokens exceed the limit of {limit} of {loaded.name}")
    while len(ids) > limit and text:
        text = text[max(1, len(text) * (len(ids) - limit) // len(ids)) :]
        ids = encode(text)
    return ids


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
