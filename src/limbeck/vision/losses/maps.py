"""Losses between feature maps [B, C, H, W]; tokens and vectors are seen as maps. One value for each sample."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.losses import kl, log_softmax, same_rows, same_shape, wide
from limbeck.registry import register
from limbeck.vision.shapes import as_map, same_cells

TINY = 1e-6
"""Length under which a map counts as zero: channels that are dead have no direction."""


@register("loss")
def attention(student: Tensor, teacher: Tensor, *, p: float = 2.0) -> Tensor:
    """Attention transfer, [B, C_s, H, W] and [B, C_t, H', W'] -> [B] (Zagoruyko and Komodakis 2017, eq. 2).

    Mean over cells of the squared difference of the two attention maps. The channels may differ; of unlike grids the
    finer is averaged to the coarser.

    Args:
        student, teacher: maps, tokens or vectors.
        p: power of the activations' magnitude.

    Raises:
        ValueError: unlike numbers of samples, or a grid of one cell, where there is nothing to attend to.
    """
    same_rows(student=student, teacher=teacher)
    a, b = same_cells(as_map(wide(student)), as_map(wide(teacher)))
    if a[0, 0].numel() == 1:
        raise UserError("attention needs maps of more than one cell: choose other layers, or another method")
    return (attention_map(a, p) - attention_map(b, p)).square().mean(1)


def attention_map(feature: Tensor, p: float = 2.0) -> Tensor:
    """Mean over channels of ``|A|^p`` as a vector of length 1, [B, C, H, W] -> [B, H * W]."""
    return F.normalize(feature.abs().pow(p).mean(1).flatten(1), dim=1)


@register("loss")
def nst(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Literal["polynomial", "gaussian"] = "polynomial",
    degree: int = 2,
    constant: float = 0.0,
) -> Tensor:
    """Neuron selectivity transfer, [B, C_s, H, W] and [B, C_t, H', W'] -> [B] (Huang and Wang 2017).

    Squared maximum mean discrepancy between the student's channels and the teacher's, each channel a vector of length 1
    over the cells. The numbers of channels may differ; of unlike grids the finer is averaged to the coarser.

    Args:
        student, teacher: maps, tokens or vectors.
        kernel: ``polynomial``, ``(x . y + constant)^degree``, or ``gaussian``, ``exp(-|x - y|^2 / (2 sigma^2))`` with
            ``sigma^2`` the mean squared distance of all pairs of channels.
        degree: of the polynomial; 1 is the paper's linear kernel.
        constant: of the polynomial.

    Raises:
        ValueError: unlike numbers of samples, or a grid of one cell, where all channels are alike.
    """
    same_rows(student=student, teacher=teacher)
    a, b = (
        F.normalize(_cells(m, "neuron selectivity"), dim=2, eps=TINY)
        for m in same_cells(as_map(wide(student)), as_map(wide(teacher)))
    )
    if kernel == "polynomial":
        ss, tt, st = ((x @ y.mT + constant) ** degree for x, y in ((a, a), (b, b), (a, b)))
    else:
        ss, tt, st = _gaussian(a, b)
    return ss.mean((1, 2)) + tt.mean((1, 2)) - 2 * st.mean((1, 2))


def _gaussian(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel among the one side's rows, among the other's, and between them: [B, n, D] and [B, m, D]."""
    ss, tt, st = (_squared_distances(x, y) for x, y in ((a, a), (b, b), (a, b)))
    count = a.shape[1] + b.shape[1]
    total = ss.sum((1, 2)) + tt.sum((1, 2)) + 2 * st.sum((1, 2))
    variance = (total / (count * (count - 1))).clamp(min=TINY)[:, None, None]
    return (-ss / (2 * variance)).exp(), (-tt / (2 * variance)).exp(), (-st / (2 * variance)).exp()


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[B, n, D] and [B, m, D] -> [B, n, m]."""
    return a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None] - 2 * a @ b.mT


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Flow between two layers, [B, C_1, H, W] and [B, C_2, H', W'] -> [B, C_1, C_2] (Yim et al. 2017, eq. 1).

    Mean over cells of the products of all pairs of channels; of unlike grids the finer takes its largest values.

    Raises:
        ValueError: unlike numbers of samples.
    """
    same_rows(first=first, second=second)
    a, b = as_map(wide(first)), as_map(wide(second))
    size = (min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1]))
    a, b = (F.adaptive_max_pool2d(m, size).flatten(2) for m in (a, b))
    return a @ b.mT / math.prod(size)


@register("loss")
def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared Euclidean distance, summed over all but the first axis, [B, ...] twice -> [B].

    Of two flows of :func:`fsp_matrix` it is the loss of Yim et al. 2017, eq. 2.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student=student, teacher=teacher)
    return (wide(student) - wide(teacher)).square().flatten(1).sum(1)


@register("loss")
def activation_boundary(student: Tensor, teacher: Tensor, *, margin: float = 1.0) -> Tensor:
    """Transfer of activation boundaries, [B, ...] twice -> [B] (Heo et al. 2019, arXiv 1811.03233).

    Of features before their ReLU: the sum over neurons of how far, squared, the student's is from lying ``margin``
    beyond zero on the teacher's side.

    Args:
        student, teacher: before the activation, of equal shape.
        margin: how far beyond zero is enough.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student=student, teacher=teacher)
    side = torch.where(teacher > 0, 1.0, -1.0)
    return F.relu(margin - side * wide(student)).square().flatten(1).sum(1)


@register("loss")
def partial_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Partial squared distance, [B, ...] twice -> [B] (Heo et al. 2019, arXiv 1904.01866).

    Of features before their ReLU, summed over neurons. Where the teacher is not positive and the student lies below
    it, both say the same after the ReLU, and the distance is zero.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student=student, teacher=teacher)
    s, t = wide(student), wide(teacher)
    alike = (s <= t) & (t <= 0)
    return (t - s).square().masked_fill(alike, 0.0).flatten(1).sum(1)


@register("loss")
def class_attention(student: Tensor, teacher: Tensor, *, size: int = 2) -> Tensor:
    """Class attention transfer, [B, K, H, W] and [B, K, H', W'] -> [B] (Guo et al. 2023, arXiv 2304.07777).

    Of class activation maps: each is averaged to ``size`` x ``size`` cells and scaled to length 1; then the mean square
    over classes and cells (the published weights belong to this mean; the paper writes the sum over cells).

    Args:
        student, teacher: one map for each class.
        size: of the averaged maps.

    Raises:
        ValueError: unlike numbers of samples or classes, or a grid of one cell.
    """
    maps = as_map(wide(student)), as_map(wide(teacher))
    if maps[0].shape[:2] != maps[1].shape[:2]:
        shapes = f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        raise UserError(f"class maps must be of the same samples and classes: {shapes}")
    for each in maps:
        _cells(each, "class attention")
    a, b = (F.normalize(F.adaptive_avg_pool2d(m, size).flatten(2), dim=2, eps=TINY) for m in maps)
    return (a - b).square().mean((1, 2))


@register("loss")
def cwd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Channel-wise distillation, [B, C, H, W] twice -> [B] (Shu et al. 2021, arXiv 2011.13256).

    ``T^2 / C sum_c KL(phi_t || phi_s)`` with ``phi`` the softmax of each channel over its cells.

    Args:
        student, teacher: maps or tokens of equal shape.
        temperature: T, divides the activations.

    Raises:
        ValueError: the shapes differ, or a grid of one cell.
    """
    same_shape(student=student, teacher=teacher)
    a, b = (_cells(as_map(m), "channel-wise distillation") for m in (student, teacher))
    return temperature**2 * kl(log_softmax(b, temperature), log_softmax(a, temperature)).mean(1)


def _cells(feature: Tensor, what: str) -> Tensor:
    """The channels as vectors over the cells, [B, C, H, W] -> [B, C, H * W]."""
    if feature[0, 0].numel() == 1:
        raise UserError(f"{what} needs maps of more than one cell: choose other layers, or another method")
    return feature.flatten(2)
