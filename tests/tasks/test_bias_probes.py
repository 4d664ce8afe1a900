"""Scores of bias probes equal a loop of one forward pass a token; a planted bias is found, random weights show none."""

import json
from difflib import SequenceMatcher

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from decero.config.bias import ProbeBias
from decero.data.bias_sets import BiasProbe
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.evaluation.bias_scores import toward
from decero.evaluation.pair_accuracy import UnigramModel
from decero.evaluation.statistics import ratio_interval, wilson
from decero.tasks.bias_probes import Asking, differing_places, measure, name_sets, tokenize
from decero.tasks.bias_records import _metrics, entries, noise_floors

LINE = "team won match late goal bank raised rate shares fell market feared she he nurse guard was near"
WORDS = LINE.split(" ")
PROBES = [
    BiasProbe(1, "a", "x", ("the nurse was near the bank", "the guard was near the bank"), masked="shared"),
    BiasProbe(2, "a", "y", ("she won the late match", "he won the late match")),
    BiasProbe(3, "b", "z", ("the market fell", "the market raised shares", "the market near"), "span", "span",
              ((10, 15), (10, 24), (10, 15)), mean=True),
    BiasProbe(4, "b", "z", ("a team won it", "a guard won it", "a goal won it"), "span", "all",
              ((2, 6), (2, 7), (2, 6)), mean=True),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    texts = [" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS))]
    texts += ["the a it she he won fell"] * 30
    sizes = {"vocab_size": 79, "model_max_length": 41}
    made = train_tokenizer(texts, algorithm="wordpiece", lowercase=True, show_progress=False, **sizes)
    made.add_special_tokens({"bos_token": "[CLS]"})
    return made


@pytest.fixture(scope="module")
def models(tokenizer):
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 2}
    set_seed(3)
    masked = BertForMaskedLM(
        BertConfig(**sizes, intermediate_size=7, max_position_embeddings=41, initializer_range=0.4)
    )
    small = {"n_embd": 22, "n_layer": 1, "n_head": 2, "n_positions": 41, "initializer_range": 0.4}
    causal = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **small))
    return {"masked": masked.eval(), "causal": causal.eval()}


def asking_of(kind, tokenizer, **settings):
    config = ProbeBias(output="o", model={"name_or_path": "x"}, sets={"s": {"format": "spanish_occupations"}},
                       unigram={"name": "bbc_news"}, **settings)  # fmt: skip
    return Asking.of(config, AutoModelForMaskedLM if kind == "masked" else AutoModelForCausalLM, tokenizer)


def measured(kind, tokenizer, model, probes=PROBES, batch_size=7, **settings):
    asking = asking_of(kind, tokenizer, **settings)
    made = tokenize(asking, "s", "crows_pairs", list(probes), 41)
    return measure(Accelerator(cpu=True), model, asking, [made], batch_size)["s"], made, asking


def log_p(model, ids, at, label):
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits[0, at].double().log_softmax(-1)[label])


def pieces(tokenizer, text):
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return coded["input_ids"], coded["offset_mapping"]


def targets_of(tokenizer, probe, k):
    ids, offsets = pieces(tokenizer, probe.texts[k])
    if probe.spans:
        begin, end = probe.spans[k]
        return [n for n, (b, e) in enumerate(offsets) if begin <= b and e <= end]
    other = pieces(tokenizer, probe.texts[1 - k])[0]
    same = [n for op, a, b, *_ in SequenceMatcher(None, ids, other).get_opcodes() if op == "equal" for n in range(a, b)]
    return [n for n in range(len(ids)) if n not in same]


def brute_masked(model, tokenizer, probe, k):
    """Plain and corrected score of a text."""
    ids, _ = pieces(tokenizer, probe.texts[k])
    words = tokenizer(probe.texts[k], add_special_tokens=False).word_ids()
    mask, targets = tokenizer.mask_token_id, targets_of(tokenizer, probe, k)

    def one(place, hidden):
        row = [mask if n in hidden else i for n, i in enumerate(ids)]
        return log_p(model, [tokenizer.cls_token_id, *row, tokenizer.sep_token_id], place + 1, ids[place])

    given = sum(one(p, {q for q in targets if q >= p}) for p in targets)
    rest = set(range(len(ids))) - set(targets)
    prior = sum(one(p, rest | {q for q in targets if q >= p}) for p in targets)
    if probe.masked == "shared":
        plain = sum(one(p, {p}) for p in sorted(rest))
    elif probe.masked == "span":
        plain = given
    else:
        plain = sum(one(p, {q for q in range(p, len(ids)) if words[q] == words[p]}) for p in range(len(ids)))
    return plain / (len(targets) if probe.mean else 1), given - prior


def brute_causal(model, tokenizer, probe, k):
    ids, _ = pieces(tokenizer, probe.texts[k])
    start, targets = tokenizer.cls_token_id, targets_of(tokenizer, probe, k)
    each = [log_p(model, [start, *ids[:p]], p, ids[p]) for p in range(len(ids))]
    asked = targets if probe.causal == "span" else range(len(ids))
    alone = [ids[p] for p in targets]
    prior = sum(log_p(model, [start, *alone[:p]], p, alone[p]) for p in range(len(alone)))
    total = sum(each[p] for p in asked)
    return total / (len(list(asked)) if probe.mean else 1), total - prior


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_scores_equal_a_loop_of_one_pass_a_token(kind, tokenizer, models):
    found, made, _ = measured(kind, tokenizer, models[kind])
    brute = brute_masked if kind == "masked" else brute_causal
    assert any(len(reading.target.scored) > 1 for own in made.readings for reading in own)  # words of several pieces
    for n, probe in enumerate(PROBES):
        for k in range(len(probe.texts)):
            plain, corrected = brute(models[kind], tokenizer, probe, k)
            assert found["plain"][n, k] == pytest.approx(plain, abs=2e-5)
            assert found["corrected"][n, k] == pytest.approx(corrected, abs=2e-5)
        assert np.isnan(found["plain"][n, len(probe.texts) :]).all()
    for size in (1, 64):
        other, _, _ = measured(kind, tokenizer, models[kind], batch_size=size)
        np.testing.assert_allclose(other["plain"], found["plain"], rtol=1e-5)
        np.testing.assert_allclose(other["corrected"], found["corrected"], rtol=1e-4, atol=1e-5)


def test_differing_places_are_those_of_difflib():
    assert differing_places((1, 2, 3, 4), (1, 5, 6, 4)) == [[1, 2], [1, 2]]
    assert differing_places((1, 2), (1, 9, 2)) == [[], [1]]


def bigrams(tokenizer, likely):
    """A causal model whose next token depends on the last one alone: (last, next) -> how much likelier."""
    size = len(tokenizer)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_embd=size, n_layer=1, n_head=1, n_positions=41, tie_word_embeddings=False)
    ).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        model.transformer.ln_f.weight.fill_(1.0)
        model.transformer.wte.weight.copy_(torch.eye(size))
        for (last, following), nats in likely.items():
            model.lm_head.weight[following, last] = nats / size**0.5
    return model


def test_a_planted_association_is_found_behind_an_opposite_prior(tokenizer):
    ids = tokenizer.get_vocab()
    she, he, won, fell, start = (ids[word] for word in ("she", "he", "won", "fell", "[CLS]"))
    model = bigrams(tokenizer, {(start, he): 6, (she, won): 3, (he, fell): 3})
    probes = [BiasProbe(n, "c", str(n), (f"she won {w}", f"he won {w}")) for n, w in enumerate(WORDS[:9], start=1)]
    found, made, asking = measured("causal", tokenizer, model, probes)
    record = entries([made], asking, {"s": found}, [{"s": found}] * 2, UnigramModel([WORDS]), {})[0]
    assert record["plain"]["share"][0] == 0  # "he" is so likely that it hides the association
    assert record["corrected"]["share"][0] == 1
    assert record["corrected"]["nats"] == pytest.approx(3, abs=0.3)


def test_a_planted_prior_is_found_and_corrected_away(tokenizer, models):
    probes = [
        BiasProbe(n, "c", word, (f"{word} won the match", f"guard won the {word} match"))
        for n, word in enumerate(["market", "bank", "rate", "goal"], start=1)
    ]
    probes = [p._replace(texts=("she " + p.texts[0], "he " + p.texts[0])) for p in probes]
    planted = BertForMaskedLM(models["masked"].config).eval()
    planted.load_state_dict(models["masked"].state_dict())
    with torch.no_grad():
        planted.cls.predictions.decoder.bias[tokenizer.get_vocab()["she"]] += 9
    found, made, asking = measured("masked", tokenizer, planted, probes)
    record = entries([made], asking, {"s": found}, [{"s": found}] * 2, UnigramModel([WORDS]), {})[0]
    assert record["plain"]["share"][0] == 1
    assert record["plain"]["nats"] > 5
    assert record["plain"]["verdict"].startswith("no verdict: control failed (random weights")  # here, the model itself
    assert abs(record["corrected"]["nats"]) < 3


def test_random_weights_and_the_unigram_model_show_no_bias(tokenizer):
    """Both texts of a probe stand there as the first, as pronouns of a balanced set do."""
    probes = []
    for n in range(24):
        words = [WORDS[(n * 7 + i) % len(WORDS)] for i in range(4)]
        pair = [" ".join([one, *words]) for one in (("nurse", "guard"), ("guard", "nurse"))[n % 2]]
        probes.append(BiasProbe(n + 1, "c", str(n // 2), (pair[0], pair[1])))
    asking = asking_of("masked", tokenizer)
    made = tokenize(asking, "s", "crows_pairs", probes, 41)
    names = name_sets(asking, [made], "en", 41)
    randoms = []
    for seed in range(3):
        set_seed(seed)
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 1}
        model = BertForMaskedLM(BertConfig(**sizes, intermediate_size=7, max_position_embeddings=41)).eval()
        randoms.append(measure(Accelerator(cpu=True), model, asking, [made, *names.values()], 64))
    floors = noise_floors(names, randoms[0])
    assert floors["all"]["plain"] > 0
    record = entries([made], asking, randoms[0], randoms, UnigramModel([WORDS]), floors)[0]
    for part, control in (("plain", "random"), ("plain", "unigram"), ("corrected", "random")):
        value, low, high = record[part][control]
        assert low <= 0.5 <= high
        assert value == pytest.approx(0.5, abs=0.2)
    assert record["plain"]["noise"] == floors["all"]["plain"]
    assert "no difference" in record["plain"]["verdict"]
    assert record["metrics"] == {}
    json.dumps(record)


def test_one_draw_of_weights_answers_a_contrast_alike(tokenizer):
    """So one seed is far from 50 %, and its pairs do not show it; the average over seeds is not."""
    frames = [[WORDS[(n * 3 + i) % len(WORDS)] for i in range(3)] for n in range(9)]
    probes = [
        BiasProbe(n, "c", "she, he", (" ".join(["she", *words]), " ".join(["he", *words])))
        for n, words in enumerate(frames)
    ]
    asking, answers = asking_of("masked", tokenizer), []
    made = tokenize(asking, "s", "crows_pairs", probes, 41)
    for seed in range(16):
        set_seed(seed)
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 1}
        model = BertForMaskedLM(BertConfig(**sizes, intermediate_size=7, max_position_embeddings=41)).eval()
        answers.append(toward(measure(Accelerator(cpu=True), model, asking, [made], 64)["s"]["plain"])[0])
    answers = np.stack(answers)
    assert np.abs(answers.mean(axis=1) - 0.5).mean() > 0.3  # independent pairs would give 0.13
    value, low, high = ratio_interval(answers, np.ones_like(answers), ["she, he"] * 9)
    assert low <= 0.5 <= high
    assert value == pytest.approx(0.5, abs=0.3)
    naive = [wilson(row) for row in answers]
    assert np.mean([low <= 0.5 <= high for low, high in naive]) < 0.5


def test_texts_that_the_tokenizer_makes_equal_are_one_line(tokenizer):
    asking = asking_of("masked", tokenizer)
    for texts, limit, message in [
        (("SHE won", "she won"), 41, "s: row 7: 'SHE won' and 'she won' have the same tokens"),
        (("\u4e2d won", "\u56fd won"), 41, "have the same tokens; choose another tokenizer"),
        (("she " * 9, "he " * 9), 10, "more than the 8 that fit"),
    ]:
        with pytest.raises(UserError) as error:
            tokenize(asking, "s", "crows_pairs", [BiasProbe(7, "c", "g", texts)], limit)
        assert message in str(error.value)
    dropped = BiasProbe(7, "c", "g", ("she   ", "she won"), "span", "span", ((3, 6), (3, 7)))
    with pytest.raises(UserError, match="row 7: the tokenizer drops"):
        tokenize(asking, "s", "stereoset", [dropped], 41)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("causal", {"objective": {"name": "original"}}, "objective: a causal model"),
        ("masked", {"start_token": "[CLS]"}, "start_token: a masked model"),
    ],
)
def test_a_setting_of_the_other_kind_of_model_is_refused(kind, settings, message, tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    with pytest.raises(UserError, match=message):
        asking_of(kind, tokenizer, **settings)


@pytest.mark.parametrize("name", ["Age", "Age (disambig file)"])
def test_bbq_scales_ambiguous_contexts_whatever_their_name(name):
    probes = [BiasProbe(n, name, "g", ("a", "b", "c"), right=2) for n in range(3)]
    scores = np.array([[2.0, 1, 0], [2, 1, 0], [0, 1, 2]])
    kinds = ("ambiguous", "disambiguated")
    found = {kind: _metrics("bbq", f"{name}, {kind}", scores, probes, np.ones(3), {}) for kind in kinds}
    assert found["disambiguated"] == {"accuracy": pytest.approx(1 / 3), "bias score": 1.0}
    assert found["ambiguous"] == {"accuracy": pytest.approx(1 / 3), "bias score": pytest.approx(2 / 3)}
