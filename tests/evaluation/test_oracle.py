"""The greedy oracle, against rouge-score itself."""

from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from decero.evaluation.oracle import greedy_oracle

SENTENCE = st.lists(st.sampled_from(["red", "green", "blue", "one", "two"]), min_size=1, max_size=5).map(" ".join)


def rouge(hypothesis, reference):
    found = RougeScorer(["rouge1", "rouge2"]).score(reference, hypothesis)
    return sum(score.fmeasure for score in found.values())


@given(st.lists(SENTENCE, min_size=1, max_size=5), SENTENCE)
def test_one_sentence_is_the_best_of_all(sentences, summary):
    scores = [rouge(sentence, summary) for sentence in sentences]
    chosen = greedy_oracle(sentences, summary, 1)
    assert chosen == ([scores.index(max(scores))] if max(scores) > 0 else [])


def test_sentences_are_added_while_the_score_rises():
    sentences = ["unlike words here", "red green", "blue one", "red green blue"]
    assert greedy_oracle(sentences, "red green blue", 3) == [3], "no other sentence raises the score"
    assert greedy_oracle(sentences, "red green blue one", 3) == [2, 3]
    assert greedy_oracle(sentences[:3], "Red green, blue one!", 3) == [1, 2]
    assert greedy_oracle(sentences[:3], "red green blue one", 1) == [1]
    assert greedy_oracle(["red", "red"], "red", 2) == [0], "the earlier of equals, and no repetition"
    assert greedy_oracle(sentences, "", 2) == greedy_oracle([], "red", 2) == []
