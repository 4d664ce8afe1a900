"""Train a tokenizer, load one, and check that it keeps the text and fits the model.

WordPiece (Schuster & Nakajima 2012; Devlin et al. 2019), byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) or
Unigram (Kudo 2018). All end as a plain fast tokenizer: the folder that `save_pretrained` writes loads with
`AutoTokenizer.from_pretrained` where decero is not installed.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from itertools import islice, takewhile
from typing import Any
from unicodedata import normalize as compose

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from decero.data.packages import resolve_package_path
from decero.errors import UserError, did_you_mean

BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ROBERTA = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
T5 = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
SPECIAL_TOKENS = {"wordpiece": BERT, "byte_level_bpe": ROBERTA, "unigram": BERT}


def train_tokenizer(
    texts: Iterable[str] | Iterable[list[str]],
    *,
    algorithm: str,
    vocab_size: int,
    model_max_length: int,
    lowercase: bool = False,
    min_frequency: int = 2,
    num_sentinels: int = 0,
    length: int | None = None,
    show_progress: bool = True,
) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of at most `vocab_size` tokens, special ones included. The same texts give the same tokenizer.

    texts: documents, or lists of them. WordPiece reads them twice and so keeps what a one-shot iterator gives.
    min_frequency: how often a pair must occur to be merged; Unigram has no such floor.
    num_sentinels: marks for the spans that span corruption takes out, `<extra_id_0>` and so on. With them the special
        tokens are T5's (Raffel et al. 2020), whatever the algorithm: a text ends in </s> and begins with itself.
    length: number of documents, for the progress bar only.

    `wordpiece` and `unigram` carry BERT's special tokens ([PAD] is 0) and token types; `byte_level_bpe` RoBERTa's, with
    one type only. Accents always survive, even lowercased, where BERT would drop them: `año` is not `ano`.
    Raises UserError: no such algorithm; no text; vocab_size below what the characters of the corpus need.
    """
    if algorithm not in SPECIAL_TOKENS:
        near = did_you_mean(algorithm, SPECIAL_TOKENS)
        raise UserError(f"tokenizer.algorithm: {algorithm} is none of {', '.join(SPECIAL_TOKENS)}{near}")
    sentinels = [f"<extra_id_{i}>" for i in range(num_sentinels)]
    named = T5 if sentinels else SPECIAL_TOKENS[algorithm]
    scratch = _untrained(algorithm, lowercase)
    settings: dict[str, Any] = {"vocab_size": vocab_size, "show_progress": show_progress}
    settings |= {} if algorithm == "unigram" else {"min_frequency": min_frequency}
    if algorithm == "wordpiece":
        texts = list(texts) if iter(texts) is texts else texts
        first = [*named.values(), *sentinels, *_continuing_characters(scratch, texts)]
        trainer: Any = trainers.WordPieceTrainer(special_tokens=first, limit_alphabet=sys.maxsize, **settings)
    elif algorithm == "unigram":
        trainer = trainers.UnigramTrainer(
            special_tokens=[*named.values(), *sentinels], unk_token=named["unk_token"], **settings
        )
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            special_tokens=[*named.values(), *sentinels], initial_alphabet=alphabet, **settings
        )
    try:
        scratch.train_from_iterator(texts, trainer, length=length)
        fits = scratch.get_vocab_size() <= vocab_size  # two trainers keep every character, over the limit or not
    except Exception as error:  # the library raises nothing narrower
        if fits := "vocabulary is not large enough" not in str(error):
            raise
    if not fits:
        problem = f"{vocab_size} cannot hold the special tokens and every character of the corpus"
        raise UserError(f"tokenizer.vocab_size: {problem}; raise it, or use byte_level_bpe, which needs 261")
    if scratch.get_vocab_size() == len(named) + num_sentinels:
        raise UserError("tokenizer: the corpus has no text to learn from; check the corpus")

    # A fresh tokenizer, since the scratch one took the ##characters for special tokens
    tokenizer = _untrained(algorithm, lowercase)
    if algorithm == "wordpiece":
        tokenizer.model = models.WordPiece(scratch.get_vocab(), unk_token=named["unk_token"])
    else:
        tokenizer.model = (
            _settled_unigram(scratch, [*named.values(), *sentinels]) if algorithm == "unigram" else scratch.model
        )
    # The space before a <mask> belongs to the word it hides, so <mask> takes it in, as RoBERTa's does
    special = [AddedToken(token, normalized=False, lstrip=token == "<mask>") for token in named.values()]
    options: dict[str, Any] = dict(zip(named, special, strict=True))
    if sentinels:
        options["extra_special_tokens"] = [AddedToken(token, normalized=False) for token in sentinels]
        special += options["extra_special_tokens"]
    tokenizer.add_special_tokens(special)
    ids = tokenizer.get_vocab()
    start, end = ((named[role], ids[named[role]]) if role in named else ("", 0) for role in ("cls_token", "sep_token"))
    inputs = ["input_ids", *(["token_type_ids"] if named is BERT else []), "attention_mask"]
    if named is T5:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", ids["</s>"])])
    elif named is BERT:
        pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, [start, end])
    else:
        tokenizer.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=False)
        options |= {"bos_token": "<s>", "eos_token": "</s>"}
    options |= {"model_max_length": model_max_length, "model_input_names": inputs, "padding_side": "right"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options)


def _untrained(algorithm: str, lowercase: bool) -> Tokenizer:
    """Everything but the vocabulary. Composed characters (NFC) and not T5's NFKC, which turns `1º` into `1o`."""
    lower = [normalizers.Lowercase()] if lowercase else []
    if algorithm == "byte_level_bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(lower)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif algorithm == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        # clean_text would delete emoji joiners, soft hyphens and private characters
        bert = normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=False)
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *lower, bert])
        # WordPiece gives [UNK] for a word of more than 100 characters; Thai sentences and base64 are longer
        short = pre_tokenizers.Split(Regex(r"\S{100}"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), short])
        tokenizer.decoder = decoders.WordPiece()
    else:
        tokenizer = Tokenizer(models.Unigram())
        spaces = [normalizers.Replace(Regex(r"[\s▁]+"), " "), normalizers.Strip()]
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *lower, *spaces])
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer


def _continuing_characters(tokenizer: Tokenizer, texts: Iterable) -> list[str]:
    """`##c` for every character c that can continue a word, to be named before training.

    The trainer would number them in the order of a randomly seeded hash map and break ties by number, so that no two
    trainings main_process_value (huggingface/tokenizers#1794). Besides, no word of known characters is then [UNK].
    """
    characters: set[str] = set()
    for item in texts:
        characters.update(*(compose("NFC", text) for text in ([item] if isinstance(item, str) else item)))
    alphabet = sorted(set("".join(map(tokenizer.normalizer.normalize_str, characters))))
    return [f"##{c}" for c in alphabet if tokenizer.pre_tokenizer.pre_tokenize_str(f"a{c}")[0][0] == f"a{c}"]


def _settled_unigram(tokenizer: Tokenizer, special: list[str]) -> models.Unigram:
    """The trained pieces without what differs from one training to the next.

    The pieces never do; their scores do in the last bits, and the characters kept for coverage alone get the lowest
    score plus multiples of 0.0001 in the order of a hash map. One floor for those, four decimals and a sort undo both.
    """
    scores = {piece: s for piece, s in json.loads(tokenizer.to_str())["model"]["vocab"] if piece not in special}
    floor = min(scores.values())
    near_floor = floor + 0.0001 * sum(len(piece) == 1 for piece in scores)
    settled = {p: round(floor if len(p) == 1 and s < near_floor else s, 4) for p, s in scores.items()}
    ranked = sorted(settled.items(), key=lambda item: (-item[1], item[0]))
    unknown = next(i for i, token in enumerate(special) if "unk" in token.lower())
    # At the usual score of 0 the model would read a "[UNK]" spelled out in a text as the token; longer ones cost more
    cost = {token: 10 * floor * max(1, len(token) - 6) for token in special}
    return models.Unigram([*((token, round(cost[token], 4)) for token in special), *ranked], unk_id=unknown)


def check_round_trip(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], *, limit: int | None = 10_000) -> None:
    """Raise UserError at the first of the first `limit` texts that holds an unknown token or does not come back.

    The text as the tokenizer's own normalizer leaves it must come back from decode: exactly from a byte-level decoder,
    up to whitespace from WordPiece's, which keeps none; up to how much whitespace there is in a run from any other.
    A special token spelled out in a text is text (`split_special_tokens`): `<s>` in a page of HTML is no failure.
    """
    backend = tokenizer.backend_tokenizer
    exact, wordpiece = (isinstance(backend.decoder, kind) for kind in (decoders.ByteLevel, decoders.WordPiece))
    normalize = backend.normalizer.normalize_str if backend.normalizer else str
    texts, number = islice(texts, limit), 0
    while batch := list(islice(texts, 256)):
        encoded = tokenizer(batch, add_special_tokens=False, split_special_tokens=True, verbose=False)
        back = tokenizer.batch_decode(encoded["input_ids"], clean_up_tokenization_spaces=False)
        for text, ids, row, found in zip(batch, encoded["input_ids"], encoded.encodings, back, strict=True):
            number += 1
            wanted = normalize(text)
            if not exact:
                wanted, found = (("" if wordpiece else " ").join(side.split()) for side in (wanted, found))
            if tokenizer.unk_token_id in ids:
                start = row.offsets[ids.index(tokenizer.unk_token_id)][0]
                problem = f"{text[start : start + 40]!r} begins with a token unknown to it"
            elif wanted != found:
                same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(wanted, found, strict=False)))
                near = slice(max(0, same - 20), same + 20)
                problem = f"{wanted[near]!r} came back as {found[near]!r}"
            else:
                continue
            mend = "raise tokenizer.vocab_size or use tokenizer.algorithm=byte_level_bpe"
            raise UserError(f"tokenizer: document {number} does not round-trip: {problem}; {mend}")


def check_fits_model(tokenizer: PreTrainedTokenizerFast, vocab_size: int, where: str) -> None:
    """Raise UserError when an id has no embedding. The largest id counts: added tokens may leave gaps below it."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        problem = f"the tokenizer's largest id is {largest} but the model's vocab_size is {vocab_size}"
        raise UserError(f"{where}: {problem}; set model.overrides.vocab_size={largest + 1} or choose another tokenizer")


def load_tokenizer(name_or_path: str, *, needs: Sequence[str] = (), **kwargs) -> PreTrainedTokenizerFast:
    """`AutoTokenizer`, from the hub, a folder or `package:PACKAGE/PATH`; never remote code unless the caller allows it.

    needs: special tokens that must be set, such as ("mask_token", "pad_token"). kwargs go to `AutoTokenizer`.
    Raises UserError: nothing there, no vocabulary, a slow tokenizer, a special token missing.
    """
    path = resolve_package_path(name_or_path)
    kwargs.setdefault("trust_remote_code", False)  # None would ask on the terminal
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, **kwargs)
    except Exception as error:  # transformers and tokenizers raise everything here, down to a bare Exception
        place = "the folder holds none that loads" if os.path.isdir(path) else "no such folder, and none from the hub"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"tokenizer {name_or_path}: {place} ({reason})") from error
    missing = [token for token in needs if getattr(tokenizer, token) is None]
    if not getattr(tokenizer, "is_fast", False):
        problem = "it is a slow one, without word ids and offsets; save it as tokenizer.json"
    # Out of a folder with config.json alone, transformers makes a tokenizer of special tokens (T5's has a space, too)
    elif len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        problem = "it has no vocabulary; save the tokenizer there, too"
    elif missing:
        problem = f"it lacks {', '.join(missing)}; choose another"
    else:
        return tokenizer
    raise UserError(f"tokenizer {name_or_path}: {problem}")


def around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text."""
    mask = tokenizer("a", return_special_tokens_mask=True)
    ids, special = mask["input_ids"], mask["special_tokens_mask"]
    begin = special.index(0)
    return ids[:begin], ids[len(ids) - special[::-1].index(0) :]
