"""Training on a stream: the same steps for any number of processes, micro-batch size, or restart."""

import json
import math
from multiprocessing import active_children
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from decero.config.sections import TrainingSection
from decero.data.packing import Packed
from decero.data.stream import Texts
from decero.data.tokenization import tokenize_documents
from decero.errors import UserError
from decero.execution.objective import Objective
from decero.training.data_loader import step_loader

pytestmark = pytest.mark.long


@pytest.fixture
def stream(texts, tokenizer):
    """Make a stream of 61 rows in five files."""
    dataset = Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=5)
    return tokenize_documents(Texts(dataset, "text", 17), tokenizer, max_length=48)


SEEN = Objective(lambda rows: rows, None, len)  # rows as they reach the collator
LIMITS = [{"per_device_batch_size": 2}, {"per_device_batch_size": "auto"}, {"per_device_tokens": 48}]
TOKENS = {"global_batch_size": None, "global_batch_tokens": 150, "per_device_batch_size": None, "per_device_tokens": 60}


def begin(stream, rank=0, world=1, objective=SEEN, **settings):
    training = TrainingSection(**({"max_train_steps": 99, "global_batch_size": 12} | settings))
    accelerator = SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"))
    return step_loader(accelerator, stream, objective, training, seed=4)


def read(micro_batches):
    """Return epoch, index and tokens of each row that is no dummy."""
    return [
        (r["epoch"], r["index"], tuple(r["input_ids"])) for micro in micro_batches if micro.weight for r in micro.batch
    ]


@pytest.mark.parametrize(
    ("world", "settings"),
    [
        pytest.param(world, settings, marks=pytest.mark.slow if world == 14 and settings in LIMITS[1:] else [])
        for world in (2, 3, 14)
        for settings in (*LIMITS, TOKENS)
    ],
)
def test_a_step_is_the_same_rows_on_any_number_of_processes(stream, world, settings):
    alone, ranks = begin(stream, **settings), [begin(stream, rank, world, **settings) for rank in range(world)]
    for step in range(14):  # three epochs, with shorter last steps
        loader = [each.at(step) for each in ranks]
        assert sorted(row for micro_batches in loader for row in read(micro_batches)) == sorted(read(alone.at(step)))
        assert len({len(micro_batches) for micro_batches in loader}) == 1  # processes with fewer rows get dummies
        assert [each.state() for each in ranks] == [alone.state()] * world


@pytest.mark.parametrize("streams", [True, False])
def test_rows_know_the_progress_of_the_run(stream, rows, streams):
    loader = begin(stream if streams else rows, max_train_steps=8)
    for step in (0, 1, 6):  # the last one as after a restart
        if step == 6 and streams:
            break
        assert {row["progress"] for micro in loader.at(step) for row in micro.batch} == {step / 8}


@pytest.mark.parametrize("streams", [True, False])
def test_steps_grow_to_their_whole_size(stream, rows, streams):
    data = stream if streams else rows
    warm, whole = (begin(data, max_train_steps=16, batch_warmup=share) for share in (0.25, None))
    for step, size in enumerate([3, 5, 8, 10, 12]):
        found, all_of_it = (sorted(read(loader.at(step))) for loader in (warm, whole))
        assert len(found) == size
        assert set(found) <= set(all_of_it)


@pytest.mark.parametrize("settings", LIMITS)
def test_smaller_micro_batches_repeat_the_same_step(stream, settings):
    loader, straight = begin(stream, **settings), begin(stream, **settings)
    for step in range(7):
        micro_batches = loader.at(step)
        sizes = [loader.split.size(micro.indices) for micro in micro_batches]
        assert all(size > 0 for size in sizes)
        expected = sorted(read(straight.at(step)))
        assert sorted(read(micro_batches)) == expected
        if step in (0, 3) and len(micro_batches) < len(expected):
            loader.limit(max(1, max(sizes) // 2))
            again = loader.at(step)
            assert sorted(read(again)) == expected
            assert len(again) > len(micro_batches)
        assert loader.state() == straight.state()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_stream_position_is_json_and_can_be_restored(stream, workers):
    straight, state = begin(stream), None
    for step in range(12 if workers == 0 else 3):
        loader = begin(stream, dataloader_num_workers=workers)
        loader.restore(step, state)
        assert read(loader.at(step)) == read(straight.at(step))
        assert loader.epoch(step + 1) == (step + 1) // 6  # 61 rows, twelve a step
        state = json.loads(json.dumps(loader.state()))
        assert len(json.dumps(state)) < 4000
        loader.close()


def losses(result):
    return [row["loss"] for row in result.history if "loss" in row]


class StopAt(BaseException):
    """Simulate a kill: raised where the loop evaluates."""

    def __call__(self, model):
        raise self


@pytest.mark.parametrize("budgets", [{}, TOKENS], ids=["rows", "tokens"])
def test_a_resumed_streamed_run_equals_an_uninterrupted_one(fit, stream, tiny_model, tmp_path, budgets):
    """Across the end of an epoch, with dropout; killed two steps after its checkpoint."""
    steps = {"max_train_steps": 9, "save_steps": 3, "dataset": stream} | budgets
    whole = fit(tmp_path / "whole", model=tiny_model(0.1), **steps)
    cut = steps | {"output": tmp_path / "cut"}
    with pytest.raises(StopAt):
        fit(model=tiny_model(0.1), eval_strategy="steps", eval_steps=8, evaluate=StopAt(), **cut)
    resumed = fit(model=tiny_model(0.1), resume=True, **cut)
    assert losses(resumed) == losses(whole)
    assert [r["tokens"] for r in resumed.history] == [r["tokens"] for r in whole.history]
    assert whole.history[-1]["epoch"] == 1.0
    for (name, value), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_prefetch_workers_end_with_the_run(fit, stream, rows):
    """A stream has two layers of workers. The garbage collector would need five seconds for each."""
    others = set(active_children())
    fit(dataset=stream, dataloader_num_workers=2)
    assert set(active_children()) <= others
    for dataset in (stream, rows):
        with pytest.raises(StopAt):
            fit(dataset=dataset, dataloader_num_workers=2, eval_strategy="steps", eval_steps=2, evaluate=StopAt())
        assert set(active_children()) <= others


def test_the_losses_of_a_streamed_run_are_pinned(fit, stream):
    """A change of order, masks or steps changes these numbers, and would break runs in progress."""
    assert losses(fit(dataset=stream)) == pytest.approx(PINNED, abs=2e-4)


PINNED = [4.62730, 4.62624, 4.28973, 4.15928, 4.19932, 3.86057]


def test_packed_stream_rows_give_the_loss_of_padded_ones(fit, stream, objective):
    padded = losses(fit(dataset=stream, max_train_steps=2))
    packed = Objective(Packed(objective.collate, 64), objective.loss, objective.count)
    assert losses(fit(dataset=stream, objective=packed, max_train_steps=2)) == pytest.approx(padded, abs=1e-5)


def test_settings_that_a_stream_cannot_follow_are_refused(fit, stream):
    with pytest.raises(UserError, match=r"streams have no length; set training\.max_train_steps"):
        begin(stream, max_train_steps=None, num_train_epochs=1)
    with pytest.raises(UserError, match=r"global_batch_tokens 40 is less than the longest possible row \(48 tokens\)"):
        begin(stream, global_batch_size=None, global_batch_tokens=40)
    assert begin(stream).steps_per_epoch == math.inf
