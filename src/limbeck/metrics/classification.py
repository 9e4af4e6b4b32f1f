"""How well a classifier does: accuracy, calibration, and how closely it follows its teacher."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.metrics.base import IGNORED, Evaluation, Scores
from limbeck.registry import register

MATRIX_LIMIT = 200
"""A confusion matrix of more classes than this is not written: nobody reads it, and it fills the results file."""


@register(
    "metric",
    task={"classification", "embedding"},
    default={"classification"},
    better={"accuracy": "higher", "top5_accuracy": "higher", "nll": "lower"},
    labels={
        "accuracy": ("Accuracy", "%"),
        "top5_accuracy": ("Top-5 accuracy", "%"),
        "nll": ("Negative log-likelihood", "nats"),
    },
)
def accuracy(evaluation: Evaluation, *, top5: bool = False) -> Scores:
    """Share of samples whose largest logit is the label's, and the mean negative log-likelihood of the label.

    Samples without a label (-100) do not count. The details hold the confusion matrix (rows: truth, columns:
    prediction), the accuracy of each class (null where the test split has none of it) and the macro F1.

    Args:
        evaluation: what is judged.
        top5: also give the share of samples whose label is among the five largest logits.

    Raises:
        UserError: no labelled sample, logits that are not finite, or top5 with fewer than six classes.
    """
    logits, labels = _labelled(evaluation)
    classes = logits.shape[1]
    matrix = confusion_matrix(logits.argmax(1), labels, classes)
    values = {
        "accuracy": float(matrix.diagonal().sum().double() / matrix.sum()),
        "nll": float(F.cross_entropy(logits, labels, reduction="none").double().mean()),
    }
    if top5:
        values["top5_accuracy"] = _top_k(logits, labels, 5)
    details: dict[str, Any] = {
        "test_samples": len(labels),
        "per_class_accuracy": _nullable(class_accuracy(matrix)),
        "per_class_count": matrix.sum(1).tolist(),
        "macro_f1": macro_f1(matrix),
    }
    if classes <= MATRIX_LIMIT:
        details["confusion"] = matrix.tolist()
    return Scores(values, details)


@register(
    "metric",
    task={"classification"},
    default=True,
    better={"ece": "lower", "brier": "lower"},
    labels={"ece": ("Calibration error (ECE)", "%"), "brier": ("Brier score", "")},
)
def calibration(evaluation: Evaluation, *, bins: int = 15) -> Scores:
    """Whether the probabilities mean what they say: expected calibration error and Brier score.

    The details hold the reliability curve, one entry per bin that is not empty: the bin's lower edge (``low``), its
    mean confidence (``bins``), its accuracy and its number of samples.

    Args:
        evaluation: what is judged.
        bins: number of equal-width bins of the confidence.

    Raises:
        UserError: no labelled sample, logits that are not finite, or fewer than one bin.
    """
    if bins < 1:
        raise UserError(f"calibration needs at least one bin, not bins: {bins}")
    logits, labels = _labelled(evaluation)
    probabilities = logits.softmax(1)
    curve = reliability(probabilities, labels, bins)
    details = {
        "low": curve.low.tolist(),
        "bins": curve.confidence.tolist(),
        "accuracy": curve.accuracy.tolist(),
        "count": curve.samples.tolist(),
    }
    values = {"ece": curve.error(), "brier": float(brier(probabilities, labels).mean())}
    return Scores(values, {"reliability": details})


@register(
    "metric",
    task={"classification"},
    default=True,
    needs={"teacher"},
    better={"agreement": "higher", "teacher_kl": "lower"},
    labels={"agreement": ("Agreement with the teacher", "%"), "teacher_kl": ("KL from the teacher", "nats")},
)
def agreement(evaluation: Evaluation) -> Scores:
    """How closely the model follows its teacher: share of equal decisions, and mean KL(teacher || student).

    Every test sample counts, labelled or not. Where there are labels the details hold, for each class, the student's
    accuracy minus the teacher's (null where the test split has none of it): what a mean hides.

    Raises:
        UserError: no teacher, unlike numbers of classes, or logits that are not finite.
    """
    teacher, student = evaluation.teacher_logits, evaluation.logits
    if teacher.shape != student.shape:
        raise UserError(
            f"the teacher has {teacher.shape[1]} classes and the {evaluation.title} {student.shape[1]}: "
            "agreement compares the same classes"
        )
    values = {
        "agreement": float((teacher.argmax(1) == student.argmax(1)).double().mean()),
        "teacher_kl": float(kl(teacher, student).double().mean()),
    }
    mask = evaluation.labels != IGNORED
    details = {}
    if mask.any():
        labels = evaluation.labels[mask]
        change = _per_class(student[mask], labels) - _per_class(teacher[mask], labels)
        details["per_class_change"] = _nullable(change)
    return Scores(values, details)


@register(
    "metric",
    task={"classification"},
    needs={"teacher"},
    better={"distillation_ratio": "higher"},
    labels={"distillation_ratio": ("Accuracy as a share of the teacher's", "%")},
)
def distillation_ratio(evaluation: Evaluation) -> Scores:
    """The student's accuracy over its teacher's, on the samples with a label (He et al. 2021, arXiv 2109.11105).

    Raises:
        UserError: no teacher, no labelled sample, logits that are not finite, or a teacher that is never right.
    """
    logits, labels = _labelled(evaluation)
    theirs = evaluation.teacher_logits[evaluation.labelled]
    own, other = (float((x.argmax(1) == labels).double().mean()) for x in (logits, theirs))
    if other == 0:
        raise UserError("the teacher is right on no test sample, so nothing can be a share of its accuracy")
    return Scores({"distillation_ratio": kept_share(own, other)})


def kept_share(student: float, teacher: float, *, higher: bool = True) -> float:
    """The student's score over the teacher's; of a score that is better when lower, the teacher's over the student's.

    Above 1 the student is better than its teacher. Where the divisor is not positive it is not a number.
    """
    over, under = (student, teacher) if higher else (teacher, student)
    return over / under if under > 0 else math.nan


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often class i (row) was taken for class j (column): int64 [K, K].

    Raises:
        ValueError: predictions and labels differ in shape.
    """
    _same_shape("predicted", predicted, "labels", labels)
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_accuracy(matrix: Tensor) -> Tensor:
    """Share of each class's samples that were recognised (recall): float64 [K], NaN for a class without samples."""
    return matrix.diagonal().double() / matrix.sum(1).double()


def macro_f1(matrix: Tensor) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN), over the classes that occur in truth or prediction."""
    occurrences = (matrix.sum(0) + matrix.sum(1)).double()
    f1 = 2 * matrix.diagonal().double() / occurrences
    return float(f1[occurrences > 0].mean())


class Reliability(NamedTuple):
    """The non-empty bins of confidence: lower edge, mean confidence and accuracy in float64, number of samples."""

    low: Tensor
    confidence: Tensor
    accuracy: Tensor
    samples: Tensor

    def error(self) -> float:
        """Expected calibration error: mean of |accuracy - confidence| over bins, weighted by their counts."""
        gap = (self.accuracy - self.confidence).abs()
        return float((gap * self.samples).sum() / self.samples.sum())


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """The reliability curve: accuracy against the top class's probability (Guo et al., arXiv 1706.04599, section 2).

    The bins are (0, 1/bins], (1/bins, 2/bins], ..., closed on the right, so certainty is in the last one.

    Args:
        probabilities: [N, K].
        labels: int64 [N].
        bins: number of equal-width bins.
    """
    confidence, predicted = probabilities.double().max(1)
    _same_shape("predicted", predicted, "labels", labels)
    return reliability_of(confidence, predicted == labels, bins)


def reliability_of(confidence: Tensor, right: Tensor, bins: int = 15) -> Reliability:
    """The reliability curve of confidences [N] in [0, 1] and whether each was right, bool [N]."""
    confidence = confidence.double()
    edges = torch.arange(bins + 1, dtype=torch.float64) / bins
    place = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(place, minlength=bins)
    hits = torch.bincount(place, weights=right.double(), minlength=bins)
    total = torch.bincount(place, weights=confidence, minlength=bins)
    kept = count > 0
    return Reliability(edges[:-1][kept], (total / count)[kept], (hits / count)[kept], count[kept])


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Squared distance between the probabilities [N, K] and the one-hot label: float64 [N] in [0, 2].

    Summed over the classes, as in Brier, Verification of forecasts expressed in terms of probability, 1950.
    """
    p = probabilities.double()
    of_label = p.gather(1, labels[:, None]).squeeze(1)
    return p.square().sum(1) - 2 * of_label + 1


def kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(teacher || student) of each sample in nats, at temperature 1: float32 [N], from logits [N, K].

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape("teacher_logits", teacher_logits, "student_logits", student_logits)
    teacher = F.log_softmax(teacher_logits.float(), dim=1)
    student = F.log_softmax(student_logits.float(), dim=1)
    return (teacher.exp() * (teacher - student)).sum(1)


def _labelled(evaluation: Evaluation) -> tuple[Tensor, Tensor]:
    mask = evaluation.labelled
    return evaluation.logits[mask], evaluation.labels[mask]


def _per_class(logits: Tensor, labels: Tensor) -> Tensor:
    return class_accuracy(confusion_matrix(logits.argmax(1), labels, logits.shape[1]))


def _top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    if logits.shape[1] <= k:
        raise UserError(f"top{k} needs more than {k} classes, this data has {logits.shape[1]}: leave it out")
    return float((logits.topk(k, dim=1).indices == labels[:, None]).any(1).double().mean())


def _nullable(values: Tensor) -> list[float | None]:
    return [None if v != v else v for v in values.tolist()]


def _same_shape(first: str, a: Tensor, second: str, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{first} {tuple(a.shape)} and {second} {tuple(b.shape)} must have the same shape")
