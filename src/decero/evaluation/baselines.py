"""Baselines in bits per byte without a neural network: a compressor, and n-grams of bytes."""

import lzma
import zlib

import numpy as np

COMPRESSORS = {
    "lzma": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),  # window: 64 MiB
    "zlib": lambda data: zlib.compress(data, 9),  # window: 32 KiB, so only the end of a long training text helps
}
FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])  # discounts when the counts give none: KenLM's --discount_fallback


def compressed_bits_per_byte(train: str | bytes, test: str | bytes, compressor: str = "lzma") -> float:
    """Return the bits per byte that `test` adds when compressed together with `train`, after it.

    Unlike a trained model, a compressor keeps learning while it reads the test text.
    compressor: one of COMPRESSORS. lzma takes about a minute for 25 MB of training text.
    Raises ValueError for an empty test text or an unknown compressor.
    Source: Cilibrasi & Vitányi 2005, section III.
    """
    if compressor not in COMPRESSORS:
        raise ValueError(f"unknown compressor {compressor!r}; choose one of {', '.join(COMPRESSORS)}")
    train, test = _bytes(train), _bytes(test)
    if not test:
        raise ValueError("bits per byte: the test text is empty")
    compress = COMPRESSORS[compressor]
    return 8 * (len(compress(train + test)) - len(compress(train))) / len(test)


def ngram_bits_per_byte(train: str | bytes, test: str | bytes, order: int = 6) -> float:
    """Return the mean of -log2 ByteNgrams(train, order).probabilities(test); ValueError for an empty test text."""
    test = _bytes(test)
    if not test:
        raise ValueError("bits per byte: the test text is empty")
    return float(-np.log2(ByteNgrams(train, order).probabilities(test)).mean())


class ByteNgrams:
    """An n-gram model over bytes: interpolated modified Kneser-Ney, uniform below the unigrams.

    p(byte | context) = (c - D(c)) / sum c + backoff(context) * p(byte | context without its oldest byte). c is a count;
    at lower orders, the number of different bytes seen before. An unseen context changes nothing: p is that of the
    shorter context. Every byte has a probability above zero, and the 256 probabilities sum to one.

    train: read as one stream; separate documents as in the test text.
    order: 1 to 8, the bytes of an n-gram, with the predicted byte.
    An n-gram is one uint64 with the oldest byte highest, so sorting puts the n-grams of one context side by side.
    Takes about 30 bytes of memory per byte of `train`.
    Source: Chen & Goodman 1999, eqs. 15 to 17.
    """

    def __init__(self, train: str | bytes, order: int = 6):
        if not 1 <= order <= 8:
            raise ValueError(f"order must be 1 to 8 (bytes in a 64-bit number), not {order}")
        data = _bytes(train)
        order = min(order, len(data)) or 1
        self.tables: list[tuple[np.ndarray, ...]] = []
        ngrams, counts = np.unique(_ngrams(data, order), return_counts=True)
        for n in range(order, 0, -1):
            self.tables.insert(0, _table(ngrams, counts))
            # Count each n-gram once: how many have the same end is the number of different bytes before that end.
            ngrams, counts = np.unique(ngrams & _mask(n - 1), return_counts=True)

    def probabilities(self, text: str | bytes) -> np.ndarray:
        """Return p(byte | the order - 1 bytes before it), float64 (len,); the first bytes have a shorter context."""
        data = _bytes(text)
        p = np.full(len(data), 1 / 256)
        for n, (ngrams, shares, contexts, backoffs) in enumerate(self.tables, start=1):
            wanted = _ngrams(data, n)
            tail = p[n - 1 :]  # a view: changes p
            tail *= _look_up(contexts, backoffs, wanted >> np.uint64(8), missing=1.0)
            tail += _look_up(ngrams, shares, wanted, missing=0.0)
        return p


def _ngrams(data: bytes, n: int) -> np.ndarray:
    """Return all n-grams of the data in order, uint64 (len - n + 1,)."""
    octets = np.frombuffer(data, dtype=np.uint8)
    packed = np.zeros(max(len(octets) - n + 1, 0), dtype=np.uint64)
    for i in range(n):
        packed <<= np.uint64(8)
        packed |= octets[i : i + len(packed)]
    return packed


def _mask(n: int) -> np.uint64:
    return np.uint64(2 ** (8 * n) - 1)


def _table(ngrams: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return sorted n-grams, the share (c - D(c)) / sum c of each, sorted contexts, and the backoff of each."""
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    contexts, first, inverse = np.unique(ngrams >> np.uint64(8), return_index=True, return_inverse=True)
    if not len(contexts):
        return ngrams, discounts, contexts, discounts
    totals = np.add.reduceat(counts, first)
    return ngrams, (counts - discounts) / totals[inverse], contexts, np.add.reduceat(discounts, first) / totals


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Return the discounts of the counts 0, 1, 2, and 3 or more: eq. 17, within ]0, count]."""
    n = np.bincount(np.minimum(counts, 5), minlength=5)[:5].astype(np.float64)
    if not n[1:].all():
        return FALLBACK
    k = np.arange(4)
    found = k - (k + 1) * n[1] / (n[1] + 2 * n[2]) * n[1:] / np.append(1.0, n[1:4])
    found[0] = 0.0
    return np.where(found > 0, found, FALLBACK)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    """Return the value of each wanted key in the sorted keys, `missing` for a key that is not there."""
    if not len(keys):
        return np.full(len(wanted), missing)
    positions = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[positions] == wanted, values[positions], missing)


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else bytes(text)
