"""Special tokens: those that a tokenizer or a template adds count; one spelt out in a user's text is text."""

import re
from collections.abc import Callable, Sequence
from itertools import chain, cycle
from typing import Any

from transformers import PreTrainedTokenizerBase

from decero.errors import UserError

# Tokenizer arguments for users' text: a "</s>" in the text is text, not the special token
TEXT: dict[str, Any] = {"split_special_tokens": True, "verbose": False}


def encode_framed(
    tokenizer: PreTrainedTokenizerBase, frame: Callable[[str], str], text: str, special_tokens: bool = False,
    kept: tuple[str, ...] = (),
) -> list[int]:  # fmt: skip
    """Tokenize `frame(text)`. Special tokens that the frame writes stay special tokens.

    frame: such as a chat template, or a prefix. special_tokens: also add those that the tokenizer adds.
    kept: special tokens that count in the text, too, such as the mask of a hole.
    """
    spelt = [token for token in tokenizer.all_special_tokens if token in text and token not in kept]
    if not spelt:
        return tokenizer(frame(text), add_special_tokens=special_tokens, verbose=False)["input_ids"]
    # A character that stands for each of them goes through the frame; then the parts are tokenized one by one.
    mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
    pattern = re.compile("|".join(re.escape(token) for token in sorted(spelt, key=len, reverse=True)))
    first, *others = frame(pattern.sub(mark, text)).split(mark)
    found = pattern.findall(text)  # a frame may repeat the text, and the tokens with it
    ids_of = {token: tokenizer(token, add_special_tokens=False, **TEXT)["input_ids"] for token in set(found)}
    parts = tokenizer([first, *others], add_special_tokens=False, verbose=False)["input_ids"]
    ids = list(parts[0])
    for token, part in zip(cycle(found), parts[1:], strict=False):
        ids += [*ids_of[token], *part]
    before, after = special_tokens_around(tokenizer) if special_tokens else ([], [])
    return [*before, *ids, *after]


def encode_behind(
    tokenizer: PreTrainedTokenizerBase, prefix: str, texts: Sequence[str], max_length: int | None = None
) -> list[list[int]]:
    """Tokenize each text behind the prefix, with the tokenizer's special tokens, in at most `max_length` tokens.

    A special token in the prefix counts; one in a text is text.
    """
    if not any(token in prefix for token in tokenizer.all_special_tokens):
        cut = {"truncation": max_length is not None, "max_length": max_length}
        return tokenizer([prefix + text for text in texts], **cut, **TEXT)["input_ids"]
    before, after = special_tokens_around(tokenizer)
    room = None if max_length is None else max(0, max_length - len(before) - len(after))
    rows = [encode_framed(tokenizer, lambda text: prefix + text, text)[:room] for text in texts]
    return [[*before, *row, *after] for row in rows]


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer adds before and after a text.

    Raises UserError for a tokenizer that makes no token of any text.
    """
    tokens = (tokenizer.decode([number]) for number in range(len(tokenizer)))
    for text in chain(["a"], tokens):  # a tokenizer of another alphabet may drop the letter a
        mask = tokenizer(text, return_special_tokens_mask=True)
        ids, special = mask["input_ids"], mask["special_tokens_mask"]
        if 0 in special:
            return ids[: special.index(0)], ids[len(ids) - special[::-1].index(0) :]
    raise UserError(f"tokenizer {tokenizer.name_or_path}: it makes no token of any text; choose another")


def pad_with(tokenizer: PreTrainedTokenizerBase, pad_token_id: int | None) -> None:
    """Give a tokenizer without a padding token the model's, or else its end token; padding is masked.

    pad_token_id: of the model's configuration. Raises UserError if there is neither.
    """
    if tokenizer.pad_token is None:
        known = {i: token for token, i in tokenizer.get_vocab().items()}
        tokenizer.pad_token = known.get(pad_token_id, tokenizer.eos_token or tokenizer.sep_token)  # type: ignore[arg-type]
    if tokenizer.pad_token is None:
        raise UserError(f"tokenizer {tokenizer.name_or_path}: it has no pad_token and no eos_token; choose another")
