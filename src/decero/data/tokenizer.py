"""Train a tokenizer, load one, and check that it keeps the text and fits the model.

Algorithms: WordPiece (Schuster & Nakajima 2012; Devlin et al. 2019), byte-level BPE (Sennrich et al. 2016; Radford et
al. 2019) and Unigram (Kudo 2018). The result is a plain fast tokenizer. After `save_pretrained`,
`AutoTokenizer.from_pretrained` loads it without decero.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import islice, takewhile
from pathlib import Path
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
from decero.data.special_tokens import TEXT
from decero.errors import UserError, did_you_mean, missing_package, root_line
from decero.files import check_folder, check_place, kind_of

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
    """Learn a vocabulary of at most `vocab_size` tokens, special tokens included.

    texts: documents, or lists of them. WordPiece reads them twice, so it stores the texts of a one-shot iterator.
    min_frequency: how often a pair must occur to be merged; Unigram has no such limit.
    num_sentinels: how many sentinels `<extra_id_0>` ... to add, for span corruption. If above 0, the special tokens are
        T5's (Raffel et al. 2020), whatever the algorithm: a text ends with </s> and has no start token.
    length: number of documents, only for the progress bar.

    `wordpiece` and `unigram` get BERT's special tokens ([PAD] is 0) and token types; `byte_level_bpe` gets RoBERTa's,
    with one token type. Accents are always kept, also with `lowercase`, unlike in BERT: `año` is not `ano`.
    The same texts give the same tokenizer.

    Raises UserError: an unknown algorithm; no text; a vocab_size too small for the characters of the corpus.
    """
    if algorithm not in SPECIAL_TOKENS:
        near = did_you_mean(algorithm, SPECIAL_TOKENS) or f"; choose one of {', '.join(SPECIAL_TOKENS)}"
        raise UserError(f"tokenizer.algorithm: unknown algorithm {algorithm}{near}")
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
        fits = scratch.get_vocab_size() <= vocab_size  # two trainers keep every character, even above the limit
    except Exception as error:  # the library raises a bare Exception
        if fits := "vocabulary is not large enough" not in str(error):
            raise
    if not fits:
        problem = f"{vocab_size} cannot hold the special tokens and all characters of the corpus"
        raise UserError(f"tokenizer.vocab_size: {problem}; raise it, or use byte_level_bpe, which needs 261")
    if scratch.get_vocab_size() == len(named) + num_sentinels:
        raise UserError("tokenizer: the corpus has no text to learn from; check the corpus")

    # Build a new tokenizer, because the scratch one has the ##characters as special tokens
    tokenizer = _untrained(algorithm, lowercase)
    if algorithm == "wordpiece":
        tokenizer.model = models.WordPiece(scratch.get_vocab(), unk_token=named["unk_token"])
    else:
        tokenizer.model = (
            _settled_unigram(scratch, [*named.values(), *sentinels]) if algorithm == "unigram" else scratch.model
        )
    # The space before a <mask> belongs to the masked word, so <mask> includes it, as in RoBERTa
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
    """Build everything except the vocabulary. Normalizes with NFC, not T5's NFKC, which turns `1º` into `1o`."""
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
        # WordPiece gives [UNK] for a word over 100 characters; Thai sentences and base64 are longer, so split them
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
    """Return `##c` for every character c that can continue a word, to add them before training.

    Otherwise the trainer numbers them in the order of a randomly seeded hash map and breaks ties by number, so each
    training gives another result (huggingface/tokenizers#1794). Also, no word of known characters becomes [UNK].
    """
    characters: set[str] = set()
    for item in texts:
        characters.update(*(compose("NFC", text) for text in ([item] if isinstance(item, str) else item)))
    alphabet = sorted(set("".join(map(tokenizer.normalizer.normalize_str, characters))))
    return [f"##{c}" for c in alphabet if tokenizer.pre_tokenizer.pre_tokenize_str(f"a{c}")[0][0] == f"a{c}"]


def _settled_unigram(tokenizer: Tokenizer, special: list[str]) -> models.Unigram:
    """Rebuild the trained Unigram model so that each training gives the same scores.

    The pieces are always the same, but their scores differ in the last bits. And characters that are only kept for
    coverage get the lowest score plus multiples of 0.0001, in the order of a hash map. One score for these, rounding
    to four decimals and a sort remove both differences.
    """
    scores = {piece: s for piece, s in json.loads(tokenizer.to_str())["model"]["vocab"] if piece not in special}
    floor = min(scores.values())
    near_floor = floor + 0.0001 * sum(len(piece) == 1 for piece in scores)
    settled = {p: round(floor if len(p) == 1 and s < near_floor else s, 4) for p, s in scores.items()}
    ranked = sorted(settled.items(), key=lambda item: (-item[1], item[0]))
    unknown = next(i for i, token in enumerate(special) if "unk" in token.lower())
    # With the usual score of 0 the model would turn a literal "[UNK]" in a text into the token; longer ones cost more
    cost = {token: 10 * floor * max(1, len(token) - 6) for token in special}
    return models.Unigram([*((token, round(cost[token], 4)) for token in special), *ranked], unk_id=unknown)


def check_round_trip(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], *, limit: int | None = 10_000) -> None:
    """Raise UserError at the first of `limit` texts with an unknown token or a decoded text that differs.

    The decoded text must equal the normalized text: exactly for a byte-level decoder; apart from whitespace for
    WordPiece, which keeps none; apart from the length of whitespace runs for any other. A literal special token is
    text (`split_special_tokens`): `<s>` in a page of HTML is not an error.
    """
    backend = tokenizer.backend_tokenizer
    exact, wordpiece = (isinstance(backend.decoder, kind) for kind in (decoders.ByteLevel, decoders.WordPiece))
    normalize = backend.normalizer.normalize_str if backend.normalizer else str
    texts, number = islice(texts, limit), 0
    while batch := list(islice(texts, 256)):
        encoded = tokenizer(batch, add_special_tokens=False, **TEXT)
        decoded = tokenizer.batch_decode(encoded["input_ids"], clean_up_tokenization_spaces=False)
        for text, ids, row, found in zip(batch, encoded["input_ids"], encoded.encodings, decoded, strict=True):
            number += 1
            wanted = normalize(text)
            if not exact:
                wanted, found = (("" if wordpiece else " ").join(side.split()) for side in (wanted, found))
            if tokenizer.unk_token_id in ids:
                start = row.offsets[ids.index(tokenizer.unk_token_id)][0]
                problem = f"{text[start : start + 40]!r} begins with an unknown token"
            elif wanted != found:
                same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(wanted, found, strict=False)))
                near = slice(max(0, same - 20), same + 20)
                problem = f"{wanted[near]!r} came back as {found[near]!r}"
            else:
                continue
            fix = "raise tokenizer.vocab_size or use tokenizer.algorithm=byte_level_bpe"
            raise UserError(f"tokenizer: document {number} does not round-trip: {problem}; {fix}")


def bytes_per_token(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], limit: int = 1000) -> float:
    """Return the mean number of UTF-8 bytes per token over the first `limit` texts."""
    sample = list(islice(texts, limit))
    tokens = sum(len(ids) for ids in tokenizer(sample, add_special_tokens=False, **TEXT)["input_ids"])
    return sum(len(text.encode()) for text in sample) / max(tokens, 1)


def check_fits_model(
    tokenizer: PreTrainedTokenizerFast, vocab_size: int, where: str,
    mend: str = "set model.overrides.vocab_size={needed} or choose another tokenizer",
) -> None:  # fmt: skip
    """Raise UserError when the largest id has no embedding; the number of tokens can be less, with gaps.

    mend: what to do; {needed} is the smallest vocab_size that fits.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        problem = f"the tokenizer's largest id is {largest} but the model's vocab_size is {vocab_size}"
        raise UserError(f"{where}: {problem}; {mend.format(needed=largest + 1)}")


SAVED = ("tokenizer.json", "tokenizer_config.json", "config.json")  # one of them is in a folder with a tokenizer


def load_tokenizer(
    name_or_path: str, *, needs: Sequence[str] = (), fast: bool = True, **kwargs
) -> PreTrainedTokenizerFast:
    """Load a tokenizer from the hub, a folder or `package:PACKAGE/PATH`.

    needs: special tokens that must be set, such as ("mask_token", "pad_token"). kwargs go to `AutoTokenizer`.
    fast: refuse a slow tokenizer, which gives no word ids and offsets.
    Remote code runs only if kwargs allow it.
    Raises UserError: no tokenizer found, no vocabulary, a missing package, a slow tokenizer, a missing special token.
    """
    path = resolve_package_path(name_or_path)
    check_place(path)
    is_folder = bool(kind_of(path))
    if is_folder:
        check_folder(path)
        here, inside = (any(kind_of(Path(path, part, file)) for file in SAVED) for part in ("", "model"))
        if inside and not here:
            raise UserError(
                f"tokenizer {name_or_path}: this is the folder of a run; give {Path(name_or_path, 'model')}"
            )
    kwargs.setdefault("trust_remote_code", False)  # None would ask on the terminal
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, **kwargs)
    except Exception as error:  # transformers and tokenizers raise many types here, even a bare Exception
        problem = "cannot read a tokenizer in this folder" if is_folder else "no such folder, nor on the hub"
        package = missing_package(error)
        if is_folder and any(Path(path).glob("*.model")) and "need to have sentencepiece" in str(error):
            package = "sentencepiece"  # the same message stands for a folder without any tokenizer
        reason = f"it needs a package: pip install {package}" if package else f"{problem} ({root_line(error)})"
        raise UserError(f"tokenizer {name_or_path}: {reason}") from error
    missing = [token for token in needs if getattr(tokenizer, token) is None]
    if fast and not getattr(tokenizer, "is_fast", False):
        kind = type(tokenizer).__name__
        problem = f"{kind} is a slow tokenizer, without word ids and offsets; choose one with a tokenizer.json"
    # From a folder with only config.json, transformers makes a tokenizer of special tokens (and a space, for T5)
    elif len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        problem = "it has no vocabulary; save the tokenizer in the same folder"
    elif not isinstance(tokenizer.model_max_length, int | float):
        problem = f"its model_max_length is {tokenizer.model_max_length!r}, not a number; correct tokenizer_config.json"
    elif missing:
        problem = f"it has no {', no '.join(missing)}; choose another tokenizer"
    else:
        try:
            tokenizer("a")
            return tokenizer
        except Exception as error:  # a damaged setting, such as a model_max_length that is no number
            problem = f"it cannot tokenize a text ({root_line(error)}); repair tokenizer_config.json or tokenizer.json"
    raise UserError(f"tokenizer {name_or_path}: {problem}")


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash that is equal for tokenizers which give every text the same tokens and ids."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    parts = [backend.get(part, type(tokenizer).__name__) for part in ("normalizer", "pre_tokenizer", "model")]
    return hashlib.sha256(json.dumps([parts, tokenizer.get_vocab()], sort_keys=True).encode()).hexdigest()
