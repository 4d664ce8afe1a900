"""Heat maps of every family whose rows are attention, one line for the others."""

import pytest

from decero.benchmark.attention_survey import examine, families, survey, table_row, toy_tokenizer

KINDS = {
    "bert": "self 2 x 4",
    "llama": "causal 2 x 4",  # grouped keys and values
    "gemma2": "causal 2 x 4",  # a sliding window
    "t5": "self 2 x 4, causal 2 x 4, cross 2 x 4",
    "deberta-v2": "self 2 x 4",  # attention code of its own
}


def test_five_kinds_of_families_are_recorded_as_they_are():
    tokenizer = toy_tokenizer()
    for family, kinds in KINDS.items():
        found = examine(family, tokenizer)
        assert (found.result, found.attentions, found.lens) == ("heat maps", kinds, 1.0), found
        assert found.off <= 1e-6
        assert found.own_code == (not found.value_norms) == (family == "deberta-v2")
    refused = examine("fnet", tokenizer)
    assert table_row(refused).startswith("| fnet | refused | this fnet model shows no attention: it has none")


@pytest.mark.slow
def test_all_families_are_recorded_or_refused_in_one_line():
    rows = survey()
    assert len(rows) == len(families())
    built = [row for row in rows if row.result != "not built"]
    shown = [row for row in rows if row.result == "heat maps"]
    assert len(built) >= 75
    assert len(shown) >= 72
    assert max(row.off for row in shown) <= 1e-6
    assert sum(row.lens == 1 for row in built) >= 20
    assert all(row.lens in (None, 1) for row in rows)
    assert all(row.why and "\n" not in row.why for row in rows if row.result != "heat maps")
