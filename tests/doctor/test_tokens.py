"""Each planted problem of tokenizer, rows or loss floor gives its finding."""

import json
import math

import pytest
import torch
from transformers import AutoTokenizer

from decero.doctor import answers, tokens
from decero.doctor.examination import examine, open_run
from decero.doctor.tokens import entropy


def only(found):
    assert len(found) == 1, [f.line() for f in found]
    return found[0]


def test_very_short_texts_are_found(found, make):
    rows = [{"text": "so it"} if n % 4 == 0 else row for n, row in enumerate(make.documents(40))]
    said = only(found(tokens.rows, "pretrain_mlm", rows={"train": rows}))
    assert said.severity == "warn"
    assert "25.0 % of 40 sampled texts have fewer than 5 tokens" in said.what


def test_answers_that_no_window_can_give_are_found(found, make):
    rows = make.questions(30)
    said = found(answers.answers, "finetune_question_answering", rows={"train": rows}, data={"max_answer_length": 1})
    assert [(f.severity, f.mend) for f in said] == [("warn", "raise data.max_answer_length")]
    for row in rows:  # an answer of a whole sentence, and windows with room for a part of it
        row["answers"] = {"text": [row["context"]], "answer_start": [0]}
    data = {"max_length": 16, "stride": 2, "max_answer_length": 40}
    said = found(answers.answers, "finetune_question_answering", rows={"train": rows}, data=data)
    assert [(f.severity, f.mend) for f in said] == [("warn", "raise data.stride or data.max_length")]
    assert found(answers.answers, "pretrain_mlm") == []


def test_long_texts_in_pretraining_are_not_truncated(found, make):
    rows = [{"text": make.documents(1)[0]["text"] * 9} for _ in range(20)]
    assert only(found(tokens.rows, "pretrain_mlm", rows={"train": rows}, data={"max_length": 12})).severity == "ok"


@pytest.mark.parametrize(
    ("name", "data", "setting"),
    [
        ("finetune_classification", {"max_length": 11}, "data.max_length"),
        ("finetune_seq2seq", {"max_source_length": 9}, "data.max_source_length"),
    ],
)
def test_truncated_text_is_found(found, name, data, setting):
    said = only(found(tokens.rows, name, data=data))
    assert said.severity == "warn"
    assert "100.0 % of the texts are truncated" in said.what
    assert setting in said.mend


def test_unknown_tokens_are_found(found, make):
    rows = [{"text": f"{row['text']} рынок вырос"} for row in make.documents(40)]
    said = only(found(tokens.tokenizer, "pretrain_mlm", rows={"train": rows}))
    assert (said.check, said.severity) == ("tokenizer", "warn")
    assert "of the tokens are [UNK]" in said.what
    rows = [{"text": "рынок вырос резко"} for _ in range(9)]
    assert only(found(tokens.tokenizer, "pretrain_mlm", rows={"train": rows})).severity == "bad"


def test_a_special_token_with_two_ids_is_found(found):
    said = only(found(tokens.tokenizer, "pretrain_mlm", model={"overrides": {"pad_token_id": 7}}))
    assert said.severity == "warn"
    assert said.what == "pad_token_id is 7 in the model but 0 ([PAD]) in the tokenizer"
    assert said.mend == "set model.overrides.pad_token_id=0"


def test_unused_embedding_rows_are_found(found):
    said = only(found(tokens.tokenizer, "pretrain_mlm", model={"overrides": {"vocab_size": 1009}}))
    assert said.severity == "warn"
    assert "% of the 1,009 embedding rows are not used in train" in said.what


def test_ids_beyond_the_vocabulary_give_one_bad_finding(everything):
    found = everything("pretrain_mlm", model={"overrides": {"vocab_size": 60}})
    bad = [f for f in found if f.severity == "bad"]
    assert len(bad) == 1
    assert "pretrain_mlm fails with" in bad[0].what
    assert "but the model's vocab_size is 60" in bad[0].what
    assert {"duplicates", "schedule"} < {f.check for f in found}
    assert not {"overfit", "layers"} & {f.check for f in found}


def test_a_tokenizer_replaced_after_the_run_is_found(write, house, found):
    folder = write("pretrain_mlm")
    model = open_run(str(folder), "pretrain_mlm").build()
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(house / "wordpiece").save_pretrained(folder / "model")
    assert only(found(tokens.tokenizer, "pretrain_mlm")).severity == "ok"
    AutoTokenizer.from_pretrained(house / "bpe").save_pretrained(folder / "model")
    said = found(tokens.tokenizer, "pretrain_mlm")
    assert [f.what for f in said if f.severity == "bad"] == [
        "the tokenizer in model/ is not the one of the training run: its ids differ",
        "the largest id is 292, beyond the vocabulary of 113",
    ]


def test_the_floor_is_the_entropy_of_scored_labels():
    classes = torch.tensor([0] * 30_000 + [1] * 10_000)
    assert entropy(classes) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), abs=1e-4)
    few = torch.arange(50).repeat(2)  # a sample of 100 shows all 50 and knows not how alike they are
    assert entropy(few) == pytest.approx(math.log(50) + 49 / 200)
    several = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert entropy(several) == pytest.approx(math.log(2) / 2)
    assert entropy(torch.tensor([1.0, 3.0])) == pytest.approx(1.0)


def floor_of(found, name, **how):
    return float(found(tokens.floor, name, **how)[0].what.split("loss of ")[1].split()[0])


def test_a_run_that_learnt_frequencies_alone_is_found(found, make, healthy_log):
    bound = floor_of(found, "pretrain_causal_lm")
    for loss, severity in ((bound + 0.01, "bad"), (bound - 0.1, "ok")):
        log = [{"step": 10, "eval_loss": 9.0}, {"step": 100, "eval_loss": loss}]
        said = only(found(tokens.floor, "pretrain_causal_lm", log=log))
        assert said.severity == severity
    log = [{"step": 10, "loss": 9.0}, {"step": 100, "loss": bound + 0.01}]
    said = only(found(tokens.floor, "pretrain_causal_lm", log=log))
    assert said.severity == "bad"
    assert "the model has learned only frequencies" in said.what
    assert "last training loss" in said.what


def test_overfitting_gives_another_fix(found):
    log = [{"step": 100, "loss": 0.1}, {"step": 100, "eval_loss": 6.0}]
    said = only(found(tokens.floor, "pretrain_mlm", log=log))
    assert said.severity == "bad"
    assert "overfits train" in said.mend


def test_a_smoothed_training_loss_is_not_compared(found, healthy_log):
    said = only(found(tokens.floor, "finetune_seq2seq", log=healthy_log))
    assert said.severity == "ok"
    assert "only a smoothed loss" in said.what


def test_a_large_corpus_is_sampled_and_the_finding_says_so(write, make, monkeypatch):
    monkeypatch.setattr("decero.doctor.inspected_run.CHARACTERS", 2000)
    work = open_run(str(write("finetune_classification")))
    said = {f.check: f for f in examine(work) if f.check in ("rows", "tokenizer", "schedule")}
    assert len(work.rows) < 60
    assert "an even sample" in said["rows"].where
    work.config.training.max_train_steps, work.config.training.num_train_epochs = None, 2
    del work.steps
    assert work.steps == pytest.approx(26, abs=2)  # of 101 examples, not of those that were looked at
    assert json.dumps(said["rows"].what)
