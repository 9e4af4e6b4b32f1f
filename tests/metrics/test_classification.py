from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from limbeck.errors import UserError
from limbeck.metrics.base import evaluate
from limbeck.metrics.classification import (
    brier,
    class_accuracy,
    confusion_matrix,
    kept_share,
    kl,
    macro_f1,
    reliability,
)
from limbeck.registry import Block


def made(n: int = 300, k: int = 6, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, k, (n,), generator=g)
    logits = scale * torch.randn(n, k, generator=g) + 1.5 * torch.nn.functional.one_hot(labels, k)
    return logits, labels


def test_accuracy_and_nll_are_those_of_sklearn(judge: Any) -> None:
    logits, labels = made()
    scores = evaluate(judge(logits, labels), [Block("accuracy", {"top5": True})])
    p, predicted = logits.double().softmax(1).numpy(), logits.argmax(1).numpy()
    assert scores.values["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
    assert scores.values["nll"] == pytest.approx(sk.log_loss(labels, p), abs=1e-6)
    assert scores.values["top5_accuracy"] == pytest.approx(sk.top_k_accuracy_score(labels, p, k=5), abs=1e-12)
    assert scores.details["confusion"] == sk.confusion_matrix(labels, predicted).tolist()
    assert scores.details["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"), abs=1e-12)
    recall = sk.recall_score(labels, predicted, average=None)
    assert scores.details["per_class_accuracy"] == pytest.approx(recall.tolist(), abs=1e-12)


def test_samples_without_a_label_do_not_count(judge: Any) -> None:
    logits, labels = made()
    hidden = labels.clone()
    hidden[::3] = -100
    kept = hidden != -100
    some = evaluate(judge(logits, hidden), ["accuracy", "calibration"])
    only = evaluate(judge(logits[kept], labels[kept]), ["accuracy", "calibration"])
    assert some == only and some.details["test_samples"] == 200


def test_a_test_split_without_any_label_is_refused(judge: Any) -> None:
    logits, labels = made()
    for given in (torch.full_like(labels, -100), None):
        with pytest.raises(UserError, match="no labelled sample"):
            evaluate(judge(logits, given), ["accuracy"])


def test_agreement_needs_no_labels(judge: Any) -> None:
    logits = made()[0]
    scores = evaluate(judge(logits, None, logits), ["agreement"])
    assert scores.values == {"agreement": 1.0, "teacher_kl": 0.0} and not scores.details


def test_a_class_that_is_absent_has_no_accuracy(judge: Any) -> None:
    logits = torch.tensor([[3.0, 0, 0], [0, 3.0, 0]])
    scores = evaluate(judge(logits, torch.tensor([0, 0])), ["accuracy"])
    assert scores.details["per_class_accuracy"] == [0.5, None, None]
    assert scores.details["macro_f1"] == pytest.approx(sk.f1_score([0, 0], [0, 1], average="macro"))


def test_one_class_and_one_sample_are_judged(judge: Any) -> None:
    zero = torch.zeros(1, dtype=torch.long)
    scores = evaluate(judge(torch.ones(1, 1), zero, torch.ones(1, 1)), ["accuracy", "calibration", "agreement"])
    perfect = {"accuracy": 1, "nll": 0, "ece": 0, "brier": 0, "agreement": 1, "teacher_kl": 0}
    assert scores.values == pytest.approx(perfect)
    scores = evaluate(judge(torch.tensor([[0.0, 100.0]]), zero), ["accuracy", "calibration"])
    assert scores.values == pytest.approx({"accuracy": 0, "nll": 100, "ece": 1, "brier": 2})


def test_top5_of_five_classes_is_refused(judge: Any) -> None:
    logits, labels = made(k=5)
    with pytest.raises(UserError, match="more than 5 classes"):
        evaluate(judge(logits, labels), [Block("accuracy", {"top5": True})])


def test_a_huge_confusion_matrix_is_not_written(judge: Any) -> None:
    scores = evaluate(judge(*made(k=201)), ["accuracy"])
    assert "confusion" not in scores.details and len(scores.details["per_class_accuracy"]) == 201


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_that_of_torchmetrics(judge: Any, bins: int) -> None:
    logits, labels = made(n=1000, scale=3.0)
    scores = evaluate(judge(logits, labels), [Block("calibration", {"bins": bins})])
    expected = multiclass_calibration_error(logits.double().softmax(1), labels, num_classes=6, n_bins=bins, norm="l1")
    assert scores.values["ece"] == pytest.approx(float(expected), abs=1e-6)


def test_calibration_error_from_its_definition() -> None:
    logits, labels = made(n=400, seed=3)
    p = logits.double().softmax(1).numpy()
    confidence, correct = p.max(1), p.argmax(1) == labels.numpy()
    ece = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert reliability(torch.from_numpy(p), labels).error() == pytest.approx(ece, abs=1e-12)


def test_certainty_falls_in_the_last_bin_and_edges_close_on_the_right() -> None:
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.75, 0.25]], dtype=torch.float64)
    curve = reliability(p, torch.tensor([0, 1, 0]), bins=4)
    assert curve.low.tolist() == [0.25, 0.5, 0.75] and curve.samples.tolist() == [1, 1, 1]
    assert curve.confidence.tolist() == [0.5, 0.75, 1.0] and curve.accuracy.tolist() == [0, 1, 1]


def test_the_reliability_curve_gives_back_the_error(judge: Any) -> None:
    scores = evaluate(judge(*made()), ["calibration"])
    curve = {k: np.array(v) for k, v in scores.details["reliability"].items()}
    gap = np.abs(curve["accuracy"] - curve["bins"])
    assert (gap * curve["count"]).sum() / 300 == pytest.approx(scores.values["ece"], abs=1e-12)
    assert curve["count"].sum() == 300 and (curve["bins"] > curve["low"]).all()


def test_no_bins_are_refused(judge: Any) -> None:
    with pytest.raises(UserError, match="at least one bin"):
        evaluate(judge(*made()), [Block("calibration", {"bins": 0})])


def test_brier_is_the_squared_distance_to_one_hot() -> None:
    logits, labels = made(n=50)
    p = logits.double().softmax(1)
    expected = ((p - torch.nn.functional.one_hot(labels, 6)) ** 2).sum(1)
    torch.testing.assert_close(brier(p, labels), expected, atol=1e-12, rtol=0)
    two = p[:, :2] / p[:, :2].sum(1, keepdim=True)
    binary = sk.brier_score_loss(labels.clamp(max=1), two[:, 1])
    assert float(brier(two, labels.clamp(max=1)).mean()) == pytest.approx(2 * binary, abs=1e-12)


def test_kl_goes_from_teacher_to_student() -> None:
    (teacher, _), (student, _) = made(n=30, seed=1), made(n=30, seed=2)
    p, q = teacher.double().softmax(1), student.double().softmax(1)
    expected = (p * (p.log() - q.log())).sum(1)
    torch.testing.assert_close(kl(teacher, student).double(), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"\(30, 6\).*\(29, 6\)"):
        kl(teacher, student[:29])


def test_agreement_from_its_definition(judge: Any) -> None:
    (teacher, labels), (student, _) = made(seed=1), made(seed=2)
    scores = evaluate(judge(student, labels, teacher), ["agreement"])
    same = (teacher.argmax(1) == student.argmax(1)).numpy().mean()
    assert scores.values["agreement"] == pytest.approx(same, abs=1e-12)
    assert scores.values["teacher_kl"] == pytest.approx(float(kl(teacher, student).mean()), abs=1e-6)
    recall = [sk.recall_score(labels, x.argmax(1), average=None) for x in (student, teacher)]
    assert scores.details["per_class_change"] == pytest.approx((recall[0] - recall[1]).tolist(), abs=1e-12)


def test_the_distillation_ratio_is_that_of_the_accuracies(judge: Any) -> None:
    (teacher, labels), (student, _) = made(seed=1), made(seed=2)
    labels[::5] = -100
    known = labels != -100
    own, theirs = (sk.accuracy_score(labels[known], x.argmax(1)[known]) for x in (student, teacher))
    scores = evaluate(judge(student, labels, teacher), ["distillation_ratio"])
    assert scores.values == {"distillation_ratio": pytest.approx(own / theirs, abs=1e-12)}
    assert evaluate(judge(student, labels), ["distillation_ratio"]).values == {}, "there is none of a teacher itself"
    wrong = torch.nn.functional.one_hot((labels + 1) % 6, 6).float()
    with pytest.raises(UserError, match="right on no test sample"):
        evaluate(judge(student, labels, wrong), ["distillation_ratio"])
    assert kept_share(2.0, 4.0, higher=False) == 2.0
    assert np.isnan(kept_share(2.0, 0.0))


def test_agreement_of_unlike_classes_is_refused(judge: Any) -> None:
    logits, labels = made()
    with pytest.raises(UserError, match=r"teacher has 5 classes and the model 'Given' 6"):
        evaluate(judge(logits, labels, logits[:, :5]), ["agreement"])


def test_half_precision_logits_are_judged_in_full(judge: Any) -> None:
    logits, labels = made()
    half = evaluate(judge(logits.bfloat16(), labels), ["accuracy"])
    full = evaluate(judge(logits.bfloat16().float(), labels), ["accuracy"])
    assert half == full


def test_confusion_of_unlike_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        confusion_matrix(torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long), 2)


def test_perfect_predictions_score_one() -> None:
    matrix = confusion_matrix(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), 3)
    assert class_accuracy(matrix).tolist() == [1, 1, 1] and macro_f1(matrix) == 1
