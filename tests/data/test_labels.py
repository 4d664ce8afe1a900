"""Labels in every column layout, and label budgets."""

import unicodedata

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Json, List

from decero.data.labels import encode_labels, in_known_order, label_budget, label_draw
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
        (["10", "2", "-1"], ["2", "-1"], ["-1", "2", "10"], [1, 0]),  # as a CSV file gives them
        (["2.3", "1.10", "1.1", "01", "1"], ["1.10", "01"], ["01", "1", "1.1", "1.10", "2.3"], [3, 0]),
        (["None", "NA", "nan", "null"], ["NA", "null"], ["NA", "None", "nan", "null"], [0, 3]),
        ([1, 0], ["0", "1"], ["0", "1"], [0, 1]),  # numbers in one file, text in another
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
        ([1.0, 2.0], [1e39], REGRESSION, "test, row 0: 1e+39 is too large"),
        ([1.0, 1e30], [1.0], REGRESSION, "train, row 1: 1e+30 is too large"),  # its square is infinite
        ([1.0, float("inf")], [1.0], REGRESSION, "train, row 1: inf is not a finite number"),
        (["1.5", "1e400"], ["1"], REGRESSION, "train, row 1: '1e400' is not a finite number"),
        (["1.5", "1_000"], ["1"], REGRESSION, "train, row 1: '1_000' is not a finite number"),
        ([True, False], [True], REGRESSION, "train, row 0: True is not a finite number"),
        ([1.0, None], [1.0], REGRESSION, "train, row 1: no label"),
        ([[1.0], [2.0]], [[1.0]], REGRESSION, "train, row 0: [1.0] is not a finite number"),
        ([{"a": 1}, {"a": 2}], [{"a": 1}], REGRESSION, "train, row 0: {'a': 1} is not a finite number"),
        ([{"a": 1}, {"a": 2}], [{"a": 1}], SINGLE, "train, row 0: {'a': 1} is no label"),
        ([{"a": 1}, {"a": 2}], [{"a": 1}], MULTI, "holds single values"),
        ([[["a"]], [["b"]]], [[["a"]]], MULTI, "train, row 0: ['a'] is no label"),
        ([[{"a": 1}], [{"a": 2}]], [[{"a": 1}]], MULTI, "train, row 0: {'a': 1} is no label"),
        ([["a", None], ["b"]], [["a"]], MULTI, "train, row 0: no label"),
        ([["a"], None], [["a"]], MULTI, "train, row 1: no label"),
        ([b"a", b"b"], [b"a"], SINGLE, "train, row 0: b'a' is no label"),
        (["a", " "], ["a"], SINGLE, "train, row 1: no label"),
        (["a", "b"], ["a", "-1"], SINGLE, "test, row 1: label '-1' is not in train"),
        (["a", "b"], [["a"]], SINGLE, "'label' holds lists, which does not fit"),
        ([None, None], ["a"], SINGLE, "train, row 0: no label"),
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


@pytest.mark.parametrize("rare", [1, 15])
@pytest.mark.parametrize("seed", range(5))
def test_a_budget_draws_a_row_of_each_class(rare, seed):
    train = Dataset.from_dict({"labels": [0] * (995 - rare) + [1] * rare + [2] * 5})
    drawn, rest = label_draw(train, 25, SINGLE, seed)
    assert min(np.bincount(drawn["labels"], minlength=3)) >= 1
    assert len(drawn) == 25
    assert sorted([*drawn["labels"], *rest["labels"]]) == sorted(train["labels"])


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


VECTORS = [[1, 0, 1], [0, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize("kind", [int, float, bool, str])
def test_a_vector_has_one_label_a_place(kind):
    said = []
    vectors = [[kind(value) for value in row] for row in VECTORS]
    done, names = encode_labels(corpus(vectors, vectors[1:]), "label", MULTI, say=said.append)
    assert names == ["0", "1", "2"]
    assert list(done["train"]["labels"]) == VECTORS
    assert list(done["test"]["labels"]) == VECTORS[1:]
    assert said == ["'label' holds 0/1 vectors: one label a place, named 0, 1, 2"]


@pytest.mark.parametrize("classes", [["no", "yes"], ["red", "green", "blue"]])
def test_a_vector_of_class_labels_names_its_places(classes):
    feature = Features({"label": List(ClassLabel(names=classes))})
    data = DatasetDict({s: d.cast(feature) for s, d in corpus(VECTORS, VECTORS).items()})
    done, names = encode_labels(data, "label", MULTI)
    assert names == (classes if len(classes) == 3 else ["0", "1", "2"])
    assert list(done["test"]["labels"]) == VECTORS


def test_a_list_of_class_labels_holds_names():
    feature = Features({"label": List(ClassLabel(names=["red", "never", "blue"]))})
    data = DatasetDict({s: d.cast(feature) for s, d in corpus([[0, 2], [2], []], [[0]]).items()})
    done, names = encode_labels(data, "label", MULTI)
    assert names == ["red", "blue"]
    assert list(done["train"]["labels"]) == [[1, 1], [0, 1], [0, 0]]


def test_lists_of_0_and_1_of_different_lengths_hold_names():
    said = []
    done, names = encode_labels(corpus([[0], [1], [0, 1], []], [[1]]), "label", MULTI, say=said.append)
    assert names == ["0", "1"]
    assert list(done["train"]["labels"]) == [[1, 0], [0, 1], [1, 1], [0, 0]]
    assert said == ["'label' holds lists of 0 and 1 of different lengths: they are read as the names 0 and 1"]


@pytest.mark.parametrize(
    ("train", "test", "line"),
    [
        ([[1, 0, 0], [0, 1]], [[0, 0, 1]], "train, row 1: a 0/1 vector of 2 places, where others have 3"),
        ([[1, 0, 0], [0, 1, 0]], [[1]], "test, row 0: a 0/1 vector of 1 places, where others have 3"),
        ([[1, 0, 0], [0, 1, 0]], [[1, 0, 2]], "test, row 0: 2 is neither 0 nor 1"),
        ([[0.7, 0.3], [1.0, 0.0]], [[1.0, 0.0]], "train, row 0: 0.7 is neither 0 nor 1"),
        ([[0], [1]], [[1]], "a name or a 0/1 vector?"),
    ],
)
def test_a_broken_vector_is_named_by_split_and_row(train, test, line):
    with pytest.raises(UserError) as refused:
        encode_labels(corpus(train, test), "label", MULTI)
    assert line in str(refused.value)


@pytest.mark.parametrize("flags", [["0", "1"], [" 0", "1.0"], ["False", "true"], [0.0, 1.0], [False, True]])
def test_columns_of_flags_are_read_from_any_file(flags):
    no, yes = flags
    data = DatasetDict(train=Dataset.from_dict({"b": [no, yes], "a": [yes, yes]}))
    done, names = encode_labels(data, ["b", "a"], MULTI)
    assert names == ["b", "a"]
    assert list(done["train"]["labels"]) == [[0, 1], [1, 1]]
    with pytest.raises(UserError, match="train, row 0: 'maybe' is neither 0 nor 1"):
        encode_labels(DatasetDict(train=Dataset.from_dict({"b": ["maybe"], "a": ["1"]})), ["b", "a"], MULTI)


def test_numbers_may_be_written_as_text():
    done, _ = encode_labels(corpus(["1", " -2.5", "+1e3", ".5"], ["7."]), "label", REGRESSION)
    assert list(done["train"]["labels"]) == [1.0, -2.5, 1000.0, 0.5]
    assert list(done["test"]["labels"]) == [7.0]


@pytest.mark.parametrize(
    ("train", "test", "problem_type"),
    [
        (["a", "b"], ["-1", "-1"], SINGLE),
        (["a", "b"], [None, None], SINGLE),
        ([0, 1], [-1, -1], SINGLE),
        ([1.5, 2.0], [-1.0, -1.0], REGRESSION),
        ([[1, 0, 0], [0, 1, 1]], [[-1, -1, -1]], MULTI),
    ],
)
def test_a_split_that_hides_its_labels_is_left_out(train, test, problem_type):
    said = []
    done, _ = encode_labels(corpus(train, test), "label", problem_type, say=said.append)
    assert set(done) == {"train"}
    assert said[0] == "test has no labels (-1 or null in every row of label); it is left out"


@pytest.mark.parametrize(
    ("train", "test", "problem_type"),
    [(["-1", "1"], ["-1", "-1"], SINGLE), ([-1, 1], [-1], SINGLE), ([-1.0, 1.0, 0.3], [-1.0], REGRESSION),
     (["-0.5", "2"], ["-1"], REGRESSION)],
)  # fmt: skip
def test_a_split_of_minus_one_counts_if_train_has_it(train, test, problem_type):
    said = []
    done, _ = encode_labels(corpus(train, test), "label", problem_type, say=said.append)
    assert len(done["test"]) == len(test)
    assert not said


def test_spaces_and_unicode_forms_make_no_new_label():
    said = []
    decomposed = unicodedata.normalize("NFD", "caf\xe9")
    data = corpus(["caf\xe9", decomposed, "tea ", "tea", "\xa0tea"], [" tea", decomposed])
    done, names = encode_labels(data, "label", SINGLE, say=said.append)
    assert names == ["caf\xe9", "tea"]
    assert list(done["train"]["labels"]) == [0, 0, 1, 1, 1]
    assert list(done["test"]["labels"]) == [1, 0]
    assert all("read as one: " in line for line in said)
    assert said[0].endswith(" as 'caf\xe9'")
    assert len(said) == 2


def test_a_number_and_the_same_number_as_text_are_one_label():
    feature = Features({"label": Json()})
    data = DatasetDict(train=Dataset.from_dict({"label": [1, "1", "a", True, "True"]}, features=feature))
    _, names = encode_labels(data, "label", SINGLE)
    assert names == ["1", "True", "a"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("names", "known", "ordered"),
    [
        (["a", "b", "c"], ["c", "a", "b"], ["c", "a", "b"]),
        (["a", "b"], ["c", "a", "b"], ["c", "a", "b"]),  # the head's other label stays
        (["neg", "pos"], ["POS", "NEG"], ["pos", "neg"]),
        (["A", "a"], ["a", "A"], ["a", "A"]),  # names differ in case only: they must be equal
        (["A", "a"], ["a", "b"], None),
        (["a", "b"], ["a", "c"], None),
        (["a", "b", "c"], ["a", "b"], None),
        (["a", "b"], ["LABEL_0", "LABEL_1"], None),
        (["0", "1"], ["LABEL_0", "LABEL_1"], ["0", "1"]),
        (["1", "2"], ["LABEL_0", "LABEL_1"], None),
        (["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1"], ["LABEL_0", "LABEL_1"]),
        (["a", "b"], ["a", "a", "b"], None),
        (["a", "b"], [], None),
    ],
)
def test_labels_keep_the_ids_of_a_head_that_knows_them(names, known, ordered):
    assert in_known_order(names, known) == ordered


@pytest.mark.parametrize(("column", "train"), [("label", [["a"], ["b"]]), (["a", "b"], None)])
def test_several_labels_keep_the_places_of_a_head(column, train):
    data = Dataset.from_dict({"label": train} if train else {"a": [1, 0], "b": [0, 1]})
    done, names = encode_labels(DatasetDict(train=data), column, MULTI, known=["b", "x", "a"])
    assert names == ["b", "x", "a"]
    assert list(done["train"]["labels"]) == [[0, 0, 1], [1, 0, 0]]


def test_a_budget_keeps_shares_where_ids_have_gaps():
    train = Dataset.from_dict({"labels": [0] * 60 + [2] * 30})
    assert np.bincount(label_budget(train, 30, SINGLE, seed=0)["labels"]).tolist() == [20, 0, 10]


def test_a_column_named_twice_is_refused():
    data = DatasetDict(train=Dataset.from_dict({"a": [1, 0]}))
    with pytest.raises(UserError, match="it names 'a' twice"):
        encode_labels(data, ["a", "a"], MULTI)
