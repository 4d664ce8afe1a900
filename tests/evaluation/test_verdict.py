"""When a winner is named, and the wording of a verdict."""

import math
from dataclasses import replace

import numpy as np
import pytest

from decero.errors import UserError
from decero.evaluation import ScoredRun, judge
from decero.evaluation.corpus_tests import ratio
from decero.evaluation.examples import class_statistics
from decero.evaluation.statistics import shared_luck

N = 97


def run(contender, budget, seed, right, **more):
    """A run with a share `right` of correct answers; the same easy examples are right first for every contender."""
    scores = (np.arange(N) < round(right * N)).astype(float)
    fields = {"metrics": {"accuracy": scores.mean()}, "scores": scores, "wall_time_s": 60.0}
    return ScoredRun(contender, budget, seed, "ok", **({"num_parameters": 4_400_000} | fields | more))


def failed(contender, budget, seed, error="RuntimeError: out of memory"):
    return ScoredRun(contender, budget, seed, "failed", error=error)


def seeds(contender, budget, *shares, **more):
    return [run(contender, budget, seed, share, **more) for seed, share in enumerate(shares)]


def test_a_clear_winner_and_a_clear_loser_are_named():
    ours, weak = seeds("ours", 50, 0.86, 0.87, 0.88), seeds("random", 50, 0.60, 0.61, 0.60)
    verdict = judge(ours + weak, metric="accuracy", reference="ours", seed=0)
    (comparison,) = verdict.comparisons
    assert (comparison.word, comparison.winner, comparison.seeds) == ("ours better", "ours", (0, 1, 2))
    assert comparison.low < comparison.difference < comparison.high
    assert comparison.difference == pytest.approx(np.mean([r.scores for r in ours]) - np.mean([r.scores for r in weak]))
    (sentence,) = verdict.sentences()
    assert sentence.startswith("With 50 labels, ours (86.6 ± 1.0) beats random (60.1 ± 0.6) by 26.5 points [")
    assert sentence.endswith("], p < 0.001.")

    lost = judge(ours + weak, metric="accuracy", reference="random", seed=0)
    (mirrored,) = lost.comparisons
    assert (mirrored.word, mirrored.winner) == ("ours better", "ours")
    assert mirrored.difference == pytest.approx(-comparison.difference)
    assert "random (60.1 ± 0.6) loses to ours (86.6 ± 1.0) by 26.5 points [" in lost.sentences()[0]


def test_a_lucky_training_is_not_a_difference():
    ours, other = seeds("ours", None, 0.50, 0.60, 0.95), seeds("other", None, 0.55, 0.57, 0.56)
    verdict = judge(ours + other, metric="accuracy", reference="ours", seed=0)
    (comparison,) = verdict.comparisons
    assert comparison.p_adjusted < 0.05, "the permutation test alone would have named a winner"
    assert comparison.low < 0 < comparison.high
    assert (comparison.word, comparison.winner) == ("no difference shown", None)
    assert verdict.sentences()[0].startswith("With all labels, no difference is shown between ours")
    assert "the random seed of training could explain it" in verdict.sentences()[0]


def test_identical_contenders_have_no_difference():
    verdict = judge(seeds("a", 5, 0.5, 0.6) + seeds("b", 5, 0.5, 0.6), metric="accuracy", reference="a", seed=0)
    assert verdict.comparisons[0].p == verdict.comparisons[0].p_adjusted == 1.0
    assert verdict.comparisons[0].word == "no difference shown"


def test_only_seeds_that_succeeded_for_both_are_paired():
    runs = [run("ours", 9, 0, 0.9), run("ours", 9, 1, 0.1), run("ours", 9, 2, 0.9)]
    runs += [run("b", 9, 2, 0.4), failed("b", 9, 1), run("b", 9, 0, 0.4)]
    verdict = judge(runs, metric="accuracy", reference="ours", seed=0)
    assert verdict.comparisons[0].seeds == (0, 2)
    assert verdict.comparisons[0].difference == pytest.approx((round(0.9 * N) - round(0.4 * N)) / N)
    assert verdict.sentences()[0].endswith("(paired over 2 of 3 seeds).")
    cell = verdict.cell("b", 9)
    assert (cell.n_ok, cell.n_failed, sorted(cell.values)) == (2, 1, [0, 2])
    assert "(1 of 3 failed)" in verdict.table()


def test_a_missing_comparison_has_its_reason():
    runs = [run("ours", 9, 0, 0.9), failed("b", 9, 0), run("ours", None, 0, 0.9), run("c", None, 3, 0.9)]
    verdict = judge(runs, metric="accuracy", reference="ours", seed=0)
    reasons = {(c.other, c.budget): c.reason for c in verdict.comparisons}
    assert reasons == {
        ("b", 9): "every run of b failed",
        ("c", 9): "c has no run with this budget",
        ("b", None): "b has no run with this budget",
        ("c", None): "no seed succeeded for both",
    }
    assert {c.word for c in verdict.comparisons} == {"not comparable"}
    assert all(math.isnan(c.p_adjusted) for c in verdict.comparisons)
    assert verdict.sentences()[0] == "With 9 labels, ours and b are not comparable: every run of b failed."


def test_holm_counts_only_the_comparisons_that_were_made():
    shares = {"ours": 0.60, "b": 0.50, "c": 0.52}
    runs = [r for name, share in shares.items() for r in seeds(name, 7, share, share)] + [failed("d", 7, 0)]
    p = {c.other: (c.p, c.p_adjusted) for c in judge(runs, metric="accuracy", reference="ours", seed=0).comparisons}
    small, large = sorted([p["b"], p["c"]])
    assert small[1] == pytest.approx(2 * small[0])
    assert large[1] == pytest.approx(max(large[0], small[1]))


def test_the_table_orders_budgets_and_marks_cells():
    runs = [r for b in (None, 1000, 50) for r in seeds("ours", b, 0.8, 0.8, upfront_wall_time_s=7200.0)]
    runs += seeds("best|one", 50, 0.99, 0.98) + seeds("worst", 1000, 0.2, 0.3) + seeds("twin", None, 0.8, 0.8)
    verdict = judge(runs, metric="accuracy", reference="ours", seed=0)
    assert verdict.budgets == (50, 1000, None)
    lines = verdict.table().splitlines()
    assert lines[0].startswith(
        "| contender | 50 labels | 1,000 labels | all labels | parameters | median time per run |"
    )
    assert lines[2] == "| ours | 80.4 ± 0.0 | 80.4 ± 0.0 | 80.4 ± 0.0 | 4.4 M | 1.0 min | 2.0 h |"
    assert lines[3].startswith(r"| best\|one | 98.5 ± 0.7 ▲ | – | – |")
    assert lines[4].startswith("| worst | – | 24.7 ± 7.3 ▼ | – |")
    assert lines[5].startswith("| twin | – | – | 80.4 ± 0.0 ≈ |")
    assert verdict.summary()[0] == "ours against best|one, 3 label budgets: worse at 1, not comparable at 2."
    assert "ours 1.0 min, after one pretraining of 2.0 h" in verdict.cost()


def test_memory_is_shown_where_optimizers_are_compared():
    runs = seeds("AdamW", None, 0.8, 0.8, peak_memory_bytes=3 * 2**20) + seeds("SGD", None, 0.6, 0.6)
    plain = judge(runs, metric="accuracy", reference="AdamW", seed=0)
    assert "peak memory" not in plain.table()
    verdict = judge(runs, metric="accuracy", reference="AdamW", seed=0, settings={"AdamW": "", "SGD": "name sgd"})
    lines = verdict.table().splitlines()
    assert "| median time per run | peak memory |" in lines[0]
    assert "| 1.0 min | 3 MiB |" in lines[2]


def test_sentences_tell_the_metric_from_the_example_score():
    better = [run("ours", 9, s, 0.9, metrics={"f1_macro": 0.30}) for s in range(3)]
    worse = [run("b", 9, s, 0.5, metrics={"f1_macro": 0.40}) for s in range(3)]
    (sentence,) = judge(better + worse, metric="f1_macro", reference="ours", seed=0).sentences()
    assert "ours (30.0 ± 0.0) beats b (40.0 ± 0.0): 40.2 points [" in sentence
    assert "more right answers per example for ours" in sentence
    assert "but macro F1 points the other way" in sentence


def test_regression_differences_have_the_unit_of_the_error():
    rng = np.random.default_rng(0)
    runs = []
    for name, noise in (("ours", 0.1), ("b", 0.5)):
        for seed in range(3):
            scores = (noise * rng.normal(size=N)) ** 2
            runs.append(run(name, 9, seed, 0, scores=scores, metrics={"mse": scores.mean()}))
    verdict = judge(runs, metric="mse", reference="ours", seed=0)
    assert verdict.comparisons[0].winner == "ours"
    assert "points" not in verdict.sentences()[0]
    assert "ours (0.010 ± " in verdict.sentences()[0]


def test_a_single_seed_says_what_is_missing():
    verdict = judge([run("a", 9, 0, 0.9), run("b", 9, 0, 0.4)], metric="accuracy", reference="a", seed=0)
    assert "a (89.7) beats b (40.2)" in verdict.sentences()[0]
    assert "the interval does not include the variation between seeds" in verdict.sentences()[0]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no runs"),
        ([run("our", 9, 0, 0.5)], "did you mean our"),
        ([run("ours", 9, 0, 0.5)] * 2, "two such runs"),
        ([run("ours", 9, 0, 0.5, metrics={"acuracy": 1.0})], "did you mean acuracy"),
        ([run("ours", 9, 0, 0.5, scores=None)], "no per-example scores"),
        ([run("ours", 9, 0, 0.5), run("b", 9, 0, 0.5, scores=np.ones(3))], "scored 3 test examples, others 97"),
    ],
)
def test_runs_that_cannot_be_judged_are_named(runs, message):
    with pytest.raises(UserError, match=message):
        judge(runs, metric="accuracy", reference="ours", seed=0)


def rate_runs(name, nats, seeds=range(3), metric="bits_per_byte", size=11):
    """Runs whose metric is a ratio of sums."""
    rng, runs = np.random.default_rng(round(10 * nats)), []
    for seed in seeds:
        weight = np.arange(1, size + 1) * 1.0
        rows = np.stack([weight * (nats + 0.05 * rng.normal(size=size) + 0.001 * seed), weight], axis=1)
        value = rows[:, 0].sum() / rows[:, 1].sum()
        runs.append(ScoredRun(name, None, seed, "ok", None, {metric: value}, rows))
    return runs


def test_lower_bits_win_and_the_sentence_says_by_how_many():
    runs = rate_runs("ours", 1.5) + rate_runs("b", 1.7)
    verdict = judge(runs, metric="bits_per_byte", reference="ours", score_of_sum=ratio, unit="", n_resamples=500)
    (comparison,) = verdict.comparisons
    assert comparison.winner == "ours"
    assert comparison.difference == pytest.approx(-0.2, abs=0.02)
    assert comparison.low < comparison.difference < comparison.high < 0
    assert verdict.sentences()[0].startswith("ours (1.500 ± 0.018) beats b (1.692 ± 0.036) by 0.192 [0.083, 0.301]")
    assert verdict.table().startswith("| contender | bits a byte | parameters |")
    assert "labels" not in verdict.table() + verdict.sentences()[0] + str(verdict.record())
    lost = judge(runs, metric="bits_per_byte", reference="b", score_of_sum=ratio, unit="", n_resamples=500)
    assert lost.comparisons[0].difference == -comparison.difference
    assert "b (1.692 ± 0.036) loses to ours (1.500 ± 0.018) by 0.192 [" in lost.sentences()[0]


def test_what_means_another_thing_is_refused_with_its_reason():
    other = [replace(run, scores=run.scores[:5]) for run in rate_runs("b", 1.0, metric="loss")]
    runs = rate_runs("ours", 1.5, metric="loss") + other
    why = {"b": "b has another tokenizer"}
    verdict = judge(runs, metric="loss", reference="ours", score_of_sum=ratio, unit="", incomparable=why)
    assert verdict.sentences() == ["ours and b are not comparable: b has another tokenizer."]
    assert math.isnan(verdict.cell("b", None).mean)
    assert "| b | – ? |" in verdict.table()


def test_rows_of_a_mean_give_the_bits_that_scores_give():
    runs = seeds("ours", 9, 0.8, 0.9, 0.7) + seeds("b", 9, 0.7, 0.6, 0.7)
    rows = [replace(run, scores=np.stack([run.scores, np.ones(N)], axis=1)) for run in runs]
    plain = judge(runs, metric="accuracy", reference="ours").comparisons
    assert judge(rows, metric="accuracy", reference="ours", score_of_sum=ratio).comparisons == plain


def test_macro_f1_itself_is_compared_where_its_counts_are_there():
    rng, runs = np.random.default_rng(0), []
    true = rng.integers(0, 3, 90)
    for name, luck in (("ours", 0.9), ("b", 0.5)):
        for seed in range(2):
            said = np.where(rng.random(90) < luck, true, rng.integers(0, 3, 90))
            rows, score = class_statistics("single_label_classification", "f1_macro", said, true, 3)
            metrics = {"f1_macro": float(score(rows.sum(axis=0)))}
            runs.append(ScoredRun(name, 9, seed, "ok", None, metrics, rows))
    verdict = judge(runs, metric="f1_macro", reference="ours", score_of_sum=score, n_resamples=500)
    means = [verdict.cell(name, 9).mean for name in ("ours", "b")]
    assert verdict.comparisons[0].difference == pytest.approx(means[0] - means[1])
    assert "right answers" not in verdict.sentences()[0]


def pretrained(shares, names="abc", **more):
    """Two seeds a checkpoint: the luck of pretraining is shared, that of fine-tuning is tiny."""
    return [
        run(
            "ours",
            9,
            seed,
            shares[seed % len(names)] + 0.01 * (seed // len(names)),
            pretraining=f"{name}/model",
            **more,
        )
        for seed, name in enumerate(names * 2)
    ]


def test_seeds_of_one_pretraining_count_as_one_run():
    lucky = (0.50, 0.55, 0.60)
    ours, other = pretrained(lucky), seeds("other", 9, *[0.5] * 6)
    alone = [replace(r, pretraining=None) for r in ours]
    found, blind = (
        judge(runs + other, metric="accuracy", reference="ours", seed=0).comparisons[0] for runs in (ours, alone)
    )
    averages = [
        ScoredRun("ours", 9, s, "ok", metrics={"accuracy": 0.0}, scores=(ours[s].scores + ours[s + 3].scores) / 2)
        for s in range(3)
    ]
    by_hand = judge(averages + seeds("other", 9, *[0.5] * 3), metric="accuracy", reference="ours", seed=0)
    assert (found.low, found.high) == (by_hand.comparisons[0].low, by_hand.comparisons[0].high)
    assert found.high - found.low > 1.3 * (blind.high - blind.low), "six runs are not six pretrainings"
    assert found.difference == pytest.approx(blind.difference)


def test_seeds_that_share_a_checkpoint_of_either_are_one_cluster():
    a, b = "aAaA", "bBcC"
    assert shared_luck([a, b]) == [0, 1, 0, 1]
    assert shared_luck(["abcd", "bBbB"]) == [0, 1, 0, 1]
    assert shared_luck(["abab", [None] * 4]) == [0, 1, 0, 1]
    assert shared_luck(["aaaa", [None] * 4]) is None
    assert shared_luck(["ababab", "cdecde"]) == [0] * 6
    ours = pretrained((0.5, 0.55, 0.6))
    other = [replace(r, contender="other") for r in pretrained((0.5, 0.6), "ab") + pretrained((0.5, 0.6), "ab")[:2]]
    other = [replace(r, seed=seed) for seed, r in enumerate(other)]
    found = judge(ours + other, metric="accuracy", reference="ours").comparisons[0]
    assert (found.word, found.reason) == (
        "not comparable", "checkpoints of ours and other share seeds; give both the same number"
    )  # fmt: skip


def test_one_pretraining_is_said_where_the_result_stands():
    ours = [replace(r, upfront_wall_time_s=120.0) for r in pretrained((0.8,), "a")]
    verdict = judge(ours + seeds("other", 9, 0.5, 0.5), metric="accuracy", reference="ours", seed=0)
    assert verdict.sentences()[0].endswith("(one pretraining of ours: another one may give another result).")
    three = judge(
        pretrained((0.8, 0.81, 0.79), upfront_wall_time_s=120.0) + seeds("other", 9, *[0.5] * 6),
        metric="accuracy", reference="ours", seed=0,
    )  # fmt: skip
    assert "pretraining of" not in three.sentences()[0]
    assert "| 3 × 2.0 min |" in three.table()
    assert "over seeds and pretrainings." in three.table()
    assert "ours 1.0 min, after 3 pretrainings of 2.0 min each" in three.cost()


def test_the_time_of_a_run_is_the_median():
    ours = [run("ours", 9, s, 0.5, wall_time_s=t) for s, t in enumerate((10.0, 11.0, 900.0))]
    verdict = judge(ours + seeds("b", 9, 0.4, 0.4, 0.4), metric="accuracy", reference="ours", seed=0)
    assert verdict.cell("ours", 9).wall_time_s == 11.0
    assert verdict.cost() == "Median time of a run: ours 11.0 s; b 1.0 min."


def test_settings_that_differ_stand_in_the_table():
    runs = seeds("ours", 9, 0.5, 0.6) + seeds("b", 9, 0.4, 0.4)
    verdict = judge(runs, metric="accuracy", reference="ours", seed=0, settings={"b": "learning_rate 0.0003"})
    lines = verdict.table().splitlines()
    assert lines[0].endswith("| own settings |")
    assert lines[2].endswith("| – |")
    assert lines[3].endswith("| learning_rate 0.0003 |")
