"""Order and masks are functions of (seed, epoch, example): of no process, batch or history."""

from itertools import chain

import hypothesis.strategies as st
from hypothesis import given, settings

from decero.data.order import Rows, Schedule, epoch_order

sizes = st.integers(1, 41)


@settings(max_examples=60, deadline=None)
@given(size=sizes, batch=sizes, per_device=sizes, world=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_every_number_of_processes_reads_the_same_examples_at_each_step(size, batch, per_device, world, seed):
    steps = 2 * Schedule(size, batch, per_device).steps_per_epoch
    alone = Schedule(size, batch, batch, seed)
    ranks = [Schedule(size, batch, per_device, seed, rank, world) for rank in range(world)]
    streams = [s.from_step(0, steps) for s in ranks]
    for step in range(steps):
        expected = next(alone.from_step(step, step + 1))
        micros = [next(stream) for stream in streams for _ in range(ranks[0].micro_batches(step))]
        read = [place for place in chain(*micros) if not place.stand_in]
        assert sorted(read) == sorted(expected)
        assert all(0 < len(micro) <= per_device for micro in micros)
        assert len({place.stand_in for micro in micros for place in micro}) <= 2
    assert all(next(stream, None) is None for stream in streams)


@settings(max_examples=30, deadline=None)
@given(size=sizes, batch=sizes, seed=st.integers(0, 2**32), start=st.integers(0, 20))
def test_starting_at_a_step_is_what_reaching_it_would_read(size, batch, seed, start):
    schedule = Schedule(size, batch, batch, seed)
    assert list(schedule.from_step(0, start + 3))[start:] == list(schedule.from_step(start, start + 3))


def test_an_epoch_reads_every_example_once_in_another_order_each_time():
    orders = [epoch_order(5, epoch, 101).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(101)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert orders[1] == epoch_order(5, 1, 101).tolist()
    assert orders[1] != epoch_order(6, 1, 101).tolist()


def test_rows_come_back_in_the_order_asked_for_and_know_their_place():
    from datasets import Dataset

    rows = Rows(Dataset.from_dict({"input_ids": [[i] for i in range(7)]}))
    places = next(Schedule(7, 4, 4, seed=1).from_step(2, 3))
    read = rows.__getitems__(places)
    assert [r["input_ids"] for r in read] == [[p.row] for p in places]
    assert [(r["epoch"], r["index"], r["stand_in"]) for r in read] == [(1, p.row, False) for p in places]
