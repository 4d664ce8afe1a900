"""Set the languages of multilingual tokenizers: NLLB, mBART, mBART-50, M2M100, and Marian with `>>fra<<`.

| tokenizer | source | target | an answer starts with |
|:--|:--|:--|:--|
| NLLB, mBART-50, M2M100 | language, text, end | language, text, end | start token, then the language |
| mBART | text, end, language | text, end, language | the language instead of the start token |
| Marian | `>>language<<`, text, end | text, end | start token |
"""

import re
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from transformers import PreTrainedTokenizerBase

from decero.data.special_tokens import special_tokens_around
from decero.errors import UserError

TAG = re.compile(r">>(\w+)<<")


@dataclass(frozen=True)
class Direction:
    """Say how to translate from one language to another.

    source, target: the attributes src_lang and tgt_lang of the tokenizer; None for Marian and for one language.
    prefix: to put before each source. start: fields of generation_config with which an answer starts.
    """

    source: str | None = None
    target: str | None = None
    prefix: str = ""
    start: dict[str, int] = field(default_factory=dict)

    def apply(self, tokenizer: Any) -> None:
        """Have the tokenizer read and write these languages."""
        if self.target is not None and (tokenizer.src_lang, tokenizer.tgt_lang) != (self.source, self.target):
            tokenizer.tgt_lang = self.target
            tokenizer.src_lang = self.source


def language_ids(tokenizer: Any) -> dict[str, int]:
    """Return language -> id of its token, for tokenizers with src_lang and tgt_lang; empty for others."""
    if not hasattr(tokenizer, "set_src_lang_special_tokens"):
        return {}
    tokens = getattr(tokenizer, "lang_code_to_token", None)  # M2M100: fr -> __fr__
    tokens = tokens or {code: code for code in getattr(tokenizer, "lang_code_to_id", tokenizer.extra_special_tokens)}
    ids = {code: tokenizer.convert_tokens_to_ids(token) for code, token in tokens.items()}
    return {code: id for code, id in ids.items() if id not in (None, tokenizer.unk_token_id)}


def target_tags(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the languages that have a token `>>language<<`, as in multilingual Marian models."""
    return sorted(match[1] for token in tokenizer.get_vocab() if (match := TAG.fullmatch(token)))


def find_direction(
    tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None, names: tuple[str, str], where: str
) -> Direction:
    """Check the languages and return how to translate; a plain Direction for a tokenizer of one language.

    names: the settings of source and target, for messages. where: the model or tokenizer.
    A Marian tokenizer may have no target: then each source must begin with its `>>language<<` (`check_tag`).

    Raises UserError: languages for a tokenizer that has none, an unknown or missing one, a source for Marian.
    """
    given = [(name, code) for name, code in zip(names, (source, target), strict=True) if code is not None]
    ids = language_ids(tokenizer)
    if not ids:
        tags = target_tags(tokenizer) if given else []
        for name, code in given:
            if not tags:
                raise UserError(f"{name}: {where} has no languages to choose from; remove {name} {code}")
            if name == names[0]:
                raise UserError(f"{name}: {where} is told only the language to write; remove {name} {code}")
            _check_known(code, tags, name, where)
        return Direction(prefix=f">>{target}<< ") if target is not None else Direction()
    if getattr(tokenizer, "legacy_behaviour", False):
        raise UserError(
            f"{where}: legacy_behaviour puts the language of a text at its end, where the model does not write it; set "
            "legacy_behaviour to false in tokenizer_config.json"
        )
    if source is None or target is None:
        missing = " and ".join(name for name, code in zip(names, (source, target), strict=True) if code is None)
        some = ", ".join(sorted(ids)[:3])
        raise UserError(f"{where} reads and writes {len(ids)} languages ({some}, ...); set {missing}")
    for name, code in given:
        _check_known(code, ids, name, where)
    direction = Direction(source, target)
    direction.apply(tokenizer)
    written = tokenizer(text_target="a")["input_ids"]
    start = "decoder_start_token_id" if written[-1] == ids[target] else "forced_bos_token_id"
    return Direction(source, target, start={start: ids[target]})


def check_tag(tags: list[str], text: str, name: str, where: str) -> None:
    """Raise UserError for a source that does not begin with one of the tags. name: of the setting that adds it."""
    tag = TAG.match(text)
    if tag is None:
        raise UserError(f"{where} writes {len(tags)} languages ({', '.join(tags[:3])}, ...); set {name}")
    _check_known(tag[1], tags, name, where)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the token that ends a text; a language may follow it. None if there is none."""
    _, after = special_tokens_around(tokenizer)
    return next((id for id in after if id in (tokenizer.eos_token_id, tokenizer.sep_token_id)), None)


def _check_known(code: str, known: Any, name: str, where: str) -> None:
    if code not in known:

        def likeness(other: str) -> tuple[bool, float]:
            a, b = code.lower(), other.strip("_").lower()
            return a[:2] == b[:2], SequenceMatcher(None, a, b).ratio()

        near = max(sorted(known), key=likeness)
        raise UserError(f"{name}: {where} has no language {code}; did you mean {near}?")
