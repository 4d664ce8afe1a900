"""The loss of a student: what the papers say, a sum over rows, and the same in packed rows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, softmax
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig

from decero.data.collators import ClassificationCollator, MaskedLanguageModeling
from decero.data.packing import Packed
from decero.execution.distillation import TEACHER_COLUMNS, distilled, distilled_masked_lm, soft_loss
from decero.execution.objective import classification, masked_lm

SIZES = {"hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
LOGITS = arrays(np.float32, (3, 5), elements=st.floats(-8, 8, width=32))
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


@given(LOGITS, LOGITS, st.floats(0.5, 8))
def test_the_soft_loss_is_a_divergence_times_t_squared(student, teacher, heat):
    p, q = (softmax(logits.astype(np.float64) / heat, axis=-1) for logits in (teacher, student))
    expected = heat**2 * (p * (np.log(p) - np.log(q))).sum(axis=-1)
    found = soft_loss(PROBLEMS[0], torch.tensor(student), torch.tensor(teacher), heat)
    np.testing.assert_allclose(found, expected, atol=2e-3, rtol=1e-3)
    p, q = (expit(logits.astype(np.float64) / heat) for logits in (teacher, student))
    both = p * (np.log(p) - np.log(q)) + (1 - p) * (np.log1p(-p) - np.log1p(-q))
    found = soft_loss(PROBLEMS[1], torch.tensor(student), torch.tensor(teacher), heat)
    np.testing.assert_allclose(found, heat**2 * both.mean(axis=-1), atol=2e-3, rtol=1e-3)


def test_the_size_of_the_gradient_does_not_fall_with_t():
    """Hinton et al. 2015, section 2: in the limit of a high T it is (student - teacher) / labels."""
    student = torch.randn(2, 5, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(2, 5, dtype=torch.float64)
    soft_loss(PROBLEMS[0], student, teacher, 1e4).sum().backward()
    centred = [logits - logits.mean(dim=-1, keepdim=True) for logits in (student, teacher)]
    torch.testing.assert_close(student.grad, ((centred[0] - centred[1]) / 5).detach(), atol=1e-4, rtol=1e-3)


LABELS = {
    "single_label_classification": [2, 0, 1, 0, 0],
    "multi_label_classification": [[1.0, 0.0, 1.0], [0.0] * 3, [0.0, 1.0, 0.0], [0.0] * 3, [0.0] * 3],
    "regression": [0.5, -1.0, 2.0, 0.0, 0.0],
}


@pytest.fixture
def taught(tokenizer):
    """Five rows; the last two have no label."""

    def make(problem):
        width = 1 if problem == "regression" else 3
        rows = tokenizer(["the market", "banks in london fell sharply", "on monday", "tokyo", "shares and banks"])
        draw = np.random.default_rng(0).normal(size=(5, width)).astype(np.float32).tolist()
        columns = {"labels": LABELS[problem], "teacher_logits": draw, "labelled": [True] * 3 + [False] * 2}
        columns["input_ids"] = rows["input_ids"]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    return make


@pytest.mark.parametrize("problem", PROBLEMS)
def test_rows_without_a_label_get_the_teachers_loss_alone(problem, taught, tokenizer):
    torch.manual_seed(0)
    rows = taught(problem)
    config = BertConfig(**SIZES, vocab_size=101, num_labels=1 if problem == "regression" else 3, hidden_dropout_prob=0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    plain = classification(ClassificationCollator(tokenizer, more=TEACHER_COLUMNS), problem)
    objective = distilled(plain, problem, 0.3, 4.0)
    batch = objective.collate(rows)
    assert objective.count(batch) == 5
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    soft = soft_loss(problem, logits, batch["teacher_logits"], 4.0)
    labels = batch["labels"]
    hard = {
        "single_label_classification": lambda: F.cross_entropy(logits, labels, reduction="none"),
        "multi_label_classification": lambda: F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(
            dim=-1
        ),
        "regression": lambda: (logits[:, 0] - labels) ** 2,
    }[problem]()
    expected = (0.3 * soft[:3] + 0.7 * hard[:3]).sum() + soft[3:].sum()
    loss = objective.loss(model, batch)
    torch.testing.assert_close(loss, expected)
    parts = sum(objective.loss(model, objective.collate([row])) for row in rows)
    torch.testing.assert_close(parts, loss, atol=1e-5, rtol=1e-5)
    packed = Packed(objective.collate, 19, per_text=objective.per_text)(rows)
    assert "text_ids" in packed
    torch.testing.assert_close(objective.loss(model, packed), loss, atol=1e-5, rtol=1e-5)


def masked_model(vocab_size, seed):
    torch.manual_seed(seed)
    return AutoModelForMaskedLM.from_config(BertConfig(**SIZES, vocab_size=vocab_size, initializer_range=0.5)).eval()


@pytest.mark.parametrize("ours", [True, False])
def test_a_masked_student_learns_from_the_scored_positions(ours, tokenizer, tiny_model, rows):
    student, teacher = tiny_model() if ours else masked_model(101, 1), masked_model(103, 2)
    plain = masked_lm(MaskedLanguageModeling(tokenizer, seed=1))
    objective = distilled_masked_lm(plain, teacher, 0.25, 3.0)
    batch = objective.collate([row | {"epoch": 0, "index": n} for n, row in enumerate(rows.select(range(5)))])
    inputs, scored = {n: t for n, t in batch.items() if n != "labels"}, batch["labels"] != -100
    assert objective.count(batch) == int(scored.sum()) > 2
    logits, targets = student(**inputs).logits[scored], teacher(**inputs).logits[scored]
    soft = soft_loss(PROBLEMS[0], logits[:, :101], targets[:, :101], 3.0).sum()
    expected = 0.25 * soft + 0.75 * F.cross_entropy(logits, batch["labels"][scored], reduction="sum")
    loss = objective.loss(student, batch)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None for p in student.parameters())
    alike = distilled_masked_lm(plain, student, 1.0, 3.0).loss(student, batch)
    assert float(alike.detach()) == pytest.approx(0, abs=1e-3)
