"""Text metrics against sacreBLEU's own calls and calculations by hand, without a network."""

import math
import socket
import sys
import unicodedata

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from decero.errors import UserError
from decero.evaluation import (
    TEXT_METRICS,
    bits_per_byte,
    compute_text_metrics,
    perplexity,
    summary_metrics,
    text_signatures,
    translation_metrics,
)
from decero.evaluation.text_metrics import (
    _rouge,
    _sacrebleu,
    sufficient_statistics,
    summary_signatures,
    tokenizer_for_bleu,
    words,
)

HYPOTHESES = [
    "El gato se sentó en la alfombra.",
    "Mañana será otro día, dijo ella.",
    "",
    "Haga clic en Aceptar para guardar el documento.",
    "The quick brown fox jumps over a lazy dog",
]
REFERENCES = [
    "El gato estaba sentado en la alfombra.",
    "«Mañana será otro día», dijo.",
    "Abra el menú.",
    "Pulse Aceptar para guardar este documento.",
    "The quick brown fox jumps over the lazy dog",
]
NAMES = [name for names in TEXT_METRICS.values() for name in names]
TEXTS = st.text(alphabet="ab cé\u0301.\n", max_size=12)


def test_bleu_and_chrf_are_those_of_sacrebleu():
    assert translation_metrics(HYPOTHESES, REFERENCES) == pytest.approx(
        {
            "bleu": sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score,
            "chrf": sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score,
        }
    )


def test_bleu_by_hand():
    found = translation_metrics(["a b c d e"], ["a b c d f"])  # precisions 4/5, 3/4, 2/3, 1/2; lengths equal
    assert found["bleu"] == pytest.approx(100 * 0.2**0.25)
    found = translation_metrics(["a b c d"], ["a b c d e"])  # all right, one word short
    assert found["bleu"] == pytest.approx(100 * math.exp(1 - 5 / 4))


def test_the_signatures_name_the_settings():
    version = sacrebleu.__version__
    assert text_signatures("translation") == {
        "bleu": f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}",
        "chrf": f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}",
    }
    assert text_signatures("summarization")["rouge2"].startswith(
        r"nrefs:1|case:lc|norm:NFC|tok:\w+|unspaced:char|stem:no|"
    )
    assert "|stem:porter|" in summary_signatures(stemmer=True)["rougeL"]
    assert text_signatures("summarization")["rougeLsum"].endswith("|sent:newline")


def test_rouge_by_hand():
    found = summary_metrics(["The mat\nthe cat!"], ["the cat sat on the mat"])
    assert found == pytest.approx(
        {
            "rouge1": 80.0,  # 4 of 4 and 4 of 6 words
            "rouge2": 50.0,  # 2 of 3 and 2 of 5 pairs
            "rougeL": 40.0,  # "the cat" or "the mat": 2 of 4, 2 of 6
            "rougeLsum": 80.0,  # both, a line each
        }
    )


def test_rouge_lsum_compares_the_reference_line_by_line():
    assert summary_metrics(["a a"], ["a\na"])["rougeLsum"] == pytest.approx(100.0)  # each line finds its word
    assert summary_metrics(["a\na"], ["a a"])["rougeLsum"] == pytest.approx(50.0)  # both lines find the same word


def test_rouge_on_english_is_that_of_the_package_stemmed_or_not():
    hypotheses = ["Tools for editing running-shoe files in 3D", "the libraries were updated"]
    references = ["a tool that edits running shoes file (3d)", "updates a library"]
    for stemmer in (False, True):
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=stemmer)
        found = [scorer.score(r, h) for h, r in zip(hypotheses, references, strict=True)]
        expected = {name: 100 * np.mean([scores[name].fmeasure for scores in found]) for name in found[0]}
        assert summary_metrics(hypotheses, references, stemmer=stemmer) == pytest.approx(expected)
    assert PorterStemmer().stem("libraries") == PorterStemmer().stem("library"), "else stemming was not tested"


def test_accents_and_all_scripts_are_kept():
    assert words("¿Mañana, CAMIÓN-grúa?") == ["mañana", "camión", "grúa"]
    assert words("Ἑλλάς हिन्दी 3") == ["ἑλλάς", "हिन्दी", "3"]
    assert summary_metrics(["manana sera otro dia"], ["mañana será otro día"])["rouge1"] == pytest.approx(25.0)
    decomposed = [unicodedata.normalize("NFD", text) for text in REFERENCES]
    assert decomposed != REFERENCES
    assert summary_metrics(decomposed, REFERENCES)["rougeL"] == pytest.approx(100.0)
    assert compute_text_metrics("text", decomposed, REFERENCES) == {"exact_match": 1.0, "token_f1": 1.0}


UNSPACED = {  # references, BLEU's tokenizer by their script
    "zh": (["我喜欢喝热汤，今天天气很好。", "银行提高了利率。"], "zh"),
    "zh-en": (["我用 iPhone 和 Python 写代码的时候很开心"], "zh"),
    "ja": (["私は温かいスープが好きです。", "銀行は金利を引き上げた。"], "char"),
    "th": (["ฉันชอบซุปร้อน", "ธนาคารขึ้นอัตราดอกเบี้ย"], "char"),
    "km": (["ខ្ញុំចូលចិត្តស៊ុប"], "char"),
    "ko, no spaces": (["나는따뜻한수프를좋아합니다오늘"], "char"),
    "ko": (["나는 따뜻한 수프를 좋아합니다 오늘 날씨가 좋다", "은행이 금리를 올렸다"], "13a"),
    "ru": (["я люблю горячий суп очень сильно"], "13a"),
    "en, a word of Chinese": (["I like the soup 汤 very much"], "13a"),
    "empty": ([""], "13a"),
}


@pytest.mark.parametrize(("references", "tokenizer"), UNSPACED.values(), ids=UNSPACED)
def test_bleu_follows_the_script_of_the_references(references, tokenizer):
    hypotheses = [text[:-2] for text in references]
    assert tokenizer_for_bleu("auto", references) == tokenizer
    found = translation_metrics(hypotheses, references)
    expected = sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenizer).score
    assert found["bleu"] == pytest.approx(expected)
    assert found["bleu"] > 50 or not references[0]
    assert f"|tok:{tokenizer}|" in text_signatures("translation", tokenizer)["bleu"]
    counts, score = sufficient_statistics("bleu", hypotheses, references)
    assert score(counts.sum(axis=0)) == pytest.approx(expected)


def test_a_given_tokenizer_of_bleu_wins_and_must_work():
    texts = ["我喜欢喝热汤", "银行提高了利率"], ["我喜欢喝热茶", "银行提高了利率"]
    assert translation_metrics(*texts, tokenize="13a")["bleu"] == 0
    assert translation_metrics(*texts, tokenize="char")["bleu"] > 0
    with pytest.raises(UserError, match="unknown tokenizer zhh of BLEU; did you mean zh"):
        translation_metrics(*texts, tokenize="zhh")


def test_a_tokenizer_of_bleu_that_does_not_work_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "MeCab", None)
    monkeypatch.delitem(sys.modules, "sacrebleu.tokenizers.tokenizer_ja_mecab", raising=False)
    _sacrebleu.cache_clear()
    with pytest.raises(UserError, match=r"tokenizer ja-mecab of BLEU does not work .*; install sacrebleu\[ja\]"):
        tokenizer_for_bleu("ja-mecab", [])
    _sacrebleu.cache_clear()


def test_in_scripts_without_spaces_each_character_is_a_word():
    assert words("我用iPhone写") == ["我", "用", "iphone", "写"]
    assert words("ขึ้น") == ["ขึ้", "น"]
    for references, _ in UNSPACED.values():
        hypotheses = [text[: len(text) // 2] for text in references]
        if len(references[0]) and "나는따뜻" not in references[0]:
            assert 0 < summary_metrics(hypotheses, references)["rougeL"] < 100
            assert 0 < compute_text_metrics("text", hypotheses, references)["token_f1"] < 1


def test_token_f1_ignores_case_and_exact_match_does_not():
    found = compute_text_metrics("text", ["Yes.", " a  b ", "", "+", "a a b"], ["yes", "a b", "", "-", "a c"])
    assert found == pytest.approx({"exact_match": 2 / 5, "token_f1": (1 + 1 + 1 + 0 + 2 / 5) / 5})


@pytest.mark.parametrize("kind", TEXT_METRICS)
def test_each_kind_gives_all_its_metrics_and_signatures(kind):
    assert (
        tuple(compute_text_metrics(kind, HYPOTHESES, REFERENCES)) == tuple(text_signatures(kind)) == TEXT_METRICS[kind]
    )
    top = compute_text_metrics(kind, REFERENCES, REFERENCES)
    assert set(map(round, top.values())) == ({1} if kind == "text" else {100})
    assert set(compute_text_metrics(kind, [""] * 5, REFERENCES).values()) == {0.0}
    some, less = (
        compute_text_metrics(kind, [*REFERENCES[:4], ""], REFERENCES),
        compute_text_metrics(kind, [""] * 4 + ["fox"], REFERENCES),
    )
    assert all(top[name] > some[name] > 0 for name in top)
    assert all(some[name] >= less[name] for name in top)


@pytest.mark.parametrize("metric", NAMES)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 3)), min_size=1, max_size=6))
def test_weighted_statistics_equal_repeated_examples(metric, rows):
    hypotheses, references, times = (list(column) for column in zip(*rows, strict=True))
    times[0] += 1
    stats_NK, score = sufficient_statistics(metric, hypotheses, references)
    kind = next(kind for kind, names in TEXT_METRICS.items() if metric in names)
    repeated = [
        [text for text, n in zip(texts, times, strict=True) for _ in range(n)] for texts in (hypotheses, references)
    ]
    assert score(np.array(times) @ stats_NK) == pytest.approx(compute_text_metrics(kind, *repeated)[metric])


def test_perplexity_and_bits_of_a_uniform_model():
    assert perplexity(7 * math.log(50), 7) == pytest.approx(50)
    assert bits_per_byte(11 * math.log(256), 11) == pytest.approx(8)
    assert perplexity(1e6, 1) == math.inf
    assert perplexity(0.0, 3) == 1.0
    assert bits_per_byte(0.0, 3) == 0.0


@given(st.floats(0, 1e4), st.integers(100, 10_000), st.integers(100, 10_000))
def test_bits_and_perplexity_agree_on_the_likelihood(nats, num_tokens, num_bytes):
    bits = math.log2(perplexity(nats, num_tokens)) * num_tokens
    assert bits_per_byte(nats, num_bytes) * num_bytes == pytest.approx(bits, abs=1e-6)


def test_invalid_arguments_are_refused():
    with pytest.raises(UserError, match="did you mean translation"):
        compute_text_metrics("translaton", ["a"], ["a"])
    with pytest.raises(UserError, match="did you mean token_f1"):
        sufficient_statistics("f1_token", ["a"], ["a"])
    for bad in ([], ["a", "b"], "a", [None]):
        for kind in TEXT_METRICS:
            with pytest.raises(ValueError, match=r"pair up|list of strings"):
                compute_text_metrics(kind, bad, [] if bad == [] else ["a"])
    with pytest.raises(UserError, match="diverged"):
        perplexity(math.nan, 3)
    for function in (perplexity, bits_per_byte):
        with pytest.raises(ValueError, match="total_nats must be"):
            function(1.0, 0)
        with pytest.raises(ValueError, match="total_nats must be"):
            function(-1.0, 1)


def test_metrics_need_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a network call to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("nltk.data.path", [])  # nor any of nltk's data
    _rouge.cache_clear()
    _sacrebleu.cache_clear()
    for kind in TEXT_METRICS:
        assert compute_text_metrics(kind, HYPOTHESES, REFERENCES)
    assert summary_metrics(HYPOTHESES, REFERENCES, stemmer=True)
