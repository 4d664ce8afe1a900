"""The task of answers: what a forecast of a comparison asks of it."""

from types import SimpleNamespace

import pytest

from decero.tasks.base import TaskData
from decero.tasks.question_answering import QuestionAnswering


@pytest.mark.parametrize(("splits", "read"), [(("test",), "test"), (("validation", "test"), "validation")])
def test_a_forecast_reads_contexts_of_the_split_it_times(splits, read):
    data = TaskData([], {split: {"": [split]} for split in splits})
    task = SimpleNamespace(_answer=lambda run, model, rows, split: split)
    assert QuestionAnswering.scoring_pass(task, None, None, [], data) == read
