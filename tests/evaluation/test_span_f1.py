"""Span F1 is seqeval's in strict mode, and adds up from what single texts add."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.scheme import IOB2, IOBES

from decero.data.tag_schemes import read_spans
from decero.evaluation.span_f1 import by_label, count_items, span_metrics, span_statistics


def spans_of(tags, scheme):
    return [((start, stop), label) for start, stop, label in read_spans(tags, scheme)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("scheme", "theirs", "prefixes"), [("BIO", IOB2, "BI"), ("BIOES", IOBES, "BIES")])
@given(data=st.data())
def test_the_scores_are_those_of_seqeval_in_strict_mode(scheme, theirs, prefixes, data):
    tags = st.sampled_from(["O", *(f"{prefix}-{label}" for prefix in prefixes for label in "XY")])
    sizes = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    said, true = ([[data.draw(tags) for _ in range(size)] for size in sizes] for _ in range(2))
    counts = count_items(*([spans_of(row, scheme) for row in rows] for rows in (said, true)), ["X", "Y"])
    strict = {"mode": "strict", "scheme": theirs, "zero_division": 0}
    found = span_metrics(counts)
    assert found["f1"] == pytest.approx(f1_score(true, said, **strict))
    assert found["precision"] == pytest.approx(precision_score(true, said, **strict))
    assert found["recall"] == pytest.approx(recall_score(true, said, **strict))
    if any(spans_of(row, scheme) for row in (*said, *true)):
        assert found["f1_macro"] == pytest.approx(f1_score(true, said, average="macro", **strict))
        report = classification_report(true, said, output_dict=True, **strict)
        for label, figures in by_label(counts, ["X", "Y"]).items():
            theirs_of = report[label]
            assert figures["f1"] == pytest.approx(theirs_of["f1-score"])
            assert figures["references"] == theirs_of["support"]
    for metric, value in found.items():
        rows, score = span_statistics(metric, counts)
        assert len(rows) == len(sizes)
        assert score(rows.sum(axis=0)) == pytest.approx(value)


def test_figures_by_hand():
    said = [[((0, 2), "X"), ((3, 4), "Y")], [], [((0, 1), "X")]]
    true = [[((0, 2), "X"), ((3, 4), "X")], [((5, 6), "Y")], [((0, 1), "X")]]
    counts = count_items(said, true, ["X", "Y"])
    expected = {"f1": 4 / 7, "precision": 2 / 3, "recall": 1 / 2, "f1_macro": (4 / 5 + 0) / 2}
    assert span_metrics(counts) == pytest.approx(expected)
