"""What text costs without a neural network, in bits per byte: a compressor, and n-grams of bytes."""

import lzma
import zlib

import numpy as np

COMPRESSORS = {
    "lzma": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),  # looks 64 MiB back
    "zlib": lambda data: zlib.compress(data, 9),  # looks 32 KiB back: of a long training text it knows the end alone
}
FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])  # discounts where counts of counts give none: KenLM's --discount_fallback


def compressed_bits_per_byte(train: str | bytes, test: str | bytes, compressor: str = "lzma") -> float:
    """Bits a byte that `test` adds when compressed after `train` (Cilibrasi & Vitányi 2005, section III).

    A compressor goes on learning while it reads the test text, which a trained model does not.
    compressor: of COMPRESSORS. 25 MB of training text take lzma about a minute.
    Raises ValueError for an empty test text or an unknown compressor.
    """
    if compressor not in COMPRESSORS:
        raise ValueError(f"{compressor!r} is no compressor; there are {', '.join(COMPRESSORS)}")
    train, test = _bytes(train), _bytes(test)
    if not test:
        raise ValueError("bits per byte take a test text that is not empty")
    compress = COMPRESSORS[compressor]
    return 8 * (len(compress(train + test)) - len(compress(train))) / len(test)


def ngram_bits_per_byte(train: str | bytes, test: str | bytes, order: int = 6) -> float:
    """Mean -log2 ByteNgrams(train, order).probabilities(test). Raises ValueError for an empty test text."""
    test = _bytes(test)
    if not test:
        raise ValueError("bits per byte take a test text that is not empty")
    return float(-np.log2(ByteNgrams(train, order).probabilities(test)).mean())


class ByteNgrams:
    """Interpolated modified Kneser-Ney (Chen & Goodman 1999, eqs. 15 to 17) over bytes, uniform below the unigrams.

    p(byte | context) = (c - D(c)) / sum c + backoff(context) * p(byte | context less its oldest byte), c a count, at
    lower orders the number of different bytes seen before. A context never seen adds nothing and takes nothing away.
    Every byte has a probability above zero, and the 256 of them sum to one.

    train: taken as one stream, so put between documents what is put between them in the test text.
    order: 1 to 8, the bytes of an n-gram, the predicted one among them.
    An n-gram is one uint64, its oldest byte the highest, so that n-grams of one context lie side by side when sorted.
    Takes about 30 bytes of memory a byte of `train`.
    """

    def __init__(self, train: str | bytes, order: int = 6):
        if not 1 <= order <= 8:
            raise ValueError(f"order must be 1 to 8, the bytes that fit in a 64-bit number, not {order}")
        data = _bytes(train)
        order = min(order, len(data)) or 1
        self.tables: list[tuple[np.ndarray, ...]] = []
        ngrams, counts = np.unique(_ngrams(data, order), return_counts=True)
        for n in range(order, 0, -1):
            self.tables.insert(0, _table(ngrams, counts))
            # Each n-gram once: how often its end occurs among them is the number of different bytes before that end.
            ngrams, counts = np.unique(ngrams & _mask(n - 1), return_counts=True)

    def probabilities(self, text: str | bytes) -> np.ndarray:
        """p(byte | the order - 1 bytes before it), float64 (len,); the first bytes of the text have fewer before."""
        data = _bytes(text)
        p = np.full(len(data), 1 / 256)
        for n, (ngrams, shares, contexts, backoffs) in enumerate(self.tables, start=1):
            wanted = _ngrams(data, n)
            there = p[n - 1 :]
            there *= _look_up(contexts, backoffs, wanted >> np.uint64(8), missing=1.0)
            there += _look_up(ngrams, shares, wanted, missing=0.0)
        return p


def _ngrams(data: bytes, n: int) -> np.ndarray:
    """All n-grams of the data in their order, uint64 (len - n + 1,)."""
    octets = np.frombuffer(data, dtype=np.uint8)
    packed = np.zeros(max(len(octets) - n + 1, 0), dtype=np.uint64)
    for i in range(n):
        packed <<= np.uint64(8)
        packed |= octets[i : i + len(packed)]
    return packed


def _mask(n: int) -> np.uint64:
    return np.uint64(2 ** (8 * n) - 1)


def _table(ngrams: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sorted n-grams, the share (c - D(c)) / sum c of each; their contexts, sorted, and the backoff of each."""
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    contexts, first, inverse = np.unique(ngrams >> np.uint64(8), return_index=True, return_inverse=True)
    if not len(contexts):
        return ngrams, discounts, contexts, discounts
    totals = np.add.reduceat(counts, first)
    return ngrams, (counts - discounts) / totals[inverse], contexts, np.add.reduceat(discounts, first) / totals


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What to take off a count of 0, 1, 2, and 3 or more: eq. 17, within ]0, count]."""
    n = np.bincount(np.minimum(counts, 5), minlength=5)[:5].astype(np.float64)
    if not n[1:].all():
        return FALLBACK
    k = np.arange(4)
    found = k - (k + 1) * n[1] / (n[1] + 2 * n[2]) * n[1:] / np.append(1.0, n[1:4])
    found[0] = 0.0
    return np.where(found > 0, found, FALLBACK)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    """values at the places of wanted in the sorted keys."""
    if not len(keys):
        return np.full(len(wanted), missing)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], missing)


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else bytes(text)
