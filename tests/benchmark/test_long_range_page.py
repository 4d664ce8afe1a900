"""Pictures of the long-range experiments: an arm looks the same in each, and no arm hides another."""

import pytest

from decero.benchmark.long_range_page import draw

ARMS = ["attention", "LSTM", "GRU", "conv"]


def speed(sequential):
    each = {"tokens_per_s": {"median": 2.0, "quartiles": [1.0, 3.0]}}
    lengths = {length: {"arms": {arm: each | {"sequential": steps} for arm, steps in sequential.items()}}
               for length in ("8", "16")}  # fmt: skip
    return {"lengths": lengths}


def gradients(*arms):
    return {"distances": [1, 5], "arms": {arm: [{"before": [1.0, 0.1], "after": [1.0, 0.2]}] for arm in arms}}


def colors(figure):
    handles, names = figure.axes[0].get_legend_handles_labels()
    lines = [getattr(handle, "lines", [handle])[0] for handle in handles]
    return {name: line.get_color() for name, line in zip(names, lines, strict=True)}


def test_an_arm_has_one_color_in_all_pictures():
    first = colors(draw("gradients", gradients("attention", "GRU"), ARMS))
    second = colors(draw("speed", speed({"LSTM": 7, "GRU": 7, "conv": 2}), ARMS))
    assert first["GRU"] == second["GRU"]
    assert len({**first, **second}) == len({*first.values(), *second.values()}) == 4


@pytest.mark.parametrize("equal", [2, 3])
def test_a_line_on_another_is_dashed(equal):
    depths = dict.fromkeys(ARMS[:equal], 7) | {"conv": 2}
    lines = draw("speed", speed(depths), ARMS).axes[1].get_lines()
    assert [line.is_dashed() for line in lines] == [False, *[True] * (equal - 1), False]
