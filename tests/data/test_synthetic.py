"""Synthetic tasks: rows are pure functions, splits share nothing that could be learnt by heart, solvers solve them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decero.data.collators import IGNORED
from decero.data.list_ops import END, MAX, MED, MIN, SM, ListOps, value_of
from decero.data.recall import Recall
from decero.data.selective_copying import SelectiveCopying
from decero.data.synthetic import SYNTHETIC_SPLITS, collate_aligned, make_rows

TASKS = {
    "recall": Recall(vocab_size=53, length=23, num_pairs=3),
    "copying": SelectiveCopying(vocab_size=13, length=19, num_tokens=5),
    "list_ops": ListOps(length=29, max_depth=3, max_arguments=4),
}


def solve_recall(task, ids):
    pairs = dict(zip(ids[0 : 2 * task.num_pairs : 2], ids[1 : 2 * task.num_pairs : 2], strict=True))
    return lambda place: pairs[ids[place]]


def solve_copying(task, ids):
    seen = [token for token in ids if token > 2]
    return lambda place: seen[place - task.length]


def solve_list_ops(task, ids):
    """Evaluate as Python does, not with a stack."""
    calls = {MIN: "min([", MAX: "max([", MED: "median([", SM: "total(["}
    code = "".join(calls.get(t) or ("])," if t == END else f"{t - 1},") for t in ids)
    names = {"min": min, "max": max, "median": lambda v: int(np.median(v)), "total": lambda v: sum(v) % 10}
    (value,) = eval(code, names)
    return lambda place: 1 + value


SOLVERS = {"recall": solve_recall, "copying": solve_copying, "list_ops": solve_list_ops}


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=40, deadline=None)
@given(split=st.sampled_from(SYNTHETIC_SPLITS), seed=st.integers(0, 2**32 - 1), index=st.integers(0, 10**6))
def test_a_row_is_a_pure_function_and_can_be_solved(name, split, seed, index):
    task = TASKS[name]
    row = task.row(split, seed, index)
    np.random.default_rng(0).random()
    assert task.row(split, seed, index) == row
    ids, labels = row["input_ids"], row["labels"]
    assert len(ids) == len(labels) <= task.length
    assert 0 < min(ids) <= max(ids) < task.vocab_size
    asked = [place for place, label in enumerate(labels) if label != IGNORED]
    answer = SOLVERS[name](task, ids)
    assert asked
    assert [answer(place) for place in asked] == [labels[place] for place in asked]
    assert ids[: asked[0]] != ids[asked[0] :]


@pytest.mark.parametrize("name", TASKS)
def test_other_seeds_splits_and_rows_differ(name):
    rows = [TASKS[name].row(*key) for key in (("train", 0, 0), ("train", 0, 1), ("train", 1, 0), ("test", 0, 0))]
    assert all(rows[i] != rows[j] for i in range(4) for j in range(i))


def test_no_pair_of_recall_is_in_two_splits():
    task, pairs = TASKS["recall"], {}
    for split in SYNTHETIC_SPLITS:
        rows = [task.row(split, seed, index)["input_ids"] for seed in range(3) for index in range(60)]
        pairs[split] = {(ids[2 * n], ids[2 * n + 1]) for ids in rows for n in range(3)}
        assert len(pairs[split]) > 20
    assert not pairs["train"] & pairs["test"]
    assert not pairs["train"] & pairs["validation"]
    assert not pairs["validation"] & pairs["test"]


def test_no_expression_is_in_two_splits():
    small = ListOps(length=8, max_depth=1, max_arguments=2)
    found = {split: {tuple(small.row(split, 0, i)["input_ids"]) for i in range(150)} for split in SYNTHETIC_SPLITS}
    assert all(len(each) > 20 for each in found.values())
    assert not (found["train"] & found["test"]) | (found["train"] & found["validation"])


def test_questions_follow_a_power_law():
    """With a small power most questions come soon; with 1 they come anywhere."""
    spread = {}
    for power in (0.01, 1.0):
        task = Recall(vocab_size=53, length=101, num_pairs=2, power=power)
        labels = np.array([task.row("train", 0, i)["labels"] for i in range(200)])
        spread[power] = (labels != IGNORED).nonzero()[1].mean()
    assert spread[0.01] < 35
    assert 45 < spread[1.0] < 60


@pytest.mark.parametrize(("name", "chance"), [("recall", 1 / 3), ("copying", 1 / 10)])
def test_chance_of_a_task(name, chance):
    assert TASKS[name].chance(None)[0] == pytest.approx(chance)


def test_chance_of_list_ops_is_the_most_common_value():
    rows = make_rows(TASKS["list_ops"], "test", 0, 50)
    answers = [labels[-1] for labels in rows["labels"]]
    assert TASKS["list_ops"].chance(rows)[0] == max(map(answers.count, answers)) / 50


@pytest.mark.parametrize(
    ("tokens", "value"),
    [([MAX, 3, 10, END], 9), ([MED, 2, 5, END], 2), ([SM, 10, 10, [MIN, 4, 3, END], END], 0), ([MIN, 1, END], 0)],
)
def test_the_reference_evaluator(tokens, value):
    flat = [token for part in tokens for token in (part if isinstance(part, list) else [part])]
    assert value_of(flat) == value


@pytest.mark.parametrize("tokens", [[MAX, 3], [3], [MAX, 3, END, 4], [END]])
def test_a_broken_expression_is_refused(tokens):
    with pytest.raises(ValueError, match=r"bracket|outside|after"):
        value_of(tokens)


def test_rows_are_padded_to_the_right():
    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORED, IGNORED, 2]}, {"input_ids": [8], "labels": [3]}]
    batch = collate_aligned(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 2], [3, IGNORED, IGNORED]]
