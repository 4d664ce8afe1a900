"""Find the tokens that begin a word, for whole-word masking."""

import re
from collections.abc import Sequence
from itertools import chain, product

import numpy as np
from tokenizers import Encoding, models
from transformers import PreTrainedTokenizerBase

# isspace() of every code point up to U+3000, the last whitespace character; one more entry for all later code points
IS_SPACE = np.array([chr(code).isspace() for code in range(0x3001)] + [False])


def word_starts(rows: Sequence[Encoding], texts: Sequence[str], by_pre_token: bool = False) -> list[np.ndarray]:
    """Return one bool array per row: True at each token that begins a word.

    rows: a fast tokenizer's encodings of the texts.
    by_pre_token: do not look at the text; allowed when `splits_at_whitespace` is True.

    A token begins a word when its pre-token (`word_ids`) differs from that of the token before it, or when its first
    character is in another whitespace word of the text. Special tokens and the first token of a row always do. A
    whitespace word is a run of whitespace and the characters after it, so a single `▁` and the piece after it are one
    word. Pre-tokens are enough for WordPiece, byte-level BPE and Metaspace; whitespace is needed without pre-tokenizer.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    pre_tokens = np.array(list(chain.from_iterable(row.word_ids for row in rows)), dtype=np.float64)  # None: NaN
    starts = np.ones(len(pre_tokens), dtype=bool)
    starts[1:] = pre_tokens[1:] != pre_tokens[:-1]
    if not by_pre_token:
        # Join all texts, each with a final newline, because a trimmed token may start at the end of its text
        whole = "".join(f"{text}\n" for text in texts).encode("utf-32-le", "surrogatepass")
        is_space = IS_SPACE[np.minimum(np.frombuffer(whole, dtype=np.uint32), len(IS_SPACE) - 1)]
        text_begins = np.cumsum([0] + [len(text) + 1 for text in texts])
        whitespace_word = np.cumsum(is_space & ~np.roll(is_space, 1))
        characters = np.array([start for row in rows for start, _ in row.offsets], dtype=np.int64)
        words = whitespace_word[characters + np.repeat(text_begins[: len(rows)], lengths)]
        starts[1:] |= words[1:] != words[:-1]
    starts[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    return np.split(starts, np.cumsum(lengths)[:-1])


def splits_at_whitespace(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether every pre-token ends at whitespace; then `word_starts` need not look at characters (slow).

    Tests the common kinds of whitespace (some tokenizers drop rare kinds) between letters, digits and punctuation.
    """
    backend = tokenizer.backend_tokenizer
    if backend.pre_tokenizer is None:
        return False
    for left, space, right in product("a1!é中", (" ", "\n", "\t", "\r", "\xa0", "\u3000", "  ", " \n\n "), "a1!é中"):
        text = f"{left}{space}{right}"
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        pieces = [normal[begin:end] for _, (begin, end) in backend.pre_tokenizer.pre_tokenize_str(normal)]
        if len(normal.split()) != 2 or any(re.search(r"\S\s", piece) for piece in pieces):
            return False
    return True


def word_starts_by_id(tokenizer: PreTrainedTokenizerBase) -> np.ndarray | None:
    """Return bool (vocabulary,): does a token of this id begin a word? None where the id alone does not say.

    WordPiece says it: all other pieces of a word begin with `##`. Then the library need not find where tokens are in
    the text, which takes a sixth of its time.
    """
    backend = tokenizer.backend_tokenizer
    prefix = getattr(backend.model, "continuing_subword_prefix", None)
    if not prefix or not isinstance(backend.model, models.WordPiece) or not splits_at_whitespace(tokenizer):
        return None
    text = backend.normalizer.normalize_str(f"{prefix}a") if backend.normalizer else f"{prefix}a"
    if any(piece.startswith(prefix) for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)):
        return None  # a word of the text may begin as the other pieces do
    starts = np.ones(backend.get_vocab_size(), dtype=bool)
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    starts[
        [number for token, number in backend.get_vocab().items() if token.startswith(prefix) and token not in added]
    ] = False
    return starts
