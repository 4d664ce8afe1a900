"""Each planted problem of texts and labels is found with its place and fix."""

import json

from decero.doctor import texts, tokens


def only(found):
    assert len(found) == 1, [f.line() for f in found]
    return found[0]


def test_repeats_are_found_despite_white_space(found, make):
    rows = make.documents(50)
    rows[30] = {"text": f"  {rows[4]['text'].replace(' ', chr(10), 3)} "}
    rows[41] = rows[4]
    said = only(found(texts.duplicates, "pretrain_mlm", rows={"train": rows}))
    assert (said.severity, said.where) == ("warn", "train")
    assert "4.0 % of 50 texts are repeats (row 30 repeats row 4, row 41 repeats row 4)" in said.what
    assert "remove" in said.mend


def test_more_repeats_are_more_severe(found, make):
    few = only(found(texts.duplicates, "pretrain_mlm", rows={"train": [*make.documents(200), *make.documents(1)]}))
    many = only(found(texts.duplicates, "pretrain_mlm", rows={"train": make.documents(20) * 2}))
    assert (few.severity, many.severity) == ("note", "bad")
    assert "50.0 %" in many.what


def test_a_pair_is_repeated_when_both_sides_are(found, make):
    rows = make.pairs(30)
    rows[7] = rows[3] | {"target": "another answer"}
    assert only(found(texts.duplicates, "finetune_seq2seq", rows={"train": rows})).severity == "ok"
    rows[8] = rows[3]
    assert (
        "row 8 of swap repeats row 3 of swap"
        in only(found(texts.duplicates, "finetune_seq2seq", rows={"train": rows})).what
    )


def test_empty_rows_are_found_and_are_not_repeats(found, make):
    rows = [*make.documents(8), {"text": " \n\t"}, {"text": ""}]
    said = only(found(texts.empty, "pretrain_mlm", rows={"validation": rows}))
    assert (said.severity, said.where) == ("warn", "validation")
    assert "20.0 % of 10 rows have no text (row 8, row 9)" in said.what
    assert only(found(texts.duplicates, "pretrain_mlm", rows={"train": rows})).severity == "ok"
    assert only(found(texts.empty, "pretrain_mlm", rows={"train": rows[6:]})).severity == "bad"


def test_held_out_texts_in_train_are_found(found, make):
    test = make.examples(37, 3000)
    test[5] = {"text": make.examples(12)[11]["text"].replace(" ", "  "), "label": "money"}
    said = only(found(texts.leakage, "finetune_classification", rows={"test": test}))
    assert (said.severity, said.where) == ("bad", "test")
    assert "2.7 % of 37 texts are also in train (row 5 is row 11 of train)" in said.what
    assert "data.test_fraction" in said.mend


def test_empty_texts_in_both_splits_are_not_leakage(found, make):
    rows = [*make.documents(9), {"text": ""}]
    held_out = [*make.documents(9, 500), {"text": ""}]
    assert only(found(texts.leakage, "pretrain_mlm", rows={"train": rows, "validation": held_out})).severity == "ok"


def test_a_label_missing_in_train_is_found(found, make):
    test = [*make.examples(30, 3000), {"text": "a match", "label": "sport"}]
    said = only(found(texts.labels, "finetune_classification", rows={"test": test}))
    assert (said.severity, said.where) == ("bad", "test")
    assert said.what == "'sport' (1x), not in train"


def test_a_label_only_in_train_is_found(found, make):
    train = [*make.examples(30), {"text": "a match", "label": "sport"}]
    said = only(found(texts.labels, "finetune_classification", rows={"train": train}))
    assert (said.severity, said.where) == ("warn", "train")
    assert "'sport' only in train" in said.what


def test_a_split_without_labels_gives_the_error_of_the_recipe(everything, make):
    test = [{"text": row["text"]} for row in make.examples(9, 3000)]
    said = [f for f in everything("finetune_classification", rows={"test": test}) if f.severity == "bad"]
    assert "fails with: test: there is no column 'label'" in only(said).what


def test_a_model_that_does_not_beat_the_majority_is_found(found, make):
    share = sum(row["label"] == "money" for row in make.examples(37, 3000)) / 37
    result = {"metric": {"accuracy": share}, "split": "test"}
    said = only(found(texts.labels, "finetune_classification", result=result))
    assert said.severity == "bad"
    assert f"accuracy {share:.3f} does not beat always predicting 'money' ({share:.3f} on 37 rows)" in said.what
    for accuracy, severity in ((share + 0.05, "warn"), (0.97, "ok")):
        result["metric"]["accuracy"] = accuracy
        assert only(found(texts.labels, "finetune_classification", result=result)).severity == severity


def test_class_weights_give_up_accuracy_on_purpose(found, make):
    settings = {"result": {"metric": {"accuracy": 0.1}, "split": "test"}, "objective": {"class_weights": "balanced"}}
    assert only(found(texts.labels, "finetune_classification", **settings)).severity == "note"
    said = only(found(tokens.floor, "finetune_classification", log=[{"step": 9, "loss": 9.0}], **settings))
    assert said.severity == "ok"
    assert "objective.class_weights changes the loss, which cannot be compared" in said.what


def test_an_unfinished_run_is_judged_by_its_evaluations(found, make):
    log = [{"step": step, "eval_accuracy": 0.5 + step / 1000} for step in (10, 20)]
    said = only(found(texts.labels, "finetune_classification", log=log))
    assert (said.severity, said.where) == ("bad", "validation")
    assert "accuracy 0.520" in said.what


def test_an_unbalanced_split_gives_a_note(found, make):
    rows = [row | {"label": "money" if n else "places"} for n, row in enumerate(make.examples(40))]
    splits = {"train": rows, "validation": rows, "test": rows}
    said = only(found(texts.labels, "finetune_classification", rows=splits))
    assert said.severity == "note"
    assert "always predicting 'money' gives accuracy 97.5 %" in said.what


def test_label_lists_columns_and_numbers_are_checked(found, make, write):
    rows = [
        row | {"tags": [row["label"]], "a": n % 2, "b": 1, "score": n / 7} for n, row in enumerate(make.examples(20))
    ]
    strange = [row | {"tags": ["sport"], "b": 0} for row in rows]
    splits = {"train": rows, "validation": rows, "test": strange}

    def said(kind, column):
        kinds = {"objective": {"problem_type": kind}, "data": {"label_column": column}}
        return [f.line() for f in found(texts.labels, "finetune_classification", rows=splits, **kinds)]

    assert "'sport' (20x), not in train" in said("multi_label_classification", "tags")[0]
    assert "2 labels" in said("multi_label_classification", ["a", "b"])[0]
    assert "standard deviation 0.8" in said("regression", "score")[0]
    assert said("regression", "b")[0].startswith("bad   labels      train: all numbers are equal")


def test_every_finding_is_one_line(found, make):
    for check in (texts.duplicates, texts.leakage):
        rows = {split: make.documents(5) * 2 for split in ("train", "validation", "test")}
        for each in found(check, "pretrain_mlm", rows=rows):
            assert "\n" not in each.line()
            assert each.line().startswith(f"{each.severity:<5} {each.check}")
            json.dumps(vars(each))
