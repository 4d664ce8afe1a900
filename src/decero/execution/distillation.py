"""Distillation: a student learns from the outputs of a teacher (Hinton et al. 2015; Sanh et al. 2019)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decero.data.collators import IGNORED
from decero.execution.objective import LABEL_LOSSES, Batch, Objective, scored_logits, select_scored
from decero.execution.packed_forward import logits_of

TEACHER_COLUMNS = ("teacher_logits", "labelled")  # of a row: (labels,) floats; whether its label counts


def soft_loss(problem_type: str, student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """Return how far each row of a student is from its teacher, (batch,). Both are logits, (batch, labels).

    single label: T^2 KL(softmax(teacher / T) || softmax(student / T)). The factor T^2 keeps the size of the gradient
    when T changes (Hinton et al. 2015, section 2).
    several labels: the same for the two outcomes of each label, mean over labels.
    regression: squared difference; there is no temperature.
    """
    if problem_type == "regression":
        return (student_BC - teacher_BC).square().squeeze(-1)
    student_BC, teacher_BC = student_BC / temperature, teacher_BC / temperature
    if problem_type == "multi_label_classification":
        target_BC = teacher_BC.sigmoid()
        cross_BC, own_BC = (
            F.binary_cross_entropy_with_logits(logits, target_BC, reduction="none")
            for logits in (student_BC, teacher_BC)
        )
        return temperature**2 * (cross_BC - own_BC).mean(dim=-1)
    targets = student_BC.log_softmax(dim=-1), teacher_BC.log_softmax(dim=-1)
    return temperature**2 * F.kl_div(*targets, reduction="none", log_target=True).sum(dim=-1)


def distilled(plain: Objective, problem_type: str, alpha: float, temperature: float) -> Objective:
    """Sum over texts: alpha soft loss + (1 - alpha) loss of the label; of a text without a label, the soft loss alone.

    The divisor is the number of texts, with or without a label. plain: the objective of the labels; its collator adds
    TEACHER_COLUMNS. Source: Hinton et al. 2015, section 2.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name not in TEACHER_COLUMNS}
        teacher_BC, labelled_B = (batch[name] for name in TEACHER_COLUMNS)
        logits_BC = logits_of(model, inputs, per_text=True).float()
        soft_B = soft_loss(problem_type, logits_BC, teacher_BC, temperature)
        weight_B = torch.where(labelled_B, alpha, 1.0)
        of_labels = LABEL_LOSSES[problem_type](logits_BC[labelled_B], batch["labels"][labelled_B])
        return (weight_B * soft_B).sum() + (1 - alpha) * of_labels

    return replace(plain, loss=loss, per_text=(*plain.per_text, *TEACHER_COLUMNS))


def distilled_masked_lm(
    plain: Objective, teacher: nn.Module, alpha: float, temperature: float, *, scored_queries: bool = True,
    autocast: bool = False,
) -> Objective:  # fmt: skip
    """Sum over scored positions: alpha soft loss + (1 - alpha) cross-entropy. The teacher reads the same masked rows.

    Only the ids that both models have count in the soft loss; a vocabulary may be padded. autocast: run the teacher in
    bfloat16. Source: Sanh et al. 2019, section 2, without the cosine loss, which needs equal widths.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        scored_BL = batch["labels"] != IGNORED
        labels_N, device = batch["labels"][scored_BL], batch["labels"].device
        teacher.to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            teacher_NV = scored_logits(teacher, batch, scored_BL)
        selected = select_scored(model, batch, scored_BL) if scored_queries else (batch, scored_BL)
        student_NV = scored_logits(model, *selected)
        size = min(student_NV.shape[1], teacher_NV.shape[1])
        soft_N = soft_loss("single_label_classification", student_NV[:, :size], teacher_NV[:, :size], temperature)
        return alpha * soft_N.sum() + (1 - alpha) * F.cross_entropy(student_NV, labels_N, reduction="sum")

    return replace(plain, loss=loss, teacher=teacher)
