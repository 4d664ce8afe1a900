"""Causal rows and batches: every byte of a text is scored once, with the right logits; prompts are not scored."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from decero.data.causal import (
    OBJECTIVES,
    CausalLanguageModeling,
    Continuation,
    count_bytes,
    start_id,
    tokenize_text,
)
from decero.data.collators import IGNORED
from decero.data.order import RowIndex, Rows
from decero.data.prompt_completion import PromptCompletion, tokenize_prompts
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.execution.decoder_tokenizer import fit_decoder

ODD = ["", "a", " ", "\n\n x  y \n", "año – 10 € 𝒳\U0001f469\u200d\U0001f52c", "</s> is text, and so is <s>"]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def bpe(texts):
    return train_tokenizer(texts, algorithm="byte_level_bpe", vocab_size=307, model_max_length=64, show_progress=False)


@pytest.fixture
def chatty(bpe, tmp_path):
    """A copy of the tokenizer, so that tests do not share a chat template."""
    bpe.save_pretrained(tmp_path)
    copy = AutoTokenizer.from_pretrained(tmp_path)
    copy.chat_template = TEMPLATE
    return copy


def documents(texts, **columns):
    return Dataset.from_dict({"text": texts, **columns})


def batch_of(collate, rows, epoch=0):
    return collate(Rows(rows).__getitems__([RowIndex(epoch, i) for i in range(len(rows))]))


def scored(batch):
    return batch["labels"][batch["labels"] != IGNORED].tolist()


@pytest.mark.parametrize("max_length", [4, 7, 31])
def test_rows_hold_all_text_and_their_bytes_add_up(bpe, texts, max_length):
    every = [*texts, *ODD]
    rows = tokenize_text(documents(every), bpe, max_length=max_length)
    assert max(map(len, rows["input_ids"])) == max_length
    assert {ids[0] for ids in rows["input_ids"]} == {bpe.bos_token_id}
    back, documents_back, size = "", [], 0
    ids_of_document = []
    for ids, ends, count in zip(rows["input_ids"], rows["ends"], rows["bytes"], strict=True):
        ids_of_document += ids[1:]
        size += count
        if ends:
            back = bpe.decode(ids_of_document)
            assert size == len(back.encode())
            documents_back.append(back)
            ids_of_document, size = [], 0
    assert documents_back == [text for text in every if text]
    assert count_bytes(rows) == sum(len(text.encode()) for text in every)


@pytest.mark.long
@given(text=st.text(max_size=60), max_length=st.integers(2, 9))
@settings(deadline=None, max_examples=40)
def test_any_text_is_scored_to_the_byte(bpe, text, max_length):
    rows = tokenize_text(documents([f"x{text}"]), bpe, max_length=max_length)
    assert count_bytes(rows) == len(f"x{text}".encode())
    batch = batch_of(CausalLanguageModeling(bpe, score_ends=False), rows)
    assert bpe.decode(scored(batch)) == f"x{text}"


def test_bytes_are_null_when_decoding_changes_the_text(tokenizer, bpe):
    rows = tokenize_text(documents(["The market"]), tokenizer, max_length=9, start_token="[CLS]")
    assert count_bytes(rows) is None  # it lowercases
    assert count_bytes(tokenize_text(documents(["The market"]), bpe, max_length=9)) == 10


def test_labels_are_the_next_token_and_the_end_of_the_document(bpe):
    ids = bpe("the market rose", add_special_tokens=False)["input_ids"]
    rows = tokenize_text(documents(["the market rose"]), bpe, max_length=len(ids))
    batch = batch_of(CausalLanguageModeling(bpe), rows)
    s, e, pad, last = bpe.bos_token_id, bpe.eos_token_id, bpe.pad_token_id, len(ids) - 2
    assert batch["input_ids"].tolist() == [[s, *ids[:-1]], [s, ids[-1], *[pad] * last]]
    assert batch["labels"].tolist() == [[*ids[:-1], IGNORED], [ids[-1], e, *[IGNORED] * last]]
    assert batch["attention_mask"].tolist() == [[1] * len(ids), [1, 1, *[0] * last]]
    assert scored(batch_of(CausalLanguageModeling(bpe, score_ends=False), rows)) == ids


def test_a_continuation_scores_only_what_follows_a_prefix(bpe, texts):
    rows = tokenize_text(documents(texts), bpe, max_length=23)
    whole = batch_of(CausalLanguageModeling(bpe), rows)
    batch = batch_of(Continuation(bpe, seed=3), rows)
    assert torch.equal(batch["input_ids"], whole["input_ids"])
    skipped = []
    for ids, labels, every in zip(rows["input_ids"], batch["labels"], whole["labels"], strict=True):
        first = int((labels != IGNORED).nonzero()[0])
        assert torch.equal(labels[first:], every[first:])
        assert first <= len(ids) - 2  # at least one token of text, not only the end token
        skipped.append(first / (len(ids) - 1))
    assert min(skipped) == 0
    assert np.mean(skipped) == pytest.approx(0.5, abs=0.1)


def test_a_prefix_is_a_function_of_seed_epoch_and_example(bpe, texts):
    rows = tokenize_text(documents(texts), bpe, max_length=23)

    def labels(epoch=1, **settings):
        return batch_of(Continuation(bpe, **settings), rows, epoch)["labels"].tolist()

    assert labels(seed=1) == labels(seed=1)
    assert labels(seed=1) != labels(seed=2)
    assert labels(epoch=1) != labels(epoch=2)
    assert labels(epoch=1, frozen=True) == labels(epoch=2, frozen=True)
    backwards = [Rows(rows).__getitems__([RowIndex(1, i)])[0] for i in reversed(range(len(rows)))]
    assert Continuation(bpe)(backwards)["labels"].tolist()[::-1] == labels()
    assert {name: type(make(bpe, seed=1)) for name, make in OBJECTIVES.items()} == {
        "causal_lm": CausalLanguageModeling,
        "continuation": Continuation,
    }


def test_the_start_token_is_bos_or_the_named_one(bpe):
    assert start_id(bpe) == bpe.bos_token_id
    assert start_id(bpe, "</s>") == bpe.eos_token_id
    rows = tokenize_text(documents(["the market"]), bpe, max_length=9, start_token="</s>")
    assert rows[0]["input_ids"][0] == bpe.eos_token_id
    with pytest.raises(UserError, match=r"data.start_token: unknown token </d> in .*; did you mean </s>\?"):
        start_id(bpe, "</d>")
    with pytest.raises(UserError, match="no text is left after tokenization"):
        tokenize_text(documents([""]), bpe, max_length=9)


def pairs(sources, targets):
    return Dataset.from_dict({"source": sources, "target": targets})


def test_a_completion_and_its_end_are_scored_but_no_prompt(bpe, chatty):
    fit_decoder(chatty)
    rows = tokenize_prompts(
        pairs(["the market", "rose"], ["fell", "gained after </s>"]), chatty, max_source_length=31,
        max_target_length=31, prefix="say: ", separator=" =>",
    )  # fmt: skip
    assert rows["truncated"] == [False, False]
    batch = batch_of(PromptCompletion(chatty), rows)
    whole = chatty.batch_decode(batch["input_ids"], skip_special_tokens=False)
    assert whole[1].startswith("<s>say: rose =>gained after </s>")
    for row, (prompt, answer) in enumerate([("say: the market =>", "fell"), ("say: rose =>", "gained after </s>")]):
        labels = batch["labels"][row]
        first = int((labels != IGNORED).nonzero()[0])
        read = batch["input_ids"][row][: first + 1].tolist()  # up to the token that predicts the answer
        assert read == chatty(prompt)["input_ids"]
        assert read.count(chatty.bos_token_id) == 1
        said = labels[labels != IGNORED].tolist()
        assert said[-1] == chatty.eos_token_id
        assert chatty.eos_token_id not in said[:-1]  # "</s>" in a text is text
        assert chatty.decode(said[:-1]) == answer
        assert batch["input_ids"][row][first + 1 : first + len(said)].tolist() == said[:-1]


def test_a_chat_is_what_the_template_says(chatty):
    rows = tokenize_prompts(
        pairs(["the market"], ["fell sharply"]), chatty, max_source_length=99, max_target_length=31, prefix="say: ",
        chat=True,
    )  # fmt: skip
    turns = [{"role": "user", "content": "say: the market"}, {"role": "assistant", "content": "fell sharply"}]
    prompt = chatty.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    whole = chatty.apply_chat_template(turns, return_dict=False)
    newline = chatty("\n", add_special_tokens=False)["input_ids"]
    assert rows[0]["input_ids"] == prompt
    assert rows[0]["input_ids"] + rows[0]["labels"] + newline == whole
    assert rows[0]["labels"][-1] == chatty.eos_token_id
    chatty.chat_template = TEMPLATE.replace("</s>", "")
    rows = tokenize_prompts(
        pairs(["the market"], ["fell"]), chatty, max_source_length=99, max_target_length=31, chat=True
    )
    assert rows[0]["labels"].count(chatty.eos_token_id) == 1


@pytest.mark.parametrize("chat", [False, True])
def test_a_long_source_loses_its_end_and_the_prompt_stays_whole(chatty, texts, chat):
    fit_decoder(chatty)
    source = " ".join(texts[:9])
    style = {"chat": True} if chat else {"separator": " =>"}
    row = tokenize_prompts(
        pairs([source], ["fell"]), chatty, max_source_length=41, max_target_length=31, prefix="say: ", **style
    )[0]
    assert row["truncated"]
    assert 35 < len(row["input_ids"]) <= 41
    said = chatty.decode(row["input_ids"])
    head, tail = ("<s>user\nsay: ", "</s>\n<s>assistant\n") if chat else ("<s>say: ", " =>")
    assert said.startswith(head)
    assert said.endswith(tail)
    assert source.startswith(said.removeprefix(head).removesuffix(tail))
    with pytest.raises(UserError, match=r"data.max_source_length 5 leaves no room for a source: the prompt without it"):
        tokenize_prompts(
            pairs([source], ["fell"]), chatty, max_source_length=5, max_target_length=31, prefix="say: ", **style
        )


def test_a_source_that_is_cut_behind_a_space_gets_shorter(bpe):
    """The offsets of a lone space at the end are empty, and cutting there once took nothing away, for ever."""
    source = "banks gained in tokyo fell "
    assert bpe(source, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"][-1] == (27, 27)
    limit = len(bpe(source, add_special_tokens=False)["input_ids"]) + 1  # the start token, and no separator
    row = tokenize_prompts(pairs([source], ["x"]), bpe, max_source_length=limit - 1, max_target_length=9, separator="")[
        0
    ]
    assert bpe.decode(row["input_ids"], skip_special_tokens=True) == source[:-1]


def test_a_completion_that_is_cut_does_not_teach_to_stop(bpe, texts):
    row = tokenize_prompts(pairs(["x"], [" ".join(texts[:9])]), bpe, max_source_length=9, max_target_length=11)[0]
    assert row["truncated"]
    assert len(row["labels"]) == 11
    assert bpe.eos_token_id not in row["labels"]


def test_pairs_and_templates_that_cannot_be_used_are_refused(chatty):
    lengths = {"max_source_length": 99, "max_target_length": 9, "where": "help train"}
    with pytest.raises(UserError, match=r"help train, row 1: no text \(null\) in 'source' or 'target'"):
        tokenize_prompts(pairs(["a", None], ["b", "c"]), chatty, **lengths)
    chatty.chat_template = "{{ raise_exception('one turn only') }}"
    with pytest.raises(UserError, match=r"its chat template fails \(one turn only\); set objective.chat_template=off"):
        tokenize_prompts(pairs(["a"], ["b"]), chatty, chat=True, **lengths)
    chatty.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(UserError, match="its chat template changes the prompt when an answer follows"):
        tokenize_prompts(pairs(["a"], ["b"]), chatty, chat=True, **lengths)
