"""Token budgets count what a device holds: both sides of an example, and the padding of padded rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Sequence, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from decero.config.sections import TrainingSection
from decero.data.corruption import OBJECTIVES, PrefixLanguageModeling, TextInfilling
from decero.data.packing import Packed
from decero.data.pairs import PairCollator
from decero.data.prompt_completion import PromptCompletion
from decero.data.sizes import sizes_of
from decero.data.stream import Stream, Texts
from decero.data.tokenization import token_lengths
from decero.errors import UserError
from decero.execution.objective import language_model
from decero.training.data_loader import prefetch, step_loader

LONGEST = 29
lengths = st.lists(st.integers(2, LONGEST), min_size=1, max_size=43)
seeds, worlds = st.integers(0, 2**31), st.integers(1, 3)


def row_of(length):
    return list(range(60, 60 + length))


def begin(dataset, collate, rank=0, world=1, **budgets):
    settings = TrainingSection(**({"max_train_steps": 99, "global_batch_size": 17} | budgets))
    accelerator = SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"))
    return step_loader(accelerator, dataset, language_model(collate), settings, seed=4)


def held(micro, padded):
    """Count the tokens of a micro-batch on a device: both sides, and the padding of padded rows."""
    sides = "input_ids", "decoder_input_ids"
    if padded:
        return sum(micro.batch[side].numel() for side in sides)
    return micro.size(language_model(None)).tokens if micro.weight else 0


def assert_within(dataset, collate, world, limit, packed, **budgets):
    """Check the micro-batches of all processes in the first steps against the limit; return the largest."""
    collate, fullest = Packed(collate, 64) if packed else collate, 0
    for rank in range(world):
        loader = begin(dataset, collate, rank, world, per_device_tokens=limit, **budgets)
        for step in range(3):
            for micro in loader.at(step):
                assert held(micro, not packed) <= limit, (rank, step, len(micro.indices))
                fullest = max(fullest, held(micro, not packed))
    return fullest


def streamed(rows):
    """Make a stream in which each text is the number of its row."""
    texts = Dataset.from_dict({"text": [str(i) for i in range(len(rows))]}).to_iterable_dataset(num_shards=1)
    return Stream(Texts(texts, "text", 11), lambda some: {"input_ids": [rows[int(text)] for text in some]}, LONGEST)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize("name", OBJECTIVES)
@given(lengths=lengths, seed=seeds, world=worlds, spare=st.integers(0, 300), mean=st.sampled_from([0.5, 1.0, 3.0]))
@settings(max_examples=settings.default.max_examples // 4, deadline=None)
def test_micro_batches_of_corrupted_text_stay_in_their_limit(
    sentinel_tokenizer, name, stream, packed, lengths, seed, world, spare, mean
):
    drawn = {} if name == "prefix_lm" else {"mean_noise_span_length": max(mean, 1.0) if name[0] == "s" else mean}
    damage = OBJECTIVES[name](sentinel_tokenizer, 0, max_length=LONGEST, seed=seed, **drawn)
    rows = [row_of(length) for length in lengths]
    limit = int(sizes_of(damage, np.array([LONGEST]), np.array([0])).most[0]) + spare
    dataset = streamed(rows) if stream else Dataset.from_dict({"input_ids": rows})
    batch = min(17, len(rows)) if stream else 17
    assert_within(dataset, damage, world, limit, packed, global_batch_size=batch)


def pairs_of(sizes):
    """Make rows with a source and a target of these lengths."""
    ids = Sequence(Value("int32"))
    columns = {"input_ids": [row_of(s) for s, _ in sizes], "labels": [row_of(t) for _, t in sizes]}
    return Dataset.from_dict(columns, features=Features({"input_ids": ids, "labels": ids}))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@given(
    sizes=st.lists(st.tuples(st.integers(1, 29), st.integers(1, 31)), min_size=1, max_size=43),
    world=worlds,
    spare=st.integers(0, 300),
)
@settings(deadline=None)
def test_micro_batches_of_pairs_stay_in_their_limit(sentinel_tokenizer, packed, sizes, world, spare):
    limit = max(map(sum, sizes)) + spare
    assert_within(pairs_of(sizes), PairCollator(sentinel_tokenizer, 0), world, limit, packed)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_use_most_of_their_limit(sentinel_tokenizer, name, packed):
    rows = Dataset.from_dict({"input_ids": [row_of(LONGEST)] * 200})
    damage = OBJECTIVES[name](sentinel_tokenizer, 0, max_length=LONGEST)
    assert 800 < assert_within(rows, damage, 1, 1000, packed, global_batch_size=100) <= 1000


@pytest.mark.parametrize("length", [2, 7, LONGEST, 113])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_sizes_are_known_before_random_draws(sentinel_tokenizer, name, length):
    """The maximum is never exceeded; the mean is within a token or 1 %."""
    damage = OBJECTIVES[name](sentinel_tokenizer, 0, max_length=113)
    told = sizes_of(damage, np.array([length]), np.array([0]))
    drawn = [damage.pair({"input_ids": row_of(length), "index": i, "epoch": 0}) for i in range(400)]
    read, written = (np.array([len(pair[side]) for pair in drawn]) for side in (0, 1))
    assert read.max() <= told.read[0]
    assert written.max() <= told.written[0]
    assert (read + written).max() <= told.most[0]
    assert (read + written).mean() == pytest.approx(told.mean[0], rel=0.01, abs=0.6)


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_has_its_token_budget_on_average(sentinel_tokenizer, name, stream):
    rows = [row_of(2 + 5 * i % (LONGEST - 1)) for i in range(300)]
    damage = OBJECTIVES[name](sentinel_tokenizer, 0, max_length=LONGEST)
    dataset = streamed(rows) if stream else Dataset.from_dict({"input_ids": rows})
    loader = begin(dataset, damage, global_batch_size=None, global_batch_tokens=600)
    steps = [sum(micro.size(loader.objective).tokens for micro in loader.at(step)) for step in range(7)]  # of one epoch
    assert np.mean(steps) == pytest.approx(600, rel=0.03)


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        (
            {"per_device_tokens": 59},
            r"per_device_tokens 59 is less than the 60 tokens of example 2, the longest; raise",
        ),
        (
            {"global_batch_tokens": 59},
            r"global_batch_tokens 59 is less than the 60 tokens of the longest example",
        ),
    ],
)
def test_a_budget_below_the_longest_pair_is_refused(sentinel_tokenizer, budget, line):
    """The longest sum of both sides counts, not the longest source or target."""
    rows, pairs = pairs_of([(50, 3), (4, 55), (29, 31), (5, 6)]), PairCollator(sentinel_tokenizer, 0)
    budget |= {"global_batch_size": None} if "global_batch_tokens" in budget else {}
    with pytest.raises(UserError, match=line):
        begin(rows, pairs, **budget)
    begin(rows, pairs, **(budget | {name: 60 for name in budget if name.endswith("tokens")}))


def test_a_budget_below_both_sides_of_a_row_is_refused(sentinel_tokenizer):
    rows = [row_of(length) for length in (5, LONGEST, 7)]
    infilled = TextInfilling(sentinel_tokenizer, 0, max_length=LONGEST)  # inserted masks find no position
    with pytest.raises(UserError, match="per_device_tokens 59 is less than the 60 tokens of example 1, the longest"):
        begin(Dataset.from_dict({"input_ids": rows}), infilled, per_device_tokens=59)
    with pytest.raises(UserError, match=r"per_device_tokens 59 is less than the longest possible row \(60 tokens\)"):
        begin(streamed(rows), infilled, per_device_tokens=59)
    prefix = PrefixLanguageModeling(sentinel_tokenizer, 0, max_length=LONGEST)
    begin(Dataset.from_dict({"input_ids": rows}), prefix, per_device_tokens=LONGEST + 2)


def test_one_sided_rows_are_counted_by_their_length(sentinel_tokenizer):
    """Exactly: a prompt with its completion is one row, and so are the tokens of an encoder."""
    rows = pairs_of([(3 + i * 7 % 23, 2 + i * 5 % 19) for i in range(43)])
    loader = begin(rows, PromptCompletion(sentinel_tokenizer), per_device_tokens=200)
    lengths = token_lengths(rows)
    order = np.concatenate([micro.indices for micro in loader.at(0)])
    micro_batches = next(loader.schedule.from_step(0, 1))[1]
    assert order.tolist() == micro_batches[np.argsort(-lengths[micro_batches], kind="stable")].tolist()
    for micro in loader.at(0):
        assert loader.split.size(micro.indices) == len(micro.indices) * lengths[micro.indices].max() <= 200


def test_a_mistake_found_in_a_worker_is_still_one_line():
    def refuse(item):
        raise UserError(f"row {item}: it is empty; fill it")

    with pytest.raises(UserError) as refused:
        next(prefetch(refuse, [7], workers=1))
    assert str(refused.value) == "row 7: it is empty; fill it"
