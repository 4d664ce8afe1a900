"""Self-supervised objectives of an encoder-decoder: a text is damaged and the decoder writes what is missing.

Each is a pure function of (seed, epoch, index), as every collator is. Rows are ordinary tokens without special ones
(`tokenize_documents(..., special_tokens=False)`); what is read and what is written both end in </s>.
"""

import math
import re
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from decero.data.pairs import Pair, PairCollator
from decero.data.sizes import Sizes, both_sides
from decero.errors import UserError


def sentinels_of(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Ids of the sentinels <extra_id_0>, <extra_id_1> ... in that order, read from the vocabulary.

    T5's own have falling ids, 32099 the first; ours and others' rise.
    """
    found = [
        (int(m[1]), i) for token, i in tokenizer.get_vocab().items() if (m := re.fullmatch(r"<extra_id_(\d+)>", token))
    ]
    return np.array([i for _, i in sorted(found)], dtype=np.int64)


@dataclass
class DenoisingCollator(PairCollator):
    """What the objectives share. `max_length`: of the longest row. `frozen=True` reads every epoch as epoch 0.

    Raises UserError for a tokenizer without an end of text or without padding.
    """

    max_length: int = 512
    seed: int = 0
    frozen: bool = False

    def __post_init__(self):
        missing = [name for name in ("eos_token", "pad_token") if getattr(self.tokenizer, name) is None]
        if missing:
            raise UserError(
                f"tokenizer {self.tokenizer.name_or_path}: it lacks {' and '.join(missing)}, which a decoder needs; "
                "train one with tokenizer.num_sentinels=100"
            )

    def pair(self, row: dict) -> Pair:
        """The damaged text and what the decoder writes, each closed by </s>."""
        rng = np.random.default_rng([self.seed, 0 if self.frozen else row["epoch"], row["index"]])
        read, written = self.damage(np.asarray(row["input_ids"], dtype=np.int64), rng)
        end = self.tokenizer.eos_token_id
        return np.append(read, end), np.append(written, end)

    def damage(self, ids_L: np.ndarray, rng: np.random.Generator) -> Pair:
        """(length,) ids to what is read and what is to be written, both without </s>."""
        raise NotImplementedError

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """What may become of rows of so many ordinary tokens, </s> counted on both sides."""
        raise NotImplementedError


@dataclass
class SpanCorruption(DenoisingCollator):
    """Span corruption: Raffel et al. 2020, sections 3.1.4 and 3.3.4 (T5).

    A share of `mlm_probability` of the tokens is taken out in spans of `mean_noise_span_length` on average. The encoder
    reads one sentinel for each span; the decoder writes each sentinel and the tokens that it stands for.

    Raises UserError when the tokenizer has fewer sentinels than a row of `max_length` tokens needs.
    """

    mlm_probability: float = 0.15
    mean_noise_span_length: float = 3.0
    sentinels: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        self.sentinels = sentinels_of(self.tokenizer)
        _, needed = self.sizes(self.max_length)
        if len(self.sentinels) < needed:
            raise UserError(
                f"tokenizer {self.tokenizer.name_or_path}: span corruption of {self.max_length} tokens needs {needed} "
                f"sentinels (<extra_id_0> ...) and it has {len(self.sentinels)}; train one with "
                f"tokenizer.num_sentinels={needed}, or lower data.max_length"
            )

    def sizes(self, length: int) -> tuple[int, int]:
        """How many of `length` tokens are taken out, and in how many spans."""
        noise = min(max(round(length * self.mlm_probability), 1), length - 1)
        spans = min(max(round(noise / self.mean_noise_span_length), 1), noise, length - noise)
        return noise, spans

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """Known beforehand: only where the spans lie is drawn."""
        lengths, where_N = np.unique(ids_N, return_inverse=True)
        noise_N, spans_N = np.array([self.sizes(int(length)) for length in lengths])[where_N].T
        return both_sides(ids_N - noise_N + spans_N + 1, noise_N + spans_N + 1)

    def damage(self, ids_L: np.ndarray, rng: np.random.Generator) -> Pair:
        """Spans as T5 draws them: every way to cut text and noise into spans is as likely as any other."""
        noise, spans = self.sizes(len(ids_L))
        kept_S, taken_S = _segments(len(ids_L) - noise, spans, rng), _segments(noise, spans, rng)
        ends_S = np.cumsum(kept_S + taken_S)
        read: list[np.ndarray] = []
        written: list[np.ndarray] = []
        for sentinel, end, taken, kept in zip(self.sentinels[:spans], ends_S, taken_S, kept_S, strict=True):
            read += [ids_L[end - taken - kept : end - taken], sentinel[None]]
            written += [sentinel[None], ids_L[end - taken : end]]
        return np.concatenate(read), np.concatenate(written)


def _segments(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of `parts` segments, one at least each, that sum to `total`: uniform over all such cuts."""
    cuts = np.sort(rng.choice(total - 1, size=parts - 1, replace=False)) + 1 if parts > 1 else np.empty(0, dtype=int)
    return np.diff(np.concatenate(([0], cuts, [total])))


@dataclass
class TextInfilling(DenoisingCollator):
    """Text infilling: Lewis et al. 2020 (BART), section 2.2. The decoder writes the whole text.

    Spans of Poisson(`mean_noise_span_length`) tokens become one mask token each until `mlm_probability` of the tokens
    are gone; a span of no tokens puts a mask in between.

    Raises UserError for a tokenizer without a mask token and without sentinels, whose first then serves as one.
    """

    mlm_probability: float = 0.3
    mean_noise_span_length: float = 3.0
    mask: int = field(init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        spare = sentinels_of(self.tokenizer)
        if self.tokenizer.mask_token_id is None and not len(spare):
            raise UserError(f"tokenizer {self.tokenizer.name_or_path}: text infilling needs a mask token or a sentinel")
        self.mask = int(spare[0]) if self.tokenizer.mask_token_id is None else self.tokenizer.mask_token_id

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """At most every span is one of no token: a mask more for each, as long as there are positions for them."""
        left_N = np.maximum(1, np.rint(self.mlm_probability * ids_N)).astype(np.int64)
        longest = both_sides(np.maximum(ids_N, np.minimum(ids_N + left_N, self.max_length)) + 1, ids_N + 1)
        # Spans are drawn until what is to be gone is taken, each taking one at least: a renewal process.
        none, mean = math.exp(-self.mean_noise_span_length), self.mean_noise_span_length
        step = mean + none
        spans_N = (left_N + (mean * mean + step) / (2 * step) - 0.5) / step
        drawn_N = 2 * (ids_N + 1) - left_N + spans_N * (1 + none)  # a mask each; a span of none has taken nothing
        return longest._replace(mean=np.minimum(longest.most, np.rint(drawn_N).astype(np.int64)))

    def damage(self, ids_L: np.ndarray, rng: np.random.Generator) -> Pair:
        length = len(ids_L)
        # Lengths are drawn first, so that spans can then be placed without meeting: kept tokens around them.
        left, lengths = max(1, round(self.mlm_probability * length)), []
        while left > 0:
            lengths.append(min(int(rng.poisson(self.mean_noise_span_length)), left))
            left -= max(lengths[-1], 1)  # a span of none counts as one, or there would be no end of them
        gone = sum(lengths)
        while length - gone + len(lengths) > self.max_length and 0 in lengths:
            lengths.remove(0)  # it would put in a mask for which there is no position
        places = np.sort(rng.choice(length - gone + 1, size=min(len(lengths), length - gone + 1), replace=False))
        read: list[np.ndarray] = []
        at = shift = 0
        for place, span in zip(places, lengths, strict=False):
            read += [ids_L[at : place + shift], np.array([self.mask])]
            shift += span
            at = place + shift
        read.append(ids_L[at:])
        return np.concatenate(read), ids_L


@dataclass
class PrefixLanguageModeling(DenoisingCollator):
    """Prefix language modelling: Raffel et al. 2020, section 3.2.3. The encoder reads the beginning of a text, the
    decoder writes the rest; where it is cut is uniform."""

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """Either side may have all but one of the tokens; together they have them all."""
        return Sizes(read=ids_N, written=ids_N, most=ids_N + 2, mean=ids_N + 2)

    def damage(self, ids_L: np.ndarray, rng: np.random.Generator) -> Pair:
        cut = int(rng.integers(1, len(ids_L)))
        return ids_L[:cut], ids_L[cut:]


OBJECTIVES: dict[str, type[DenoisingCollator]] = {
    "span_corruption": SpanCorruption,
    "text_infilling": TextInfilling,
    "prefix_lm": PrefixLanguageModeling,
}
