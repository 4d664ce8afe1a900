"""Scores equal a brute-force loop, token by token, in four stock families; at any batch size."""

import json
import math

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, BertModel

from decero.cli.main import main
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.inference import fill, load, score

TEXTS = ["the market rose", "banks-and shares fell on monday after", "ñu", "profit news from tokyo and london gained"]
FIELDS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
FIELDS |= {"vocab_size": 311, "max_position_embeddings": 59, "initializer_range": 0.4}
GPT2 = {"vocab_size": 311, "n_embd": 22, "n_layer": 2, "n_head": 2, "n_positions": 59, "initializer_range": 0.4}
FAMILIES = ("bert", "roberta", "modernbert", "gpt2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, texts):
    """A tiny checkpoint of each family, whose tokenizer cuts words into several pieces."""
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        algorithm, size = ("wordpiece", 61) if family == "bert" else ("byte_level_bpe", 271)
        tokenizer = train_tokenizer(
            texts, algorithm=algorithm, vocab_size=size, model_max_length=59, min_frequency=1, show_progress=False
        )
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        ids = {name: value for name, value in ids.items() if value is not None}
        transformers.set_seed(7)
        config = AutoConfig.for_model(family, **(GPT2 if family == "gpt2" else FIELDS), **ids)
        auto = AutoModelForCausalLM if family == "gpt2" else AutoModelForMaskedLM
        auto.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[family] = str(folder)
    return made


def brute_force(loaded, text, method):
    """ln p of each token: a forward pass of its own, without padding; words are found letter by letter."""
    tokenizer, found = loaded.tokenizer, []
    plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = plain["input_ids"], plain["offset_mapping"]
    if method is None:
        for k, label in enumerate(ids):
            logits = loaded.model(torch.tensor([[tokenizer.bos_token_id, *ids[:k]]])).logits[0, -1]
            found.append(float(logits.double().log_softmax(-1)[label]))
        return found
    framed = tokenizer(text)["input_ids"]
    first = framed.index(ids[0])
    for k, label in enumerate(ids):
        row = list(framed)
        for j in range(k, len(ids)):
            between = text[offsets[k][0] : offsets[j][0] + 1]
            if j == k or method == "sentence_l2r" or (method == "within_word_l2r" and between.isalnum()):
                row[first + j] = tokenizer.mask_token_id
        logits = loaded.model(torch.tensor([row])).logits[0, first + k]
        found.append(float(logits.double().log_softmax(-1)[label]))
    return found


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_a_brute_force_loop(family, folders):
    loaded = load(folders[family], "score")
    methods = [None] if family == "gpt2" else ["original", "within_word_l2r", "sentence_l2r"]
    sums = []
    for method in methods:
        found = list(score(loaded, TEXTS, pseudo_likelihood=method))
        with torch.no_grad():
            wanted = [brute_force(loaded, text, method) for text in TEXTS]
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours.log_probabilities, theirs, atol=1e-4)
        sums.append(sum(each.total for each in found))
    assert len({round(total, 2) for total in sums}) == len(methods)
    assert found[0].kind == ("log_likelihood" if methods[-1] in (None, "sentence_l2r") else "pseudo_log_likelihood")


@pytest.mark.parametrize("method", ["original", "within_word_l2r", "sentence_l2r"])
def test_no_token_sees_a_hole_of_a_permutation_model(method, folders):
    """The score of each token is that of a query behind the text, as in training."""
    from decero.data.likelihood_rows import MaskedRows
    from decero.data.permutation import add_queries, stack_ordered
    from decero.execution.packed_forward import logits_of
    from decero.execution.pretraining_objective import PERMUTATION, mark_objective

    loaded = load(folders["bert"], "score")
    mark_objective(loaded.model.config, PERMUTATION)
    rows = MaskedRows(loaded.tokenizer, method)
    for text, found in zip(TEXTS, score(loaded, TEXTS, pseudo_likelihood=method), strict=True):
        passage = rows.cut([text], None)[0].passages[0]
        ids = np.array(loaded.tokenizer(text)["input_ids"])
        for number, label in enumerate(passage.ids):
            places = np.array(rows.masked(passage, number)) + 1
            batch = stack_ordered([add_queries(ids, places, loaded.tokenizer.mask_token_id)], 0)
            with torch.no_grad():
                logits = logits_of(loaded.model, batch)[0, len(ids)]  # the query of the first place
            assert found.log_probabilities[number] == pytest.approx(float(logits.log_softmax(-1)[label]), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_do_not_depend_on_the_batch(family, folders):
    loaded = load(folders[family], "score")
    found = [[each.total for each in score(loaded, TEXTS * 2, batch_tokens=tokens)] for tokens in (1, 7 * 40, 64 * 40)]
    for totals in found:
        assert totals == pytest.approx(found[0], rel=1e-6)
        assert totals[: len(TEXTS)] == totals[len(TEXTS) :]  # equal texts to the last bit


def test_a_sentence_left_to_right_is_a_probability(folders):
    """Over all texts of two tokens it sums to one; a pseudo-likelihood does not."""
    from decero.data.likelihood_rows import MaskedRows, ScoredPassage
    from decero.inference.text_scores import passage_scores

    loaded = load(folders["modernbert"], "score")
    size = loaded.model.config.vocab_size
    few = [0, 5, 17]  # all second tokens after each of these
    for method, one in (("sentence_l2r", True), ("original", False)):
        rows = MaskedRows(loaded.tokenizer, method)
        passages = [ScoredPassage((a, b), (True, True)) for a in few for b in range(size)]
        scores = passage_scores(loaded.model, rows, passages, lambda lengths: [list(range(len(lengths)))])
        second = np.exp([values[1] for values in scores]).reshape(len(few), size).sum(axis=1)
        first = np.array([values[0] for values in scores]).reshape(len(few), size)
        assert second == pytest.approx(1, abs=1e-4)
        assert (np.ptp(first, axis=1) < 1e-4).all() == one  # the first token does not know the second one


def test_the_command_prints_a_line_a_line_and_the_sum(folders, capsys, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("the market rose\n\n" + "banks " * 50 + "\n")
    main(["score", folders["gpt2"], str(path)])
    out, error = capsys.readouterr()
    lines = out.splitlines()
    assert [len(line.split("\t")) for line in lines] == [3, 1, 3]
    assert "warning: line 2: it has no tokens, and no score" in error
    assert "warning: line 3: read in" in error
    assert "3 lines: log_likelihood" in error
    total, perplexity, bits = map(float, lines[0].split("\t"))
    scored = next(score(folders["gpt2"], ["the market rose"]))
    assert total == pytest.approx(scored.total, abs=1e-3)
    assert perplexity == pytest.approx(math.exp(-total / len(scored.tokens)), rel=1e-3)
    assert bits == pytest.approx(-total / math.log(2) / 15, rel=1e-3)
    main(["score", folders["bert"], "the market rose", "--jsonl"])
    out, error = capsys.readouterr()
    record = json.loads(out)
    assert list(record)[:4] == ["text", "pseudo_log_likelihood", "pseudo_perplexity", "pseudo_bits_per_byte"]
    values = [each["log_probability"] for each in record["tokens"]]
    assert record["pseudo_log_likelihood"] == pytest.approx(sum(values))
    assert "pseudo figures compare masked models only, not with causal ones" in error
    main(["score", folders["roberta"], "the market rose", "--pseudo-likelihood", "sentence_l2r"])
    assert "log_likelihood" in capsys.readouterr().err


def test_what_gives_no_likelihood_is_refused_in_one_line(folders, tmp_path, tokenizer, checkpoint, capsys):
    def said(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["score", *argv])
        error = capsys.readouterr().err
        assert (end.value.code, error.count("\n")) == (2, 1), error
        return error

    BertModel(BertConfig(**FIELDS)).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    assert "this bert model (BertModel) has no masked or causal head" in said(str(tmp_path / "bare"), "a")
    assert "classifies texts; use decero classify" in said(checkpoint("classifier", "stock"), "a")
    decoder = AutoModelForCausalLM.from_config(BertConfig(**FIELDS))  # not a decoder, though its class says so
    decoder.save_pretrained(tmp_path / "ahead")
    tokenizer.save_pretrained(tmp_path / "ahead")
    assert "BertLMHeadModel reads later tokens, so it gives no likelihood" in said(str(tmp_path / "ahead"), "a")
    wrong = said(folders["gpt2"], "a", "--pseudo-likelihood", "original")
    assert "pseudo_likelihood has no effect on a causal model; remove it" in wrong
    assert "start_token has no effect on a masked" in said(folders["bert"], "a", "--start-token", "[CLS]")
    with pytest.raises(UserError, match="unknown token <S>"):
        list(score(folders["gpt2"], ["a"], start_token="<S>"))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("the cat", {}, "texts: give a list of texts, not a str"),
        (["the cat", None], {}, "line 2: None is no text; give a text, or leave it out"),
        (["the cat", float("nan")], {}, "line 2: nan is no text"),
        (["a\ud800b"], {}, "line 1: half a character"),
        (["a"], {"pseudo_likelihood": "orignal"}, "'orignal' is none of .*; did you mean original?"),
        (["a"], {"first_window": 0}, "first_window: 0 is too small; give 1 or more"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_in_one_line(folders, given, options, message):
    with pytest.raises(UserError, match=message) as refused:
        list(score(folders["bert"], given, **options))
    assert "\n" not in str(refused.value)
    if not options:
        with pytest.raises(UserError, match=message):
            list(fill(folders["bert"], given))


def test_a_model_in_place_of_its_name_is_refused(folders):
    model = AutoModelForMaskedLM.from_pretrained(folders["bert"])
    with pytest.raises(UserError, match=r"^a BertForMaskedLM is no name; give a folder, a name on the hub"):
        list(score(model, ["a"]))
