"""Every divergence with its gradient in closed form, in place on a block of logits: what the fused head runs on.

With log-probabilities ``log q = u - lse(u)`` (student) and ``log p = v - lse(v)`` (teacher), a divergence D whose
derivative with respect to a free q is r has the gradient ``q (r - sum q r)`` with respect to u. So

- forward ``KL(p || q)``: ``q - p``;
- reverse ``KL(q || p)``: ``q (log q/p - D)``;
- jsd, m = beta p + (1 - beta) q: ``(1 - beta) q (log q/m - KL(q || m))``;
- skew_forward, m = skew p + (1 - skew) q: ``-(1 - skew) q (p/m - sum q p/m)``;
- skew_reverse, m = (1 - skew) p + skew q: r = ``log q/m - skew q/m``;
- tvd: r = ``sign(q - p) / 2``;
- jeffreys: half the sum of the first two;
- hellinger: ``(q sum sqrt(p q) - sqrt(p q)) / 2``.

No graph is recorded and no tensor of the block's size is made beyond the scratch that the caller holds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.language.losses import Divergence

CLOSED = ("forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd", "jeffreys", "hellinger")
"""The divergences that have a closed form here."""
FLOOR = -1e37
"""Stands for a logit of ``-inf``: its probability is exactly 0, and 0 times a difference of logits stays 0."""
_INFINITE = 1e10


class Softmax(NamedTuple):
    """A softmax [r, V] and the log of its normaliser [r, 1]."""

    mass: Tensor
    log_normaliser: Tensor


def softmax(logits: Tensor, out: Tensor) -> Softmax:
    """``softmax(logits)`` over the last axis, written to ``out``; the normaliser costs two maxima and no second exp."""
    torch.softmax(logits, -1, out=out)
    return Softmax(out, logits.amax(-1, keepdim=True) - out.amax(-1, keepdim=True).log())


def plain_direction(direction: Divergence, beta: float, skew: float) -> Divergence:
    """The direction that a family has at the end of its range: ``jsd`` at beta 0 is ``forward``, at 1 ``reverse``."""
    ends: dict[tuple[str, float], Divergence] = {("jsd", 0): "forward", ("jsd", 1): "reverse"}
    if direction == "jsd":
        return ends.get((direction, beta), direction)
    if skew == 0 and direction in ("skew_forward", "skew_reverse"):
        return "forward" if direction == "skew_forward" else "reverse"
    return direction


def divergence_(
    u: Tensor,
    v: Tensor,
    student: Softmax,
    teacher: Softmax,
    spare: Tensor,
    direction: Divergence,
    beta: float,
    skew: float,
) -> Tensor:
    """The divergence [r, 1] of a block; ``u`` becomes its gradient with respect to u.

    Args:
        u: the student's tempered logits [r, V], finite (:data:`FLOOR` for ``-inf``); overwritten by the gradient.
        v: the teacher's [r, V]; overwritten.
        student: softmax of u; left as it is.
        teacher: softmax of v; overwritten.
        spare: [r, V], overwritten.
        direction, beta, skew: as :func:`limbeck.language.losses.token_divergence`, ends replaced
            (:func:`plain_direction`).
    """
    match direction:
        case "forward":
            value = _forward_(u, v, student, teacher)
        case "reverse":
            value = _reverse_(u, v, student, teacher, spare)
        case "jsd":
            value = _jsd_(u, v, student, teacher, spare, beta)
        case "skew_forward":
            value = _skew_forward_(u, v, student, teacher, spare, skew)
        case "skew_reverse":
            value = _skew_reverse_(u, student, teacher, spare, skew)
        case "tvd":
            value = _tvd_(u, student, teacher, spare)
        case "jeffreys":
            value = _jeffreys_(u, v, student, teacher, spare)
        case "hellinger":
            value = _hellinger_(u, student, teacher, spare)
        case _:
            raise ValueError(f"no divergence is called '{direction}'")
    return torch.where(value > _INFINITE, torch.inf, value)


def _dot(a: Tensor, b: Tensor, spare: Tensor) -> Tensor:
    return torch.mul(a, b, out=spare).sum(-1, keepdim=True)


def _forward_(u: Tensor, v: Tensor, student: Softmax, teacher: Softmax) -> Tensor:
    v.sub_(u).mul_(teacher.mass)
    value = v.sum(-1, keepdim=True) + (student.log_normaliser - teacher.log_normaliser)
    torch.sub(student.mass, teacher.mass, out=u)
    return value


def _reverse_(u: Tensor, v: Tensor, student: Softmax, teacher: Softmax, spare: Tensor) -> Tensor:
    u.sub_(v)
    mean = _dot(u, student.mass, spare)
    u.sub_(mean).mul_(student.mass)
    return mean - (student.log_normaliser - teacher.log_normaliser)


def _jeffreys_(u: Tensor, v: Tensor, student: Softmax, teacher: Softmax, spare: Tensor) -> Tensor:
    u.sub_(v)
    of_student, of_teacher = _dot(u, student.mass, spare), _dot(u, teacher.mass, spare)
    u.sub_(of_student).mul_(student.mass).add_(student.mass).sub_(teacher.mass).mul_(0.5)
    return 0.5 * (of_student - of_teacher)


def _hellinger_(u: Tensor, student: Softmax, teacher: Softmax, spare: Tensor) -> Tensor:
    torch.sqrt(student.mass, out=spare)
    teacher.mass.sqrt_()
    torch.mul(spare, teacher.mass, out=u)
    overlap = u.sum(-1, keepdim=True)
    # A sum of squared differences stays exact for close distributions, where 1 - overlap would be rounding noise.
    value = 0.5 * spare.sub_(teacher.mass).square_().sum(-1, keepdim=True)
    torch.mul(student.mass, overlap, out=spare)
    u.neg_().add_(spare).mul_(0.5)
    return value


def _log_ratio_(logits: Tensor, of: Softmax, log_m: Tensor) -> Tensor:
    """``log(of / m)`` in place of the logits."""
    return logits.sub_(of.log_normaliser).sub_(log_m)


def _log_mix(a: Tensor, b: Tensor, share: float, out: Tensor) -> Tensor:
    """``log(share a + (1 - share) b)``; where neither has mass the log of the least number, so that 0 times it is 0."""
    torch.lerp(b, a, share, out=out)
    return out.clamp_(min=torch.finfo(out.dtype).tiny).log_()


def _jsd_(u: Tensor, v: Tensor, student: Softmax, teacher: Softmax, spare: Tensor, beta: float) -> Tensor:
    log_m = _log_mix(teacher.mass, student.mass, beta, spare)
    of_teacher = _log_ratio_(v, teacher, log_m).mul_(teacher.mass).sum(-1, keepdim=True)
    of_student = _dot(_log_ratio_(u, student, log_m), student.mass, spare)
    u.sub_(of_student).mul_(student.mass).mul_(1 - beta)
    return beta * of_teacher + (1 - beta) * of_student


def _skew_forward_(u: Tensor, v: Tensor, student: Softmax, teacher: Softmax, spare: Tensor, skew: float) -> Tensor:
    log_m = _log_mix(teacher.mass, student.mass, skew, spare)
    ratio = torch.sub(v, teacher.log_normaliser, out=u).sub_(log_m)
    value = torch.mul(ratio, teacher.mass, out=spare).sum(-1, keepdim=True)
    _centre_(ratio.exp_(), student.mass, spare).mul_(skew - 1)
    return value


def _skew_reverse_(u: Tensor, student: Softmax, teacher: Softmax, spare: Tensor, skew: float) -> Tensor:
    log_m = _log_mix(student.mass, teacher.mass, skew, spare)
    _log_ratio_(u, student, log_m)
    value = _dot(u, student.mass, spare)
    # q / m again from its log: one exp instead of the mixture once more.
    torch.exp(u, out=spare)
    _centre_(u.sub_(spare, alpha=skew), student.mass, spare)
    return value


def _tvd_(u: Tensor, student: Softmax, teacher: Softmax, spare: Tensor) -> Tensor:
    gap = torch.sub(student.mass, teacher.mass, out=teacher.mass)
    torch.sign(gap, out=u).mul_(0.5)
    value = _dot(u, gap, spare)
    _centre_(u, student.mass, spare)
    return value


def _centre_(r: Tensor, mass: Tensor, spare: Tensor) -> Tensor:
    """``q (r - sum q r)`` in place of r."""
    return r.sub_(_dot(r, mass, spare)).mul_(mass)
