"""Turn a text into the tensors that a model reads, and into pieces that a person reads."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decero.errors import UserError
from decero.execution.transformers_internals import has_short_cache
from decero.explain.recording import Piece
from decero.inference.loading import Loaded, positions_of

SPACES = ("▁", "Ġ")
LONGEST_ANSWER = 128  # tokens, of a target that the model writes itself
NO_OFFSETS = "This tokenizer gives no positions of characters: each piece is what the text grows by with its token."


@dataclass
class ReadText:
    """Hold one text as tensors of one row, without padding, and its pieces."""

    inputs: dict[str, Tensor]
    pieces: list[Piece]
    notes: list[str]


def encode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, text_b: str | None) -> ReadText:
    """Tokenize a source as the tokenizer does by default, special tokens included.

    Raises UserError: no token in the text; more tokens than the model reads.
    """
    both = (text,) if text_b is None else (text, text_b)
    rows = tokenizer(*both, **_extras(tokenizer), verbose=False)
    ids = rows["input_ids"]
    limit = Loaded("", model, tokenizer).positions()
    _check_length(len(ids), limit, "text")
    inputs = {
        name: torch.tensor([rows[name]], device=model.device)
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if name in rows
    }
    pieces, notes = _pieces(tokenizer, rows, text, text_b)
    return ReadText(inputs, pieces, notes)


def encode_target(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: str | None, text: str, source: dict[str, Tensor]
) -> tuple[ReadText, str]:
    """Tokenize what a decoder reads beside a source. Without a target the model writes one, greedily.

    A model that cannot write, for example a classifier, reads the text a second time.
    Row i of the decoder predicts token i of the target, so the first piece is the start token.
    Raises UserError: a target that is empty or too long.
    """
    limit = positions_of(model, decoder=True)
    twice = target is None and not model.can_generate()
    target = text if twice else target
    if target is not None:
        rows = tokenizer(text_target=target, **_extras(tokenizer), verbose=False)
        _check_length(len(rows["input_ids"]), limit, "target")
        labels = torch.tensor([rows["input_ids"]], device=model.device)
        read = _shift(model, labels)
        pieces, notes = _pieces(tokenizer, rows, target, None)
        if read[0, 1:].tolist() != rows["input_ids"][:-1]:
            raise UserError(f"{type(model).__name__} reads a target that is more than shifted; give no target")
        notes += ["This head writes no text: the decoder reads the same text as the encoder."] if twice else []
    else:
        written = _write(model, source, limit)
        read = written[:, :-1] if written[0, -1].item() in _ends(model) else written
        ids = read[0, 1:].tolist()
        target = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        rows = tokenizer(text_target=target, **_extras(tokenizer), verbose=False)
        start = next((i for i in (0, 1) if rows["input_ids"][i : i + len(ids)] == ids), None)
        if start is None:
            pieces, notes = _grown_pieces(tokenizer, ids, target), []
        else:
            pieces, notes = _pieces(tokenizer, rows, target, None)
            pieces = pieces[start:]
        notes = [*notes, "The model wrote the target itself, one likeliest token at a time."]
    first = int(read[0, 0])
    name = str(tokenizer.convert_ids_to_tokens(first))
    pieces = [Piece(first, name, None, None), *pieces[: read.shape[1] - 1]]
    return ReadText({"decoder_input_ids": read}, pieces, notes), target


def token_text(tokenizer: PreTrainedTokenizerBase, number: int) -> str:
    """Return the text of one token alone; its name when it is special, or no text alone."""
    name = _name(tokenizer, number)
    if number in tokenizer.all_special_ids:
        return name
    text = str(tokenizer.decode([number], clean_up_tokenization_spaces=False))
    return name if not text or "\ufffd" in text else text


def _extras(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    return {"return_offsets_mapping": True} if tokenizer.is_fast else {}


def _check_length(length: int, limit: int | None, what: str) -> None:
    if not length:
        raise UserError(f"the {what} is empty: there is no token in it")
    if limit is not None and length > limit:
        raise UserError(f"the {what} has {length} tokens, but the model reads {limit}; shorten it")


def _ends(model: PreTrainedModel) -> set[int]:
    end = model.generation_config.eos_token_id  # type: ignore[union-attr]
    return set(end) if isinstance(end, list) else {end} - {None}


def _write(model: Any, source: dict[str, Tensor], limit: int | None) -> Tensor:
    most = min(LONGEST_ANSWER, LONGEST_ANSWER if limit is None else limit - 1)
    reads = {name: source[name] for name in ("input_ids", "attention_mask") if name in source}
    return model.generate(
        **reads,
        num_beams=1,
        do_sample=False,
        max_new_tokens=most,
        max_length=None,
        use_cache=not has_short_cache(model),
    )


def _shift(model: Any, labels: Tensor) -> Tensor:
    """Return what the decoder reads for a target: the model's own shift, or the start token and all but the last."""
    if (own := getattr(model, "prepare_decoder_input_ids_from_labels", None)) is not None:
        return own(labels=labels)
    start = getattr(model.config, "decoder_start_token_id", None)  # get_text_config gives the default instead
    start = getattr(model.config, "bos_token_id", None) if start is None else start
    if start is None:
        raise UserError(f"{type(model).__name__}: no decoder_start_token_id; set it in config.json")
    return torch.cat((torch.full_like(labels[:, :1], start), labels[:, :-1]), dim=1)


def _pieces(tokenizer: Any, rows: Any, text: str, text_b: str | None) -> tuple[list[Piece], list[str]]:
    """Cut a text, or two, at the offsets of the tokens; without offsets by decoding more and more tokens."""
    ids = rows["input_ids"]
    if "offset_mapping" not in rows:
        return _grown_pieces(tokenizer, ids, text), [NO_OFFSETS]
    segments = rows.sequence_ids(0)
    pieces = []
    for number, (start, end), segment in zip(ids, rows["offset_mapping"], segments, strict=True):
        if segment is None:
            pieces.append(Piece(number, _name(tokenizer, number), None, None))
            continue
        covered, name = (text_b or "") if segment == 1 else text, _name(tokenizer, number)
        if name in SPACES and not covered[start:end].isspace():
            end = start  # a space that the tokenizer added, and laid over the letter behind it
        stripped = covered[start:end].lstrip()
        start = end - len(stripped) if stripped else start
        pieces.append(Piece(number, covered[start:end] or (" " if name in SPACES else name), start, end, segment))
    return pieces, []


def _grown_pieces(tokenizer: Any, ids: list[int], text: str) -> list[Piece]:
    """Show each token as what the decoded text grows by, and look for it in `text` from left to right."""
    special, pieces, at, before = set(tokenizer.all_special_ids), [], 0, ""
    for i, number in enumerate(ids):
        so_far = tokenizer.decode(ids[: i + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        grown = so_far[len(before) :] if so_far.startswith(before) else tokenizer.decode([number])
        before = so_far
        if number in special:
            pieces.append(Piece(number, _name(tokenizer, number), None, None))
            continue
        shown = grown.strip() or grown or _name(tokenizer, number)
        found = text.lower().find(shown.lower(), at)
        start = at if found < 0 else found
        at = start if found < 0 else start + len(shown)
        pieces.append(Piece(number, shown, start, at))
    return pieces


def _name(tokenizer: Any, number: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(number))
