"""Order and masks depend on (seed, epoch, example), not on processes, batches or history."""

from itertools import chain

import hypothesis.strategies as st
import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from hypothesis import given, settings

from decero.data.order import BatchSplit, RowIndex, Rows, Schedule, epoch_order, shard_step

counts = st.integers(1, 41)
seeds = st.integers(0, 2**32)
lengths = st.lists(st.integers(1, 13), min_size=1, max_size=41).map(np.array)


@st.composite
def plans(draw):
    """Draw a schedule and a batch split, each in examples or tokens, and a number of processes."""
    tokens = draw(lengths)
    ones = np.ones_like(tokens)
    by_tokens, padded = draw(st.booleans()), draw(st.booleans())
    batch = draw(st.integers(13, 99)) if by_tokens else draw(counts)
    cut = draw(st.sampled_from([BatchSplit(ones, draw(counts)), BatchSplit(tokens, draw(counts), padded)]))
    return Schedule(tokens if by_tokens else ones, batch, draw(seeds)), cut, draw(st.integers(1, 5))


@settings(max_examples=100, deadline=None)
@given(plan=plans())
def test_steps_do_not_depend_on_the_number_of_processes(plan):
    schedule, cut, world = plan
    for epoch, examples in schedule.from_step(0, 2 * schedule.steps_per_epoch):
        dealt = [shard_step(epoch, examples, cut, rank, world) for rank in range(world)]
        assert len({len(micros) for micros in dealt}) == 1, "processes wait for each other"
        read = [place for place in chain(*chain(*dealt)) if not place.dummy]
        assert sorted(read) == sorted((epoch, row, False) for row in examples)
        for micro in chain(*dealt):
            assert len(micro) == 1 or cut.size([place.row for place in micro]) <= cut.limit
            assert len({place.dummy for place in micro}) == 1


@settings(max_examples=100, deadline=None)
@given(plan=plans())
def test_an_epoch_of_steps_reads_each_example_once(plan):
    schedule, steps = plan[0], plan[0].steps_per_epoch
    for epoch in range(2):
        windows = list(schedule.from_step(epoch * steps, (epoch + 1) * steps))
        assert {e for e, _ in windows} == {epoch}
        assert all(len(examples) for _, examples in windows)
        assert np.concatenate([examples for _, examples in windows]).tolist() == (
            epoch_order(schedule.seed, epoch, len(schedule.sizes)).tolist()
        )


@settings(max_examples=100, deadline=None)
@given(plan=plans())
def test_steps_stay_within_one_example_of_their_budget(plan):
    schedule, read = plan[0], 0
    windows = [examples for _, examples in schedule.from_step(0, schedule.steps_per_epoch)]
    for step, examples in enumerate(windows[:-1], start=1):
        read += schedule.sizes[examples].sum()
        following = schedule.sizes[windows[step][0]]
        assert read <= step * schedule.batch < read + following


@settings(max_examples=100, deadline=None)
@given(plan=plans(), start=st.integers(0, 20))
def test_starting_at_a_step_reads_what_reaching_it_reads(plan, start):
    schedule = plan[0]
    reached = [(epoch, examples.tolist()) for epoch, examples in schedule.from_step(0, start + 3)][start:]
    assert reached == [(epoch, examples.tolist()) for epoch, examples in schedule.from_step(start, start + 3)]


@pytest.mark.parametrize(
    ("padded", "expected"),
    [
        (False, [[5, 2, 3], [9], [12], [1, 4, 5]]),  # a sum of at most 10; a longer example is alone
        (True, [[12], [9], [5, 5], [4, 3], [2, 1]]),  # at most 10 with padding, sorted by length
    ],
)
def test_a_micro_batch_stays_within_its_limit(padded, expected):
    tokens = np.array([5, 2, 3, 9, 12, 1, 4, 5])
    micros = BatchSplit(tokens, 10, padded)(np.arange(8))
    assert [tokens[micro].tolist() for micro in micros] == expected


def test_each_epoch_has_its_own_order_of_all_examples():
    orders = [epoch_order(5, epoch, 101).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(101)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert orders[1] == epoch_order(5, 1, 101).tolist()
    assert orders[1] != epoch_order(6, 1, 101).tolist()


def test_rows_come_in_the_requested_order_with_their_index():
    from datasets import Dataset

    rows = Rows(Dataset.from_dict({"input_ids": [[i] for i in range(7)]}))
    ones = np.ones(7, dtype=int)
    epoch, examples = next(Schedule(ones, 4, seed=1).from_step(2, 3))
    (places,) = shard_step(epoch, examples, BatchSplit(ones, 4), rank=0, world_size=1)
    read = rows.__getitems__(places)
    assert [r["input_ids"] for r in read] == [[p.row] for p in places]
    assert [(r["epoch"], r["index"], r["dummy"]) for r in read] == [(1, p.row, False) for p in places]


def test_lists_of_integers_are_arrays_of_the_row_alone():
    lists = {"ids": [[1, 2, 3], [], None, [4], [5, 6]], "starts": [[True, False, True], [], [], [False], [True, True]]}
    other = {"weights": [[0.5], [], [], [1.5], [2.5]], "text": list("abcde"), "ends": [True, False, True, False, True]}
    features = Features({"ids": List(Value("int32")), "starts": List(Value("bool")), "weights": List(Value("float32"))})
    features |= {"text": Value("string"), "ends": Value("bool")}
    data = Dataset.from_dict(lists | other, features=features)
    chosen = [4, 0, 2, 0, 1]
    for dataset in (data, data.select(range(5)), data.select_columns(["ids", "starts"])):
        rows = Rows(dataset).__getitems__([RowIndex(7, row) for row in chosen])
        for row, number in zip(rows, chosen, strict=True):
            assert all(row[name] == other[name][number] for name in dataset.column_names if name in other)
            ids = lists["ids"][number]
            assert row["ids"] is None if ids is None else row["ids"].tolist() == ids
            assert row["starts"].dtype == bool
            assert ids is None or row["ids"].dtype == np.int64
            assert row["starts"].tolist() == lists["starts"][number]
            assert (row["epoch"], row["index"], row["dummy"]) == (7, number, False)
    assert Rows(data).__getitems__([]) == []
    rows[1]["starts"][:] = False
    assert rows[3]["starts"].tolist() == [True, False, True], "the same row again has values of its own"
