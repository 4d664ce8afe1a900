"""Read spans from the tags of words, and write them: BIO, IOB1 and BIOES.

Sources: Ramshaw & Marcus 1995 (IOB1); Tjong Kim Sang & Veenstra 1999 (BIO, there IOB2); Uchimoto et al. 2000 (BIOES).
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

Span = tuple[int, int, str]  # first word, the word behind the last, label
OUTSIDE = "O"
PREFIXES = {"BIO": "BI", "IOB1": "BI", "BIOES": "BIES"}
SHAPE = re.compile(r"([BIES])-(.+)", re.DOTALL)


def split_tag(tag: str) -> tuple[str, str]:
    """Return the prefix and the label of a tag: `B-PER` is ("B", "PER"). Anything else is ("O", "")."""
    found = SHAPE.fullmatch(tag)
    return (found[1], found[2]) if found else (OUTSIDE, "")


def as_bioes(names: Sequence[str]) -> list[str]:
    """Return the tags of BILOU (B, I, L, O, U) as those of BIOES: L- is E-, and U- is S-. Others stay as they are."""
    prefixes = {name[:2] for name in names}
    if "B-" not in prefixes or not prefixes & {"L-", "U-"} or prefixes & {"E-", "S-"}:
        return list(names)
    return [{"L-": "E-", "U-": "S-"}.get(name[:2], name[:2]) + name[2:] for name in names]


def find_scheme(rows: Iterable[Sequence[str]]) -> str:
    """Return the scheme of tagged rows: BIOES, IOB1, BIO, or `none` where tags have no prefixes.

    IOB1 begins a span with I-, and writes B- only behind a span of the same label. So rows where I- begins spans, and
    no B- stands elsewhere, are IOB1.
    """
    names: set[str] = set()
    by_inside = by_begin = False
    for row in rows:
        names.update(row)
        before = ""
        for prefix, label in map(split_tag, row):
            by_inside |= prefix == "I" and label != before
            by_begin |= prefix == "B" and label != before
            before = label
    prefixes = {split_tag(name)[0] for name in names} - {OUTSIDE}
    others = [name for name in names if name != OUTSIDE and split_tag(name)[0] == OUTSIDE]
    if not prefixes or (others and "B" not in prefixes):
        return "none"
    if prefixes & {"E", "S"}:
        return "BIOES"
    return "IOB1" if by_inside and not by_begin else "BIO"


def fits(tag: str, scheme: str) -> bool:
    """Return whether a scheme has such a tag."""
    return scheme == "none" or tag == OUTSIDE or split_tag(tag)[0] in PREFIXES[scheme]


def read_spans(tags: Sequence[str], scheme: str) -> list[Span]:
    """Return the spans of a row of tags, as seqeval reads them in strict mode.

    BIO: B- begins a span, I- of the same label continues it; any other I- is outside. IOB1: also such an I- begins one.
    BIOES: a span is S-, or B-, I- ..., E- of one label; an incomplete one is outside.
    """
    spans: list[Span] = []
    start, open_label = 0, ""  # of a span that has begun
    for place, (prefix, label) in enumerate([*map(split_tag, tags), (OUTSIDE, "")]):
        continues = bool(open_label) and label == open_label and prefix in "IE"
        if scheme == "BIOES":
            if prefix == "S" or (continues and prefix == "E"):
                spans.append((place if prefix == "S" else start, place + 1, label))
            start = start if continues else place
            open_label = label if prefix == "B" or (continues and prefix == "I") else ""
            continue
        if continues:
            continue
        if open_label:
            spans.append((start, place, open_label))
        begins = prefix == "B" or (prefix == "I" and scheme == "IOB1")
        start, open_label = place, label if begins else ""
    return spans


def write_tags(spans: Iterable[Span], length: int, scheme: str) -> list[str]:
    """Return the tags of `length` words with these spans, which do not overlap."""
    tags = [OUTSIDE] * length
    ends: dict[int, str] = {}
    for start, stop, label in sorted(spans):
        inside = ["I"] * (stop - start)
        if scheme != "IOB1" or ends.get(start) == label:
            inside[0] = "B"
        if scheme == "BIOES":
            inside[-1] = "S" if stop - start == 1 else "E"
        tags[start:stop] = [f"{prefix}-{label}" for prefix in inside]
        ends[stop] = label
    return tags


def learnt_scheme(scheme: str) -> str:
    """Return the scheme of the tags that a model learns: IOB1 is converted to BIO."""
    return "BIO" if scheme == "IOB1" else scheme


def tag_names(labels: Iterable[str], scheme: str) -> list[str]:
    """Return every tag of these labels."""
    if scheme == "none":
        return list(labels)
    return [OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in PREFIXES[scheme])]


def best_tags(log_probability_WC: np.ndarray, names: Sequence[str], scheme: str) -> np.ndarray:
    """Return the likeliest row of tags that the scheme allows, ids (words,).

    log_probability_WC: (words, tags). names: of the tags. Only BIO and BIOES forbid anything. A tag that is no tag of
    the scheme counts as outside.
    Source: Viterbi 1967.
    """
    first_W = log_probability_WC.argmax(axis=1)
    if scheme not in ("BIO", "BIOES") or not len(first_W):
        return first_W
    begins_C, follows_CC, ends_C = _allowed(tuple(names), scheme)
    if begins_C[first_W[0]] and ends_C[first_W[-1]] and follows_CC[first_W[:-1], first_W[1:]].all():
        return first_W  # nothing is likelier
    never = -1e9
    cost_CC = np.where(follows_CC, 0.0, never)
    score_C = log_probability_WC[0].astype(np.float64) + np.where(begins_C, 0.0, never)
    back = np.zeros(log_probability_WC.shape, dtype=np.int64)
    for word in range(1, len(first_W)):
        reached_CC = score_C[:, None] + cost_CC
        back[word] = reached_CC.argmax(axis=0)
        score_C = reached_CC.max(axis=0) + log_probability_WC[word]
    best = [int((score_C + np.where(ends_C, 0.0, never)).argmax())]
    for word in range(len(first_W) - 1, 0, -1):
        best.append(int(back[word, best[-1]]))
    return np.array(best[::-1])


def _allowed(names: tuple[str, ...], scheme: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which tags may begin a row (C,), follow each other (C, C), and end a row (C,)."""
    tags = [split_tag(name) for name in names]
    inside = np.array([prefix in "IE" for prefix, _ in tags])
    opens = np.array([prefix in "BI" for prefix, _ in tags])
    same = np.array([[one[1] == other[1] for other in tags] for one in tags])
    follows = ~inside | (opens[:, None] & same)  # I- and E- continue a span of their label
    if scheme == "BIO":
        return ~inside, follows, np.ones(len(tags), dtype=bool)
    return ~inside, np.where(opens[:, None], inside & same, follows), ~opens  # what has begun must end
