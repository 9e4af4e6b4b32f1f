"""The vocabulary head and the divergence together, a few tokens at a time: no [tokens, vocabulary] tensor is held.

The head of a language model is where a distillation's memory goes: 8192 tokens times 128 000 entries are 4 GB in
float32, and the plain formula holds about six such tensors for the student and the teacher. Here both heads are applied
to a chunk of tokens; the divergence, the cross-entropy and their gradient with respect to the chunk's logits are
written in closed form over the logits themselves (:mod:`limbeck.language.gradients`); and that gradient goes at once
into those of the hidden states and of the head's weight.

:func:`fused_sums` is what training needs: the weights of the tokens are known, so one pass gives value and gradient.
:func:`fused_divergence` gives a value per token, and computes the logits again in the backward pass, when the weights
are known. Both give what the plain formula gives, in value and gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.language.chunked import Gradients, Inputs, Settings, sweep
from limbeck.language.gradients import plain_direction


@dataclass(frozen=True)
class Head:
    """An output layer and what it is applied to.

    Attributes:
        hidden: last hidden states [N, H], as the layer takes them; their precision is that of the products.
        weight: [V, H].
        bias: [V]; ``-inf`` rules a token out.
        softcap: logits become ``softcap tanh(logits / softcap)`` (Gemma 2).
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None


class Sums(NamedTuple):
    """Weighted sums over tokens, differentiable scalars; None where it was not asked for."""

    divergence: Tensor | None
    cross_entropy: Tensor | None


def fused_divergence(
    student: Head,
    teacher: Head,
    *,
    labels: Tensor | None = None,
    direction: Literal[
        "forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd", "jeffreys", "hellinger"
    ] = "forward",
    temperature: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
    scale: bool = True,
    width: int | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Divergence per token [N] and, with labels, cross-entropy per token [N], from hidden states and heads.

    Equal to :func:`limbeck.language.losses.token_divergence` and :func:`limbeck.losses.cross_entropy` of the logits,
    differentiable with respect to the student's hidden states, weight and bias. The backward pass computes the logits
    again: use :func:`fused_sums` where the tokens' weights are known beforehand.

    Args:
        student: its head; the hidden states of the tokens that count.
        teacher: its head, on the same tokens; takes no gradient.
        labels: int64 [N]; -100 gives a cross-entropy of 0. It is over the student's whole vocabulary.
        direction, temperature, beta, skew, scale: as in ``token_divergence``.
        width: leading entries of both vocabularies that are compared; by default the smaller vocabulary.
        chunk: tokens at a time; by default :func:`limbeck.language.chunked.chunk_rows`.

    Raises:
        ValueError: shapes do not fit, or a parameter is out of range.
    """
    settings = _settings(student, teacher, labels, direction, temperature, beta, skew, scale, width, chunk)
    kd, ce = _PerToken.apply(*_flat(student, teacher), labels, settings)
    return kd, ce if labels is not None else None


def fused_sums(
    student: Head,
    teacher: Head | None,
    *,
    labels: Tensor | None = None,
    rows: Tensor | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    direction: Literal[
        "forward", "reverse", "jsd", "skew_forward", "skew_reverse", "tvd", "jeffreys", "hellinger"
    ] = "forward",
    temperature: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
    scale: bool = True,
    width: int | None = None,
    chunk: int | None = None,
) -> Sums:
    """``sum rows * divergence`` and ``sum rows * cross_entropy``, their gradient computed in the same single pass.

    Args:
        student: its head; the hidden states of the tokens that count.
        teacher: its head, on the same tokens; without one there is only the cross-entropy.
        labels: int64 [N]; without them there is only the divergence. See :func:`fused_divergence`.
        rows: weight of each token [N]; by default 1.
        weights: of the two sums in the loss, up to a common factor. The gradient that is computed along the way is that
            of this mixture. If the backward pass asks for another one (for a single term, say), it is computed again,
            so a wrong guess costs time and nothing else.
        direction, temperature, beta, skew, scale, width, chunk: as in :func:`fused_divergence`.

    Raises:
        ValueError: shapes do not fit, or a parameter is out of range.
    """
    settings = _settings(student, teacher, labels, direction, temperature, beta, skew, scale, width, chunk)
    if rows is not None and rows.shape != student.hidden.shape[:1]:
        raise ValueError(f"rows {tuple(rows.shape)} must be one weight for each of {len(student.hidden)} tokens")
    kd, ce = _Summed.apply(*_flat(student, teacher), labels, settings, rows, weights)
    return Sums(kd if teacher is not None else None, ce if labels is not None else None)


def _settings(
    student: Head,
    teacher: Head | None,
    labels: Tensor | None,
    direction: Any,
    temperature: float,
    beta: float,
    skew: float,
    scale: bool,
    width: int | None,
    chunk: int | None,
) -> Settings:
    _check(student, teacher, labels, width)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    for name, value in (("beta", beta), ("skew", skew)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    shared = min(len(head.weight) for head in (student, teacher) if head is not None)
    resolved = plain_direction(direction, beta, skew)
    caps = student.softcap, teacher.softcap if teacher is not None else None
    return Settings(resolved, temperature, beta, skew, scale, width or shared, chunk, caps)


def _check(student: Head, teacher: Head | None, labels: Tensor | None, width: int | None) -> None:
    if teacher is None and labels is None:
        raise ValueError("without a teacher there must be labels")
    heads = {"student": student} | ({"teacher": teacher} if teacher is not None else {})
    for name, head in heads.items():
        if head.hidden.ndim != 2 or head.weight.ndim != 2 or head.hidden.shape[1] != head.weight.shape[1]:
            shapes = f"hidden {tuple(head.hidden.shape)} and weight {tuple(head.weight.shape)}"
            raise ValueError(f"the {name}'s {shapes} must be [N, H] and [V, H]")
        if head.bias is not None and head.bias.shape != head.weight.shape[:1]:
            raise ValueError(f"the {name}'s bias {tuple(head.bias.shape)} must be [{len(head.weight)}]")
        if width is not None and not 1 <= width <= len(head.weight):
            raise ValueError(f"width must be between 1 and the {name}'s vocabulary {len(head.weight)}, got {width}")
    if teacher is not None and len(teacher.hidden) != len(student.hidden):
        raise ValueError(f"the student has {len(student.hidden)} tokens and the teacher {len(teacher.hidden)}")
    if labels is not None and labels.shape != student.hidden.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} must be one for each of {len(student.hidden)} tokens")


def _flat(student: Head, teacher: Head | None) -> tuple[Tensor | None, ...]:
    """Hidden states, weight and bias of both, as an autograd function takes them, in the precision of autocast."""
    own = _cast(student)
    if teacher is None:
        return *own, None, None, None
    with torch.no_grad():
        return *own, *_cast(teacher)


def _cast(head: Head) -> tuple[Tensor, Tensor, Tensor | None]:
    device = head.hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    kind = torch.get_autocast_dtype(device) if autocast else head.hidden.dtype
    return head.hidden.to(kind), head.weight.to(kind), None if head.bias is None else head.bias.to(kind)


class _PerToken(torch.autograd.Function):
    """Values per token; their gradients once the weight of each is known."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, ctx.settings = arguments
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(True)
        found = sweep(Inputs(*tensors), ctx.settings)
        return found.divergence, found.cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, kd: Tensor, ce: Tensor) -> tuple[Any, ...]:
        found = sweep(Inputs(*ctx.saved_tensors), ctx.settings, (kd, ce), ctx.needs_input_grad[:3])
        return _returned(found.gradients, ctx.saved_tensors, 5)


class _Summed(torch.autograd.Function):
    """Weighted sums; the gradients of their mixture are computed on the way, and used if that mixture is asked for."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, settings, rows, weights = arguments
        inputs = Inputs(*tensors)
        if rows is None:
            rows = inputs.hidden.new_ones(
                len(inputs.hidden), dtype=torch.promote_types(inputs.hidden.dtype, torch.float32)
            )
        ctx.save_for_backward(*tensors, rows)
        ctx.settings, ctx.weights, ctx.gradients = settings, _present(inputs, weights), None
        needs = ctx.needs_input_grad[:3]
        if any(needs):
            found = sweep(inputs, settings, (rows * weights[0], rows * weights[1]), needs)
            ctx.gradients = found.gradients
        else:
            found = sweep(inputs, settings)
        return (rows * found.divergence).sum(), (rows * found.cross_entropy).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        *tensors, rows = ctx.saved_tensors
        asked = _present(Inputs(*tensors), tuple(float(x) for x in upstream))
        gradients, factor = ctx.gradients, _multiple(asked, ctx.weights)
        if gradients is None or factor is None:
            wanted = rows * upstream[0], rows * upstream[1]
            gradients = sweep(Inputs(*tensors), ctx.settings, wanted, ctx.needs_input_grad[:3]).gradients
        else:
            # What is handed over is not kept: the engine may then take it as the parameter's gradient without a copy.
            ctx.gradients = None
            for x in (gradients.hidden, gradients.weight, gradients.bias):
                if x is not None and factor != 1:
                    x.mul_(factor)
        return _returned(gradients, tensors, 7)


def _present(inputs: Inputs, weights: tuple[float, ...]) -> tuple[float, float]:
    """The weights of the two sums, 0 for the one that is not there."""
    kd, ce = weights
    return (kd if inputs.teacher_hidden is not None else 0.0), (ce if inputs.labels is not None else 0.0)


def _multiple(asked: tuple[float, float], given: tuple[float, float]) -> float | None:
    """The factor from one mixture to the other, up to what float32 can tell; None where they are not the same."""
    at = 0 if abs(given[0]) >= abs(given[1]) else 1
    if given[at] == 0:
        return None
    factor = asked[at] / given[at]
    other = given[1 - at] * factor
    return factor if math.isclose(asked[1 - at], other, rel_tol=1e-6, abs_tol=0.0) else None


def _returned(gradients: Gradients, tensors: Any, others: int) -> tuple[Any, ...]:
    """One gradient for each argument, in its precision."""
    own = gradients.hidden, gradients.weight, gradients.bias
    cast = (g if g is None else g.to(x.dtype) for g, x in zip(own, tensors[:3], strict=True))
    return *cast, *[None] * others
