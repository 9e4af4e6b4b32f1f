"""Distillation losses for classifiers, as pure functions on tensors: one value per sample, nothing reduced."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.losses import IGNORE, kl, log_softmax, same_shape, soft_kl, wide
from limbeck.registry import register

__all__ = [
    "balanced_kl",
    "binary_log_probs",
    "dist_inter",
    "dist_intra",
    "divergences",
    "dkd",
    "nckd",
    "nkd",
    "nkd_others",
    "nkd_target",
    "soft_cross_entropy",
    "soft_kl",
    "standardized",
    "standardized_kl",
    "tckd",
    "tempered_kl",
]

TINY = 1e-8


@register("loss")
def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled distillation ``T^2 (alpha TCKD + beta NCKD)``, [B, K] and [B] -> [B] (Zhao et al. 2022, eq. 7).

    Classical distillation is the case ``alpha = 1``, ``beta = 1 - p_teacher(label)``.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        labels: [B]; the target class of each sample. Samples labelled -100 give zero.
        alpha: weight of the target-class part.
        beta: weight of the part among the other classes.
        temperature: divides both logits.

    Raises:
        ValueError: the shapes differ.
    """
    target = tckd(student_logits, teacher_logits, labels, temperature)
    others = nckd(student_logits, teacher_logits, labels, temperature)
    value = temperature**2 * (alpha * target + beta * others)
    return torch.where(labels != IGNORE, value, torch.zeros_like(value))


def tckd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Target-class KL between the two-way distributions (label, everything else), [B, K] -> [B]."""
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    log_t = binary_log_probs(log_softmax(teacher_logits, temperature), labels)
    log_s = binary_log_probs(log_softmax(student_logits, temperature), labels)
    return kl(log_t, log_s)


def nckd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL among the classes other than the label, each side renormalised over them, [B, K] -> [B]."""
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    return kl(_without(teacher_logits, labels, temperature), _without(student_logits, labels, temperature))


def binary_log_probs(log_p: Tensor, labels: Tensor) -> Tensor:
    """``[log p(label), log(1 - p(label))]`` from log-probabilities [B, K], stably: the rest is summed in log space."""
    mask = _is_label(log_p, labels)
    target = log_p.masked_fill(~mask, -torch.inf).logsumexp(-1)
    rest = log_p.masked_fill(mask, -torch.inf).logsumexp(-1)
    return torch.stack([target, rest], dim=-1)


def _without(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of the K - 1 classes that are not the label, [B, K] -> [B, K - 1]."""
    index = _index(logits, labels)
    columns = torch.arange(logits.shape[-1] - 1, device=logits.device).expand(len(logits), -1)
    # The columns behind the label's move up by one.
    return log_softmax(logits.gather(-1, columns + (columns >= index)), temperature)


def _is_label(values: Tensor, labels: Tensor) -> Tensor:
    """Where each row's label is, bool [B, K]."""
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, _index(values, labels), True)


def _index(values: Tensor, labels: Tensor) -> Tensor:
    """Each row's label as a column, [B, 1]; the first class where there is none.

    A gather or scatter takes fewer labels than rows without a word, hence the check.
    """
    if labels.shape != values.shape[:-1]:
        raise ValueError(f"logits {tuple(values.shape)} and labels {tuple(labels.shape)}: one label for each row")
    return torch.where(labels == IGNORE, torch.zeros_like(labels), labels)[:, None]


@register("loss")
def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
) -> Tensor:
    """Normalised distillation ``target + gamma T^2 others``, [B, K] and [B] -> [B] (Yang et al. 2023, section 3.1).

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        labels: [B]; the target class of each sample. Samples labelled -100 give zero.
        gamma: weight of the other classes.
        temperature: T of the other classes; the target has none.

    Raises:
        ValueError: the shapes differ.
    """
    target = nkd_target(student_logits, teacher_logits, labels)
    others = nkd_others(student_logits, teacher_logits, labels, temperature)
    value = target + gamma * temperature**2 * others
    return torch.where(labels != IGNORE, value, torch.zeros_like(value))


def nkd_target(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """``-p_t(label) log p_s(label)``: cross-entropy weighed by the teacher's trust in the label, [B, K] -> [B]."""
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    index = _index(student_logits, labels)
    log_t, log_s = (log_softmax(z).gather(-1, index)[:, 0] for z in (teacher_logits, student_logits))
    return -log_t.exp() * log_s


def nkd_others(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy among the classes other than the label, each side summing to 1 over them, [B, K] -> [B].

    It is ``nckd`` plus the teacher's entropy there, so that both have the same gradient.
    """
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    teacher = _without(teacher_logits, labels, temperature).exp()
    return _expected(teacher, _without(student_logits, labels, temperature))


@register("loss")
def dist_inter(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Inter-class relation ``T^2 (1 - rho)`` of DIST, [B, K] -> [B] (Huang et al. 2022, eq. 8).

    ``rho`` is Pearson's correlation, over the classes, of the two tempered distributions of a sample.

    Raises:
        ValueError: the shapes differ.
    """
    s, t = _tempered(student_logits, teacher_logits, temperature)
    return temperature**2 * (1 - (_unit(s, -1) * _unit(t, -1)).sum(-1))


@register("loss", couples_samples=True)
def dist_intra(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Intra-class relation ``T^2 mean_k (1 - rho_k)`` of DIST, [n, K] -> [n] (Huang et al. 2022, eq. 9).

    ``rho_k`` is Pearson's correlation, over the samples, of the two probabilities of class k. A row's value holds that
    sample's products in these correlations, n times, so that the mean of the rows is the paper's mean over classes.

    Raises:
        ValueError: the shapes differ.
    """
    s, t = _tempered(student_logits, teacher_logits, temperature)
    return temperature**2 * (1 - len(s) * (_unit(s, 0) * _unit(t, 0)).mean(-1))


def _tempered(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    return log_softmax(student_logits, temperature).exp(), log_softmax(teacher_logits, temperature).exp()


def _unit(values: Tensor, dim: int) -> Tensor:
    """Centred and of length 1 along an axis: a product of two such vectors is Pearson's correlation."""
    return F.normalize(values - values.mean(dim, keepdim=True), dim=dim, eps=TINY)


def standardized(logits: Tensor) -> Tensor:
    """Logits of mean 0 and standard deviation 1 over the classes, [..., K] -> [..., K] (Sun et al. 2024, algorithm 1).

    A logit loss of two such inputs compares the relations between classes, not the ranges of the logits. The deviation
    is that of a population (over K), as the paper has it; logits that are all equal give zeros.
    """
    centred = wide(logits) - wide(logits).mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + TINY**2).sqrt()


@register("loss")
def standardized_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0) -> Tensor:
    """``T^2 KL`` between softmaxes of standardised logits, [..., K] -> [...] (Sun et al. 2024, algorithm 2).

    Args:
        student_logits: [..., K].
        teacher_logits: [..., K], the same shape.
        temperature: the base temperature, divides both after they are standardised.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    return soft_kl(standardized(student_logits), standardized(teacher_logits), temperature=temperature)


def tempered_kl(student_logits: Tensor, teacher_logits: Tensor, temperatures: Tensor) -> Tensor:
    """``T^2 KL(teacher || student)`` where every sample has a temperature of its own, [B, K] and [B] -> [B].

    The gradient reaches the temperatures too.

    Raises:
        ValueError: the shapes differ, or there is not one temperature for each sample.
    """
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    if temperatures.shape != student_logits.shape[:-1]:
        shapes = f"logits {tuple(student_logits.shape)} and temperatures {tuple(temperatures.shape)}"
        raise ValueError(f"{shapes}: one temperature for each row")
    log_t, log_s = (log_softmax(z, temperatures[:, None]) for z in (teacher_logits, student_logits))
    return temperatures**2 * kl(log_t, log_s)


def soft_cross_entropy(student_logits: Tensor, probabilities: Tensor) -> Tensor:
    """``-sum_k q_k log p_k`` against given probabilities q, [..., K] twice -> [...].

    The probabilities are neither softened nor normalised here.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student_logits=student_logits, probabilities=probabilities)
    return _expected(probabilities, log_softmax(student_logits))


@register("loss")
def balanced_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, balance: float = 2.0, temperature: float = 1.0
) -> Tensor:
    """``u KL(teacher || student) + v KL(student || teacher)``, times T^2, [B, K] -> [B] (Amara et al. 2022, BD-KD).

    Of each sample the forward divergence, which covers the teacher's classes, weighs ``balance`` where the student is
    the surer of the two (its entropy is the lower), and the reverse one, which seeks the teacher's mode, where it is
    not; the other one weighs 1. The weights take no gradient.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        balance: weight of the divergence that a sample calls for.
        temperature: divides both logits, those of the entropies too.

    Raises:
        ValueError: the shapes differ.
    """
    forward, reverse = divergences(student_logits, teacher_logits, balance=balance, temperature=temperature)
    return forward + reverse


def divergences(
    student_logits: Tensor, teacher_logits: Tensor, *, balance: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """The two parts of :func:`balanced_kl` with their weights and T^2: forward and reverse, [B] each."""
    same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    log_s, log_t = log_softmax(student_logits, temperature), log_softmax(teacher_logits, temperature)
    surer = _entropy(log_t) > _entropy(log_s)
    one = torch.ones_like(log_s[..., 0])
    u, v = torch.where(surer, one * balance, one), torch.where(surer, one, one * balance)
    return temperature**2 * u * kl(log_t, log_s), temperature**2 * v * kl(log_s, log_t)


def _entropy(log_p: Tensor) -> Tensor:
    return _expected(log_p.exp(), log_p)


def _expected(mass: Tensor, log_p: Tensor) -> Tensor:
    """``-sum mass log p`` over the last axis; what has no mass adds nothing, whatever its log-probability."""
    return -(mass * log_p.masked_fill(mass == 0, 0.0)).sum(-1)
