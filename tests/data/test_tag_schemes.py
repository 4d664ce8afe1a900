"""Tags and spans: read as seqeval reads them in strict mode, written and read back."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB2, IOBES, Entities

from decero.data.tag_schemes import best_tags, find_scheme, fits, read_spans, tag_names, write_tags


@pytest.mark.parametrize(("scheme", "theirs", "prefixes"), [("BIO", IOB2, "BI"), ("BIOES", IOBES, "BIES")])
@given(data=st.data())
def test_spans_are_those_of_seqeval_in_strict_mode(scheme, theirs, prefixes, data):
    tags = ["O", *(f"{prefix}-{label}" for prefix in prefixes for label in ("X", "Y-Z"))]
    row = data.draw(st.lists(st.sampled_from(tags), min_size=1, max_size=13))
    assert read_spans(row, scheme) == [(e.start, e.end, e.tag) for e in Entities([row], theirs).entities[0]]


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES"])
@given(data=st.data())
def test_written_spans_are_read_back_and_their_scheme_is_found(scheme, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, 17), min_size=2)))
    spans = [(a, b, data.draw(st.sampled_from("XY"))) for a, b in itertools.pairwise(cuts) if data.draw(st.booleans())]
    tags = write_tags(spans, 19, scheme)
    assert len(tags) == 19
    assert read_spans(tags, scheme) == spans
    assert all(fits(tag, scheme) for tag in tags)
    assert find_scheme([tags]) == (scheme if spans else "none")


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["B-X", "I-X", "O", "I-X"], "BIO"),  # I- behind O begins nothing, but the others are BIO
        (["I-X", "I-X", "O", "I-X", "B-X"], "IOB1"),
        (["B-X", "E-X", "O"], "BIOES"),
        (["S-X", "O"], "BIOES"),
        (["NOUN", "VERB", "O"], "none"),
        (["E-mail", "NOUN"], "none"),
        (["O", "O"], "none"),
    ],
)
def test_the_scheme_of_tags_is_found(tags, scheme):
    assert find_scheme([tags]) == scheme


def test_strict_and_lenient_reading_differ_in_lone_inside_tags():
    tags = ["I-X", "O", "B-X", "I-Y", "I-X"]
    assert read_spans(tags, "BIO") == [(2, 3, "X")]
    assert read_spans(tags, "IOB1") == [(0, 1, "X"), (2, 3, "X"), (3, 4, "Y"), (4, 5, "X")]


@pytest.mark.parametrize("scheme", ["BIO", "BIOES", "none"])
def test_the_best_tags_are_the_likeliest_allowed_row(scheme):
    """Against all rows of four words."""
    names = tag_names(["X", "Y"], scheme)
    for seed in range(20):
        scores = np.log(np.random.default_rng(seed).dirichlet(np.ones(len(names)), size=4))
        allowed = []
        for row in itertools.product(range(len(names)), repeat=4):
            tags = [names[i] for i in row]
            if scheme == "none" or write_tags(read_spans(tags, scheme), 4, scheme) == tags:
                allowed.append((sum(scores[w, i] for w, i in enumerate(row)), row))
        assert tuple(best_tags(scores, names, scheme)) == max(allowed)[1]
