"""Tasks of pairs: read from anywhere, cut to a budget, mixed by weight, answered in order."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator
from datasets import Dataset
from pydantic import ValidationError
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from decero.config.finetuning import FinetuneCausalLM, FinetuneSeq2Seq, GenerationSection, PairData, PairTask
from decero.config.sections import ModelSection, TrainingSection
from decero.data.corpus import read_parallel
from decero.data.tokenization import token_lengths, tokenize_pairs
from decero.errors import UserError
from decero.tasks import Completion, Seq2Seq
from decero.tasks.answering import check_answering, written_config
from decero.tasks.base import Corpus
from decero.tasks.pair_texts import load_pairs, mix
from decero.tasks.text_to_text import score
from decero.training.best_checkpoint import Selection


@pytest.fixture
def pairs(texts, tmp_path):
    """A parquet file of 61 pairs, the third without a target."""
    table = {"en": texts, "es": [text.upper() if n != 2 else " " for n, text in enumerate(texts)], "other": texts}
    Dataset.from_dict(table).to_parquet(tmp_path / "pairs.parquet")
    return str(tmp_path / "pairs.parquet")


def tasks(pairs, **more):
    task = {"files": {"train": pairs, "validation": pairs}, "source_column": "en", "target_column": "es"}
    return PairData.model_validate({"tasks": {"a": task | more}})


def tokenized(data, tokenizer, split):
    """The rows of task a, as `Seq2Seq` makes them."""
    section = FinetuneSeq2Seq(output="run", model=ModelSection(config="x"), data=data, training={"max_train_steps": 1})
    task = Seq2Seq(section)
    task.tokenizer = tokenizer
    return task.tokenize(task.corpus.splits[split], split)["a"]


def test_only_train_drops_pairs_with_an_empty_side(pairs):
    corpus = load_pairs(tasks(pairs), seed=0)["a"]
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 60, "validation": 61}
    assert corpus["train"].column_names == ["source", "target"]
    assert corpus["train"][2]["source"].upper() == corpus["train"][2]["target"]


def test_pairs_to_score_need_no_train(pairs, tmp_path):
    scored = tasks(pairs, files={"test": pairs})
    with pytest.raises(UserError, match="no train split"):
        load_pairs(scored, seed=0)
    assert {split: len(rows) for split, rows in load_pairs(scored, 0, needs_train=False)["a"].items()} == {"test": 61}
    for name in ("en", "es"):
        (tmp_path / name).write_text("a\nb\n")
    both = [str(tmp_path / name) for name in ("en", "es")]
    data = PairData.model_validate({"tasks": {"a": {"parallel": {"test": both}}}})
    assert len(load_pairs(data, 0, needs_train=False)["a"]["test"]) == 2


def test_a_label_budget_is_a_choice_of_the_seed(pairs):
    few = [load_pairs(tasks(pairs).model_copy(update={"max_train_rows": 13}), seed)["a"]["train"] for seed in (0, 0, 1)]
    chosen = [part["source"][:] for part in few]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == len(chosen[0]) == 13


def test_pairs_have_their_prefix_and_say_when_they_are_cut(pairs, sentinel_tokenizer):
    data = tasks(pairs, prefix="bank: ").model_copy(update={"max_source_length": 30, "max_target_length": 17})
    rows = tokenized(data, sentinel_tokenizer, "validation")
    texts = Dataset.from_parquet(pairs)
    whole = [
        (sentinel_tokenizer("bank: " + en)["input_ids"], sentinel_tokenizer(es)["input_ids"])
        for en, es in zip(texts["en"], texts["es"], strict=True)
    ]
    for row, (source, target) in zip(rows, whole, strict=True):
        assert row["input_ids"] == (source if len(source) <= 30 else [*source[:29], 1])
        assert row["labels"] == (target if len(target) <= 17 else [*target[:16], 1])
        assert row["truncated"] == (len(source) > 30 or len(target) > 17)
    assert 0 < sum(rows["truncated"]) < 61
    assert token_lengths(rows).tolist() == [len(r["input_ids"]) + len(r["labels"]) for r in rows]


def test_a_weight_is_how_often_an_epoch_goes_through_a_task(pairs, sentinel_tokenizer):
    data = tasks(pairs)
    rows = tokenized(data, sentinel_tokenizer, "train")
    weights = {"half": 0.5, "once": 1.0, "often": 2.25}
    sections = {
        name: PairTask(files={"train": "x"}, weight=weight, source_column="en") for name, weight in weights.items()
    }
    mixed = mix(dict.fromkeys(weights, rows), sections, seed=3)
    assert len(mixed) == 30 + 60 + 135
    often = np.unique([str(r["input_ids"]) for r in mixed.select(range(90, 225))], return_counts=True)[1]
    assert set(often.tolist()) == {2, 3}
    with pytest.raises(UserError, match="the weights leave nothing to train on; raise them"):
        mix({"half": rows.select(range(1))}, {"half": sections["half"].model_copy(update={"weight": 0.1})}, seed=0)


def test_a_task_that_would_not_be_scored_is_refused(pairs, sentinel_tokenizer):
    half = {"files": {"train": pairs, "test": pairs}, "source_column": "en", "target_column": "es"}
    data = PairData.model_validate({"tasks": {"a": half, "b": half | {"files": {"train": pairs, "validation": pairs}}}})
    section = FinetuneSeq2Seq(output="run", model=ModelSection(config="x"), data=data, training={"max_train_steps": 1})
    task = Seq2Seq(section)
    task.tokenizer = sentinel_tokenizer
    run = SimpleNamespace(accelerator=Accelerator(cpu=True), progress=False, print=print, training=section.training)
    with pytest.raises(UserError, match=r"data.tasks.b: it has no test split, .*; give data.tasks.b.test_fraction"):
        task.load_data(run)


def test_parallel_files_answer_line_by_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nfour\n")
    (tmp_path / "b.txt").write_text("uno\n\ntres\ncuatro\n")
    found = read_parallel({"train": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]})["train"]
    assert found["source"][:] == ["one", "two", "", "four"]
    assert found["target"][:] == ["uno", "", "tres", "cuatro"]
    (tmp_path / "b.txt").write_text("uno\n\ntres\n")
    with pytest.raises(UserError, match=r"a.txt, line 4: no matching line, because .*b.txt is shorter"):
        read_parallel({"train": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]})
    with pytest.raises(UserError, match="give two files"):
        read_parallel({"train": [str(tmp_path / "a.txt")]})


def test_a_tokenizer_that_never_ends_a_text_is_refused(tokenizer, texts):
    tokenizer = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer.__class__(
        tokenizer.backend_tokenizer.model), unk_token="[UNK]", pad_token="[PAD]")  # fmt: skip
    with pytest.raises(UserError, match="it adds no end token"):
        tokenize_pairs(
            Dataset.from_dict({"source": texts, "target": texts}), tokenizer, max_source_length=9, max_target_length=9
        )


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"files": None}, "exactly one of name"),
        ({"parallel": {"train": ["a", "b"]}}, "exactly one of name"),
        ({"weight": 0.0}, "greater than 0"),
        ({"validation_fraction": 0.6, "test_fraction": 0.4}, "leave no rows for training"),
        ({"streaming": True}, "streaming works only with name"),
        ({"messages_column": "m"}, "messages_column names whole dialogues, so remove source_column"),
        ({"group_column": "en"}, "group_column is a column of the texts; name another"),
        ({"source_column": "es"}, "target_column is the column of the sources; name another"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(pairs, settings, line):
    with pytest.raises(ValueError, match=line):
        tasks(pairs, **settings)


def test_scores_begin_with_the_main_metric():
    assert list(score(GenerationSection(metric="translation"), ["a b c d"], ["a b c d"])) == ["bleu", "chrf"]
    assert score(GenerationSection(metric="translation"), ["a b c d"], ["a b c d"])["bleu"] == pytest.approx(100)
    with pytest.raises(ValueError, match="length_penalty needs beams"):
        GenerationSection(length_penalty=0.6)


def test_patience_ends_after_evaluations_without_a_better_one(tmp_path):
    training = TrainingSection(max_train_steps=9, metric_for_best_model="eval_bleu", early_stopping_patience=2)
    selection = Selection(training, tmp_path)
    seen = []
    for step, bleu in enumerate([1.0, 3.0, 2.0, float("nan")]):
        seen.append((selection.is_better({"eval_bleu": bleu}, step), selection.out_of_patience))
    assert seen == [(True, False), (True, False), (False, False), (False, True)]
    assert selection.best == {"eval_bleu": 3.0, "step": 1}


def test_a_loss_is_better_when_it_is_lower(tmp_path):
    selection = Selection(TrainingSection(max_train_steps=9, metric_for_best_model="eval_loss"), tmp_path)
    assert [selection.is_better({"eval_loss": loss}, 1) for loss in (2.0, 2.5, 1.5)] == [True, False, True]
    with pytest.raises(UserError, match="unknown metric eval_loss; use one of eval_bleu"):
        selection.is_better({"eval_bleu": 1.0}, 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_beams": 2**63 - 1}, "generation.num_beams"),
        ({"num_beams": 10**6}, "generation.num_beams"),
        ({"num_beams": 0}, "generation.num_beams"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "generation.length_penalty"),
        ({"num_beams": 2, "length_penalty": 1e300}, "generation.length_penalty"),
        ({"max_new_tokens": 0}, "generation.max_new_tokens"),
        ({"max_new_tokens": 10**21}, "generation.max_new_tokens"),
        ({"validation_rows": -1}, "generation.validation_rows"),
        ({"tokenize": "zh"}, "generation.tokenize is BLEU's"),
        ({"metric": "translation", "tokenize": "zhh"}, "generation.tokenize"),
    ],
)
def test_settings_of_writing_have_bounds(settings, said):
    fields = {"output": "run", "model": {"config": "x"}, "data": {"tasks": {"a": {"name": "x"}}}}
    fields |= {"training": {"max_train_steps": 1}, "generation": settings}
    with pytest.raises(UserError, match=said):
        FinetuneSeq2Seq.parse(fields, "a.yaml")


@pytest.mark.parametrize(
    "field", [{"weight": 1e300}, {"weight": float("inf")}, {"max_source_length": 10**21}, {"num_proc": 10**6}]
)
def test_settings_of_pairs_have_bounds(field):
    task = {"name": "x"} | {name: value for name, value in field.items() if name == "weight"}
    data = {"tasks": {"a": task}} | {name: value for name, value in field.items() if name != "weight"}
    with pytest.raises(ValidationError, match=r"less than or equal to|finite number"):
        PairData.model_validate(data)


@pytest.fixture(scope="module")
def writer():
    config = T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).eval()


ANSWERING = {  # of the checkpoint, of the run -> what is said before training
    "beams": ({}, {"num_beams": 98}, "generation.num_beams: 98 beams exceed the 97 tokens of the vocabulary"),
    "least": ({"min_length": 56}, {"max_new_tokens": 20}, "max_new_tokens 20 is less than the 55 tokens"),
    "forced": ({"forced_eos_token_id": 500}, {}, "the model cannot generate (IndexError"),
    "strings": ({"stop_strings": ["x"]}, {}, "the model cannot generate (ValueError: There are one or more stop str"),
    "groups": ({"num_beam_groups": 2}, {"num_beams": 4}, "the model cannot generate (ValueError: Group Beam Search"),
    "fits": ({"early_stopping": True, "temperature": 0.5, "num_return_sequences": 3, "max_length": 9}, {}, None),
    "negative pad": ({"pad_token_id": -1}, {"num_beams": 2}, None),
}


@pytest.mark.parametrize(("own", "settings", "said"), ANSWERING.values(), ids=ANSWERING)
def test_what_cannot_be_written_or_saved_is_said_early(own, settings, said, writer, tmp_path):
    before, writer.generation_config = writer.generation_config, copy.deepcopy(writer.generation_config)
    for name, value in own.items():
        setattr(writer.generation_config, name, value)
    generation, tries = GenerationSection(**settings), [[5, 1], [6, 7, 8, 1]]
    try:
        if said:
            with pytest.raises(UserError) as error:
                check_answering(writer, generation, 20, tries, {})
            assert said in str(error.value)
            return
        check_answering(writer, generation, 20, tries, {})
        writer.generation_config = written_config(writer, generation)
        writer.save_pretrained(tmp_path)
    finally:
        writer.generation_config = before
    saved = T5ForConditionalGeneration.from_pretrained(tmp_path).generation_config
    assert (saved.num_beams, saved.max_new_tokens, saved.max_length) == (generation.num_beams, 128, None)


def test_beams_that_fit_no_memory_are_refused(writer, monkeypatch):
    memory = SimpleNamespace(available=10_000)
    monkeypatch.setattr("decero.inference.decoding_plan.psutil.virtual_memory", lambda: memory)
    with pytest.raises(UserError, match=r"generation.num_beams: 9 beams need about .* GB of memory for one text"):
        check_answering(writer, GenerationSection(num_beams=9), 20, [[5, 1]], {})


def test_no_more_is_saved_than_a_model_has_positions():
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 50}
    model = BartForConditionalGeneration(BartConfig(**sizes, **heads, max_position_embeddings=40))
    assert written_config(model, GenerationSection()).max_new_tokens == 40
    with pytest.raises(UserError, match="max_new_tokens 41 exceeds the 40 positions of the model; lower it to 40"):
        check_answering(model, GenerationSection(max_new_tokens=41), 20, [[5, 1]], {})


def test_an_encoder_decoder_refuses_dialogues():
    fields = {"output": "run", "model": {"config": "x"}, "training": {"max_train_steps": 1}}
    data = {"tasks": {"a": {"name": "x", "messages_column": "m"}}}
    with pytest.raises(UserError, match=r"data.tasks.a.messages_column: an encoder-decoder reads no dialogues; use"):
        FinetuneSeq2Seq.parse(fields | {"data": data}, "a.yaml")


def test_a_decoder_refuses_languages():
    data = PairData.model_validate({"tasks": {"a": {"name": "x", "target_lang": "fra_Latn"}}})
    fields = {"output": "run", "model": ModelSection(config="x"), "training": {"max_train_steps": 1}}
    with pytest.raises(UserError, match=r"data.tasks.a.target_lang: a decoder reads no languages; remove it"):
        Completion(FinetuneCausalLM(data=data, **fields)).direction("a")


def test_parts_in_other_scripts_have_signatures_of_their_own():
    data = PairData.model_validate({"tasks": {"en": {"name": "x"}, "zh": {"name": "x"}}})
    fields = {"output": "run", "model": ModelSection(config="x"), "training": {"max_train_steps": 1}}
    task = Seq2Seq(FinetuneSeq2Seq(data=data, generation=GenerationSection(metric="translation"), **fields))
    parts = {name: {"target": [text] * 2} for name, text in {"en": "banks gained", "zh": "银行提高了利率"}.items()}
    task.corpus = Corpus({"test": parts}, ("source", "target"))
    found = task._signatures("test", ["en", "zh"])
    assert list(found) == ["en_bleu", "en_chrf", "zh_bleu", "zh_chrf"]
    assert ("|tok:13a|" in found["en_bleu"], "|tok:zh|" in found["zh_bleu"]) == (True, True)
    assert list(task._signatures("test", ["zh"])) == ["bleu", "chrf"]
