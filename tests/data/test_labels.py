"""Labels in every column layout, and label budgets."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from decero.data.labels import encode_labels, label_budget
from decero.errors import UserError

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def corpus(train, test, column="label"):
    return DatasetDict(train=Dataset.from_dict({column: train}), test=Dataset.from_dict({column: test}))


@pytest.mark.parametrize(
    ("train", "test", "names", "encoded"),
    [
        (["b", "a", "c", "a"], ["c", "b"], ["a", "b", "c"], [2, 1]),
        ([10, 2, 30], [30, 2], ["2", "10", "30"], [2, 0]),  # in numeric order
        ([True, False], [False, True], ["False", "True"], [0, 1]),
    ],
)
def test_single_labels_are_numbered_in_their_natural_order(train, test, names, encoded):
    done, found = encode_labels(corpus(train, test), "label", SINGLE)
    assert found == names
    assert list(done["test"]["labels"]) == encoded


def test_a_class_label_keeps_the_names_that_occur_in_train():
    feature = ClassLabel(names=["x", "never", "y"])
    data = DatasetDict({s: d.cast_column("label", feature) for s, d in corpus([0, 2, 2], [2, 0]).items()})
    done, names = encode_labels(data, "label", SINGLE)
    assert names == ["x", "y"]
    assert list(done["test"]["labels"]) == [1, 0]


def test_label_lists_and_label_columns_give_the_same():
    lists, names = encode_labels(corpus([["a", "b"], [], ["c"]], [["b"]]), "label", MULTI)
    assert names == ["a", "b", "c"]
    assert list(lists["train"]["labels"]) == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    columns = Dataset.from_dict({"a": [1, 0, 0], "b": [1, 0, 0], "c": [0, 0, 1]})
    done, names = encode_labels(DatasetDict(train=columns), ["a", "b", "c"], MULTI)
    assert names == ["a", "b", "c"]
    assert list(done["train"]["labels"]) == list(lists["train"]["labels"])


def test_regression_labels_are_floats():
    done, names = encode_labels(corpus([1, 2.5, -3], [0]), "label", REGRESSION)
    assert names == ["value"]
    assert list(done["train"]["labels"]) == [1.0, 2.5, -3.0]


@pytest.mark.parametrize(
    ("train", "test", "problem_type", "line"),
    [
        (["ham", "spam"], ["spam", "spma"], SINGLE,
         "test, row 1: label 'spma' is not in train; did you mean spam?"),
        (["a", "b"], ["a", None], SINGLE, "test, row 1: no label"),
        (["a", "a"], ["a"], SINGLE, "holds 1 label"),
        ([["a"], ["b"]], [["a"]], SINGLE, "did you mean objective.problem_type=multi_label_classification?"),
        (["a", "b"], ["a"], MULTI, "did you mean objective.problem_type=single_label_classification?"),
        ([1.0, 2.0], [float("nan")], REGRESSION, "test, row 0: nan is not a finite number"),
        (["one", "two"], ["two"], REGRESSION, "train, row 0: 'one' is not a finite number"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_named_by_split_and_row(train, test, problem_type, line):
    with pytest.raises(UserError) as refused:
        encode_labels(corpus(train, test), "label", problem_type)
    assert line in str(refused.value)


def test_a_missing_label_column_names_the_nearest():
    with pytest.raises(UserError, match="no column 'labell'; did you mean label"):
        encode_labels(corpus(["a"], ["a"]), "labell", SINGLE)


def test_a_budget_keeps_shares_and_depends_on_the_seed_alone():
    train = Dataset.from_dict({"labels": [0] * 60 + [1] * 30 + [2] * 10, "id": list(range(100))})
    chosen = label_budget(train, 20, SINGLE, seed=3)
    assert np.bincount(chosen["labels"]).tolist() == [12, 6, 2]
    assert list(chosen["id"]) == list(label_budget(train, 20, SINGLE, seed=3)["id"])
    assert list(chosen["id"]) != list(label_budget(train, 20, SINGLE, seed=4)["id"])
    assert len(label_budget(train, None, SINGLE, seed=3)) == 100


@pytest.mark.parametrize("budget", [2, 101])
def test_a_budget_that_cannot_be_filled_is_refused(budget):
    train = Dataset.from_dict({"labels": [0, 1, 2] * 33 + [0]})
    with pytest.raises(UserError, match=r"outside 3 \(one per class\) to 100"):
        label_budget(train, budget, SINGLE, seed=0)


def test_a_split_without_labels_is_dropped():
    feature = ClassLabel(names=["x", "y"])
    data = DatasetDict({s: d.cast_column("label", feature) for s, d in corpus([0, 1], [-1, -1]).items()})
    assert set(encode_labels(data, "label", SINGLE)[0]) == {"train"}


def test_several_columns_need_multi_label():
    with pytest.raises(UserError, match="several columns are"):
        encode_labels(corpus([1, 0], [1]), ["label", "label"], SINGLE)
