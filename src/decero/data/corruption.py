"""Self-supervised objectives for an encoder-decoder: corrupt a text and let the decoder write what is missing.

Each is a pure function of (seed, epoch, index), like every collator. Rows have no special tokens
(`tokenize_documents(..., special_tokens=False)`). Input and target both end with </s>.
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
    """Return the ids of the sentinels <extra_id_0>, <extra_id_1> ... in that order, from the vocabulary.

    In T5's own tokenizer the ids fall (32099 is the first); in decero's and others they rise.
    """
    found = [
        (int(m[1]), i) for token, i in tokenizer.get_vocab().items() if (m := re.fullmatch(r"<extra_id_(\d+)>", token))
    ]
    return np.array([i for _, i in sorted(found)], dtype=np.int64)


@dataclass
class DenoisingCollator(PairCollator):
    """The base of the objectives below.

    max_length: tokens of the longest row. frozen: treat every epoch as epoch 0.
    Raises UserError for a tokenizer without an end token or a padding token.
    """

    max_length: int = 512
    seed: int = 0
    frozen: bool = False

    def __post_init__(self):
        missing = [name for name in ("eos_token", "pad_token") if getattr(self.tokenizer, name) is None]
        if missing:
            raise UserError(
                f"tokenizer {self.tokenizer.name_or_path}: no {' and no '.join(missing)}, which a decoder needs; "
                "train one with tokenizer.num_sentinels=100"
            )

    def pair(self, row: dict) -> Pair:
        """Return the corrupted text and the target, each with </s> at its end."""
        rng = np.random.default_rng([self.seed, 0 if self.frozen else row["epoch"], row["index"]])
        source, target = self.corrupt(np.asarray(row["input_ids"], dtype=np.int64), rng)
        end = self.tokenizer.eos_token_id
        return np.append(source, end), np.append(target, end)

    def corrupt(self, ids_L: np.ndarray, rng: np.random.Generator) -> Pair:
        """Turn (length,) ids into source and target, both without </s>."""
        raise NotImplementedError

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """Return the possible sizes of rows with these numbers of ordinary tokens, with </s> on both sides."""
        raise NotImplementedError


@dataclass
class SpanCorruption(DenoisingCollator):
    """Replace spans of tokens by sentinels: span corruption of T5 (Raffel et al. 2020, sections 3.1.4, 3.3.4).

    A share `mlm_probability` of the tokens is removed, in spans of `mean_noise_span_length` tokens on average. The
    encoder reads one sentinel per span. The decoder writes each sentinel and the tokens that it replaces.

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
        """Return how many of `length` tokens are removed, and in how many spans."""
        noise = min(max(round(length * self.mlm_probability), 1), length - 1)
        spans = min(max(round(noise / self.mean_noise_span_length), 1), noise, length - noise)
        return noise, spans

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """Return exact sizes: only the positions of the spans are random."""
        lengths, index_N = np.unique(ids_N, return_inverse=True)
        noise_N, spans_N = np.array([self.sizes(int(length)) for length in lengths])[index_N].T
        return both_sides(ids_N - noise_N + spans_N + 1, noise_N + spans_N + 1)

    def corrupt(self, ids_L: np.ndarray, rng: np.random.Generator) -> Pair:
        """Draw spans as T5 does: uniformly over all ways to cut text and noise into spans."""
        noise, spans = self.sizes(len(ids_L))
        kept_S, taken_S = _segments(len(ids_L) - noise, spans, rng), _segments(noise, spans, rng)
        ends_S = np.cumsum(kept_S + taken_S)
        source: list[np.ndarray] = []
        target: list[np.ndarray] = []
        for sentinel, end, taken, kept in zip(self.sentinels[:spans], ends_S, taken_S, kept_S, strict=True):
            source += [ids_L[end - taken - kept : end - taken], sentinel[None]]
            target += [sentinel[None], ids_L[end - taken : end]]
        return np.concatenate(source), np.concatenate(target)


def _segments(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the lengths of `parts` segments, each at least 1, that sum to `total`; uniform over all such cuts."""
    cuts = np.sort(rng.choice(total - 1, size=parts - 1, replace=False)) + 1 if parts > 1 else np.empty(0, dtype=int)
    return np.diff(np.concatenate(([0], cuts, [total])))


@dataclass
class TextInfilling(DenoisingCollator):
    """Replace spans of tokens by one mask each: text infilling of BART (Lewis et al. 2020, section 2.2).

    Span lengths are Poisson(`mean_noise_span_length`), until a share `mlm_probability` of the tokens is gone. A span of
    length 0 inserts a mask. The decoder writes the whole text.

    Without a mask token the first sentinel is the mask. Raises UserError for a tokenizer with neither.
    """

    mlm_probability: float = 0.3
    mean_noise_span_length: float = 3.0
    mask: int = field(init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        sentinels = sentinels_of(self.tokenizer)
        if self.tokenizer.mask_token_id is None and not len(sentinels):
            raise UserError(f"tokenizer {self.tokenizer.name_or_path}: text infilling needs a mask token or a sentinel")
        self.mask = int(sentinels[0]) if self.tokenizer.mask_token_id is None else self.tokenizer.mask_token_id

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """Return sizes where, at most, every span has length 0 and adds a mask, while there are positions left."""
        left_N = np.maximum(1, np.rint(self.mlm_probability * ids_N)).astype(np.int64)
        longest = both_sides(np.maximum(ids_N, np.minimum(ids_N + left_N, self.max_length)) + 1, ids_N + 1)
        # Spans are drawn until enough tokens are removed, and each counts as at least one token: a renewal process.
        p_empty, mean = math.exp(-self.mean_noise_span_length), self.mean_noise_span_length
        step = mean + p_empty
        spans_N = (left_N + (mean * mean + step) / (2 * step) - 0.5) / step
        drawn_N = 2 * (ids_N + 1) - left_N + spans_N * (1 + p_empty)  # a mask per span; an empty span removes nothing
        return longest._replace(mean=np.minimum(longest.most, np.rint(drawn_N).astype(np.int64)))

    def corrupt(self, ids_L: np.ndarray, rng: np.random.Generator) -> Pair:
        length = len(ids_L)
        # Draw the lengths first. Then spans can be placed with kept tokens between them.
        left, lengths = max(1, round(self.mlm_probability * length)), []
        while left > 0:
            lengths.append(min(int(rng.poisson(self.mean_noise_span_length)), left))
            left -= max(lengths[-1], 1)  # an empty span counts as one token, so that the loop ends
        removed = sum(lengths)
        while length - removed + len(lengths) > self.max_length and 0 in lengths:
            lengths.remove(0)  # there is no position for its mask
        kept = length - removed
        starts = np.sort(rng.choice(kept + 1, size=min(len(lengths), kept + 1), replace=False))
        source: list[np.ndarray] = []
        position = shift = 0
        for start, span in zip(starts, lengths, strict=False):
            source += [ids_L[position : start + shift], np.array([self.mask])]
            shift += span
            position = start + shift
        source.append(ids_L[position:])
        return np.concatenate(source), ids_L


@dataclass
class PrefixLanguageModeling(DenoisingCollator):
    """Encode the beginning of a text and let the decoder write the rest; the cut is uniform.

    Source: prefix language modelling, Raffel et al. 2020, section 3.2.3.
    """

    def example_sizes(self, ids_N: np.ndarray, labels_N: np.ndarray) -> Sizes:
        """Return sizes where either side has at most all tokens but one, and both together have all."""
        return Sizes(read=ids_N, written=ids_N, most=ids_N + 2, mean=ids_N + 2)

    def corrupt(self, ids_L: np.ndarray, rng: np.random.Generator) -> Pair:
        cut = int(rng.integers(1, len(ids_L)))
        return ids_L[:cut], ids_L[cut:]


OBJECTIVES: dict[str, type[DenoisingCollator]] = {
    "span_corruption": SpanCorruption,
    "text_infilling": TextInfilling,
    "prefix_lm": PrefixLanguageModeling,
}
