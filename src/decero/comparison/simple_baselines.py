"""Simple baselines: what a model must beat to be worth its time."""

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from decero.comparison.picture_baselines import cnn, logistic, majority, mean_box
from decero.data.answer_rows import NAMES, TEXTS
from decero.data.corpus import source_rows
from decero.data.tag_schemes import read_spans
from decero.evaluation.answer_metrics import answer_scores
from decero.evaluation.metrics import compute_metrics, predict
from decero.evaluation.text_metrics import bits_per_byte
from decero.evaluation.threshold import choose_threshold
from decero.tasks import TASKS, question_answering, tagging
from decero.tasks.likelihood import ngram_bits
from decero.tasks.text_to_text import score, write_outputs

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def tfidf(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Fit TF-IDF of words and word pairs with a linear model. Its settings are fixed, so nothing is tuned on test."""
    corpus, problem_type = task.corpus, task.problem_type

    def texts(split: str) -> list[str]:
        rows = corpus.splits[split][""]
        return [" ".join(map(str, row)) for row in zip(*(rows[c] for c in corpus.columns), strict=True)]

    def labels(split: str) -> np.ndarray:
        return np.asarray(corpus.splits[split][""]["labels"])

    linear = LogisticRegression(C=10, max_iter=1000)
    head = {"multi_label_classification": OneVsRestClassifier(linear), "regression": Ridge()}.get(problem_type, linear)
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), head)
    pipeline.fit(texts("train"), labels("train"))

    def logits(split: str) -> np.ndarray:
        """Log-odds: of each label, or of the second of two against 0 for the first."""
        p = np.clip(pipeline.predict_proba(texts(split)), 1e-12, 1 - 1e-12)
        found = logit(p[:, -len(corpus.label_names) :])
        if problem_type == "single_label_classification":
            found[:, 0] = 0
        return found

    threshold = task.threshold
    if task.config.objective.threshold == "validation":
        threshold = choose_threshold(problem_type, logits("validation"), labels("validation"))
    has_threshold = task.config.objective.threshold != 0.5
    predictions = predict(problem_type, logits(split), threshold) if has_threshold else pipeline.predict(texts(split))
    predictions = predictions.reshape(labels(split).shape)  # scikit-learn gives one label of several no column
    if folder:
        table = pd.DataFrame({"row": list(source_rows(corpus.splits[split][""]))})
        table["label"], table["prediction"] = labels(split).tolist(), predictions.tolist()
        table.rename_axis("index").reset_index().to_parquet(folder / "predictions.parquet", index=False)
    return {
        "metric": compute_metrics(problem_type, predictions, labels(split)),
        "train_examples": len(corpus.splits["train"][""]),
        "label_names": list(corpus.label_names),
        **({"threshold": threshold} if has_threshold else {}),
        # a label that all rows of train have, or none, gets a constant instead of weights
        "num_parameters": sum(np.size(getattr(part, "coef_", ())) for part in getattr(head, "estimators_", [head])),
    }


def ngram(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Count byte 6-grams of the training text (`ByteNgrams`), and score every document of the split."""
    train, scored = (
        [text for text in task.corpus.splits[each][""][task.config.data.text_column] if text]
        for each in ("train", split)
    )
    bits_D, bytes_D = ngram_bits(train, scored), np.array([len(text.encode()) for text in scored])
    nats_D = bits_D * np.log(2)
    if folder:
        table = pd.DataFrame({"document": np.arange(len(scored)), "nats": nats_D, "tokens": bytes_D, "bytes": bytes_D})
        table.to_parquet(folder / "predictions.parquet", index=False)
    return {"metric": {"bits_per_byte": bits_per_byte(nats_D.sum(), int(bytes_D.sum()))}, "bytes": int(bytes_D.sum())}


def copy(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Answer with the source itself."""
    return _written(task, folder, split, lambda source, words: source)


def lead(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Answer with the first words of the source, as many as the median training target has."""
    return _written(task, folder, split, lambda source, words: " ".join(source.split()[:words]))


def _written(task: Any, folder: Path | None, split: str, answer: Callable[[str, int], str]) -> dict[str, Any]:
    parts = task.corpus.splits[split]
    metric: dict[str, float] = {}
    hypotheses: dict[str, list[str]] = {}
    for name, pairs in parts.items():
        targets = task.corpus.splits["train"][name]["target"][:]
        words = int(np.median([len((target or "").split()) for target in targets]))
        sources = pairs["source"][:]
        if task.config.data.tasks[name].messages_column:  # a dialogue as JSON: the last thing that was said
            sources = [json.loads(source)[-1]["content"] for source in sources]
        hypotheses[name] = [answer(source, words) for source in sources]
        found = score(task.config.generation, hypotheses[name], pairs["target"][:])
        metric |= {f"{name}_{key}" if len(task.config.data.tasks) > 1 else key: value for key, value in found.items()}
    if folder:
        write_outputs(folder, parts, hypotheses)
    return {"metric": metric}


def overlap(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Choose the choice that is most like its question and context: cosine of TF-IDF over words."""
    corpus = task.corpus.splits
    counts = TfidfVectorizer(sublinear_tf=True).fit(corpus["train"][""]["text"][:])
    rows = corpus[split][""]
    prompts = counts.transform([f"{c} {q}" for c, q in zip(rows["context"][:], rows["question"][:], strict=True)])
    right = np.asarray(rows["labels"][:])
    alike = [(counts.transform(own) @ prompts[n].T).toarray()[:, 0] for n, own in enumerate(rows["choices"][:])]
    chosen = np.array([int(each.argmax()) for each in alike])
    if folder:
        table = pd.DataFrame({"label": right, "prediction": chosen})
        table.rename_axis("index").reset_index().to_parquet(folder / "predictions.parquet", index=False)
    return {"metric": {"accuracy": float((chosen == right).mean())}, "train_examples": len(corpus["train"][""])}


def lexicon(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Give each word the tag that it has most often in train; an unknown word the most common tag of all."""
    train, texts = task.corpus.splits["train"][""], task.corpus.splits[split][""]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        for word, tag in zip(tagging.words_of(row), row["tags"], strict=True):
            counts[word][tag] += 1
    tags: dict[str, str] = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    common = sum(counts.values(), Counter()).most_common(1)[0][0]
    reading = "IOB1" if task.scheme == "BIO" else task.scheme  # words alone cannot tell where an entity begins
    answers = []
    for row in texts:
        bounds = list(zip(row["starts"], row["stops"], strict=True))
        said = [tags.get(word, common) for word in tagging.words_of(row)]
        spans = [] if reading == "none" else read_spans(said, reading)
        entities = [{"start": bounds[a][0], "end": bounds[b - 1][1], "label": label} for a, b, label in spans]
        answers.append((said, entities))
    if folder:
        tagging.write_answers(folder, texts, answers)
    metric, labels = task.scores(texts, answers)
    return {"metric": metric, "train_examples": len(train), "by_label": labels, "num_parameters": len(tags)}


def sentence(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Answer with the sentence of the context that is most like the question, by TF-IDF of train."""
    data = task.config.data
    train, rows = (task.corpus.splits[each][""] for each in ("train", split))
    vectors = TfidfVectorizer(sublinear_tf=True).fit([*train[data.context_column], *train[data.question_column]])
    found = []
    for context, question in zip(rows[data.context_column], rows[data.question_column], strict=True):
        parts = [part.strip() for part in SENTENCE_END.split(context) if part and part.strip()]
        likeness = (vectors.transform(parts) @ vectors.transform([question]).T).toarray() if parts else np.zeros((1, 1))
        found.append(parts[int(likeness.argmax())] if parts else "")
    return _answered(task, folder, split, found)


def no_answer(task: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Say of every question that there is no answer."""
    return _answered(task, folder, split, [""] * len(task.corpus.splits[split][""]))


def _answered(task: Any, folder: Path | None, split: str, answers: list[str]) -> dict[str, Any]:
    rows = task.corpus.splits[split][""]
    scores = [
        answer_scores(text, right, task.config.objective.articles)
        for text, right in zip(answers, rows[TEXTS], strict=True)
    ]
    table = pd.DataFrame({"id": rows[NAMES], "references": rows[TEXTS], "answer": answers})
    table["exact_match"], table["f1"] = np.array(scores).T
    if folder:
        question_answering.write_answers(folder, table)
    return {"metric": question_answering.scores_of(table)}


BASELINES: dict[str, Callable[[Any, Path | None, str], dict[str, Any]]] = {
    "tfidf": tfidf, "ngram": ngram, "copy": copy, "lead": lead, "overlap": overlap, "lexicon": lexicon,
    "sentence": sentence, "no_answer": no_answer, "logistic": logistic, "cnn": cnn,
    "majority": majority, "mean_box": mean_box,
}  # fmt: skip


def score_baseline(name: str, recipe: str, config: Any, folder: Path | None, split: str) -> dict[str, Any]:
    """Return the record of a baseline. folder: for the answers, on the main process; None on others."""
    task = TASKS[recipe](config)
    _ = task.corpus  # reading the corpus is not timed, as for models
    started = time.perf_counter()
    found = {"seed": config.seed, "num_parameters": 0, "total_flos": 0} | BASELINES[name](task, folder, split)
    return found | {"wall_time_s": time.perf_counter() - started}
