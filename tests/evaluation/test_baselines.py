"""The n-gram model is a Kneser-Ney distribution; a compressor counts only the bits of the test text."""

import math
import zlib
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decero.evaluation import ByteNgrams, compressed_bits_per_byte, ngram_bits_per_byte

FEW = st.lists(st.sampled_from(b"abc\x00\xff"), max_size=60).map(bytes)  # few letters, so that contexts repeat
ENGLISH = "the cat sat on the mat and the dog sat on the log; " * 40


def plain_kneser_ney(train: bytes, order: int):
    """p(byte, context) from the paper's formula, with dictionaries: slow, and independent of the tested code."""
    counts = {order: Counter(train[i : i + order] for i in range(len(train) - order + 1))}
    for n in range(order - 1, 0, -1):
        before = defaultdict(set)
        for gram in counts[n + 1]:
            before[gram[1:]].add(gram[0])
        counts[n] = Counter({gram: len(seen) for gram, seen in before.items()})

    def discount(n, c):
        if c == 0:
            return 0.0
        of = Counter(min(count, 5) for count in counts[n].values())
        k = min(c, 3)
        if min(of[i] for i in (1, 2, 3, 4)) == 0:
            return (0.5, 1.0, 1.5)[k - 1]
        d = k - (k + 1) * of[1] / (of[1] + 2 * of[2]) * of[k + 1] / of[k]
        return d if d > 0 else (0.5, 1.0, 1.5)[k - 1]

    def p(byte, context):
        if context is None:
            return 1 / 256
        lower = p(byte, context[1:] if context else None)
        n = len(context) + 1
        followers = {gram: c for gram, c in counts[n].items() if gram[:-1] == context}
        total = sum(followers.values())
        if not total:
            return lower
        c = counts[n][context + bytes([byte])]
        backoff = sum(discount(n, count) for count in followers.values()) / total
        return (c - discount(n, c)) / total + backoff * lower

    return p


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(train=FEW, context=FEW, order=st.integers(1, 8))
def test_the_256_probabilities_sum_to_one_and_none_is_zero(train, context, order):
    model = ByteNgrams(train, order)
    p = np.array([model.probabilities(context + bytes([byte]))[-1] for byte in range(256)])
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert p.min() > 0


@settings(max_examples=60, deadline=None)
@given(train=FEW.filter(lambda data: len(data) >= 4), text=FEW, order=st.integers(1, 4))
def test_it_is_kneser_ney_as_the_paper_writes_it(train, text, order):
    p = plain_kneser_ney(train, order)
    expected = [p(byte, text[max(0, i - order + 1) : i]) for i, byte in enumerate(text)]
    np.testing.assert_allclose(ByteNgrams(train, order).probabilities(text), expected, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_it_is_kneser_ney_with_all_discounts_estimated(order):
    rng = np.random.default_rng(order)
    train = bytes(rng.zipf(1.4, 700) % 17)
    p = plain_kneser_ney(train, order)
    text = bytes(rng.integers(0, 17, 29))
    expected = [p(byte, text[max(0, i - order + 1) : i]) for i, byte in enumerate(text)]
    np.testing.assert_allclose(ByteNgrams(train, order).probabilities(text), expected, rtol=1e-9)


def test_negative_discounts_still_give_a_distribution():
    often = [1] * 10 + [2] + [3] * 10 + [4]  # eq. 17 gives D2 = 2 - 3 * 10/12 * 10 = -23
    train = b"".join(bytes([byte]) * n for byte, n in enumerate(often))
    p = ByteNgrams(train, 1).probabilities(bytes(range(256)))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert p[: len(often)].min() > p[-1] > 0
    assert p.max() < 0.1, "a byte seen twice in 46 has gained from its discount"


def test_a_training_text_shorter_than_the_order_is_learnt_from():
    assert ByteNgrams(b"ab", 6).probabilities(b"ab")[1] > 1 / 2


def test_bits_of_unseen_random_and_expected_text():
    noise = np.random.default_rng(0).bytes(20_000)
    assert ngram_bits_per_byte(b"", noise) == pytest.approx(8.0)
    assert 8.0 < ngram_bits_per_byte(noise, np.random.default_rng(1).bytes(5000)) < 8.5
    assert ngram_bits_per_byte(ENGLISH, ENGLISH[:200]) < 0.3
    bits = [ngram_bits_per_byte(ENGLISH, "the dog sat on the mat", order) for order in (1, 2, 3, 6)]
    assert bits == sorted(bits, reverse=True)


def test_a_text_is_its_utf8_bytes():
    train, test = "mañana será otro día " * 9, "será mañana"
    assert ngram_bits_per_byte(train, test) == ngram_bits_per_byte(train.encode(), test.encode())
    assert compressed_bits_per_byte(train, test) == compressed_bits_per_byte(train.encode(), test.encode())
    assert len(ByteNgrams(train).probabilities(test)) == len(test.encode()) == len(test) + 2


def test_a_compressor_counts_only_the_test_text():
    rng = np.random.default_rng(0)
    noise, other = rng.bytes(100_000), rng.bytes(20_000)
    for compressor in ("lzma", "zlib"):
        assert compressed_bits_per_byte(noise, other, compressor) == pytest.approx(8, abs=0.05)
        assert compressed_bits_per_byte(ENGLISH, ENGLISH, compressor) < 0.15
    assert compressed_bits_per_byte(noise, noise[:20_000], "lzma") < 0.3
    assert compressed_bits_per_byte(noise, noise[:20_000], "zlib") > 7.9  # outside its window
    expected = 8 * (len(zlib.compress(b"abcabd", 9)) - len(zlib.compress(b"abc", 9))) / 3
    assert math.isclose(compressed_bits_per_byte(b"abc", b"abd", "zlib"), expected)


def test_invalid_arguments_are_refused():
    for function in (compressed_bits_per_byte, ngram_bits_per_byte):
        with pytest.raises(ValueError, match="the test text is empty"):
            function(b"abc", "")
    for order in (0, 9):
        with pytest.raises(ValueError, match="1 to 8"):
            ByteNgrams(b"abc", order)
    with pytest.raises(ValueError, match="lzma, zlib"):
        compressed_bits_per_byte(b"abc", b"abc", "gzip")
