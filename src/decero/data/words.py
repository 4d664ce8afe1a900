"""Where words begin among tokens, for whole-word masking."""

import re
from collections.abc import Sequence
from itertools import chain, product

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

# isspace() of every code point up to U+3000, the last whitespace there is; the row after it stands for all that follow
IS_SPACE = np.array([chr(code).isspace() for code in range(0x3001)] + [False])


def word_starts(rows: Sequence[Encoding], texts: Sequence[str], by_pre_token: bool = False) -> list[np.ndarray]:
    """Which tokens begin a word: a bool array a row. The words to mask are the runs from one True to the next.

    rows: a fast tokenizer's encodings of the texts. A token starts a word when its pre-token (`word_ids`) differs from
    its predecessor's or its first character lies in another whitespace word of the text; a special token and the first
    of a row start their own. A whitespace word is a run of whitespace with what follows it, so a lone `▁` and the piece
    after it are one word. Pre-tokens alone are right for WordPiece, byte-level BPE and Metaspace; whitespace is what
    remains where there is no pre-tokenizer.
    by_pre_token: the text need not be looked at, as `splits_at_whitespace` says.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    pre_tokens = np.array(list(chain.from_iterable(row.word_ids for row in rows)), dtype=np.float64)  # None: NaN
    starts = np.ones(len(pre_tokens), dtype=bool)
    starts[1:] = pre_tokens[1:] != pre_tokens[:-1]
    if not by_pre_token:
        # All texts end to end, each closed by a newline: a trimmed token may start at the very end of its text
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
    """Whether no pre-token goes on behind whitespace, so that `word_starts` has no use for characters, which cost time.

    Tried with the whitespace that texts have (of rare kinds some tokenizers make nothing) behind and before letters,
    figures and punctuation.
    """
    backend = tokenizer.backend_tokenizer
    if backend.pre_tokenizer is None:
        return False
    for left, space, right in product("a1!é中", (" ", "\n", "\t", "\r", "\xa0", "\u3000", "  ", " \n\n "), "a1!é中"):
        text = f"{left}{space}{right}"
        read = backend.normalizer.normalize_str(text) if backend.normalizer else text
        pieces = [read[begin:end] for _, (begin, end) in backend.pre_tokenizer.pre_tokenize_str(read)]
        if len(read.split()) != 2 or any(re.search(r"\S\s", piece) for piece in pieces):
            return False
    return True
