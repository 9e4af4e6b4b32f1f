"""Kernels between samples, and the maximum mean discrepancy of small groups of them, as pure functions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

KernelName = Literal["laplace", "rbf"]
"""``exp(-w |x - y| / d)`` and ``exp(-w^2 |x - y|^2 / (2 d))`` in ``d`` dimensions."""


def kernel(x: Tensor, y: Tensor, scale: Tensor, kind: KernelName, floor: float = 1e-8) -> Tensor:
    """Kernel values [G, M, N] of points ``x`` [G, M, d] and ``y`` [G, N, d] (arXiv 2503.07565, section 4.2).

    Args:
        x: points in groups.
        y: as ``x``.
        scale: the w of each group, [G].
        kind: of kernel.
        floor: least distance; closer points do not pull at one another.

    Raises:
        ValueError: the kernel is unknown.
    """
    d = x.shape[-1]
    # From the differences themselves: of a matrix product there would remain rounding, and no gradient at zero.
    squared = (x[:, :, None] - y[:, None]).square().sum(dim=-1).clamp_min(floor**2)
    w = scale[:, None, None]
    if kind == "laplace":
        return torch.exp(-w * squared.sqrt() / d)
    if kind == "rbf":
        return torch.exp(-(w**2) * squared / (2 * d))
    raise ValueError(f"unknown kernel '{kind}'")


def group_mmd(
    moved: Tensor,
    target: Tensor,
    scale: Tensor,
    particles: int,
    label: Tensor | None = None,
    *,
    kind: KernelName = "laplace",
) -> Tensor:
    """The squared maximum mean discrepancy of each group, shared out to its samples, [B] (arXiv 2503.07565, eq. 12).

    Rows ``g M, ..., g M + M - 1`` are group ``g``; the last may be smaller. The mean over a group's rows is
    ``mean_jk [k(y_j, y_k) + k(z_j, z_k) - 2 k(y_j, z_k)]``, with each sample also compared with itself. With classes
    the kernel is that of joint laws: samples of unlike classes are as far apart as can be.

    Args:
        moved: y [B, *shape].
        target: z [B, *shape].
        scale: of the kernel, [B]; that of a group's first row counts.
        particles: M.
        label: classes, int64 [B].
        kind: of kernel.

    Raises:
        ValueError: the shapes differ.
    """
    if moved.shape != target.shape or scale.shape != moved.shape[:1]:
        raise ValueError(f"unlike shapes {tuple(moved.shape)}, {tuple(target.shape)} and scale {tuple(scale.shape)}")
    count = len(moved)
    y, z, here, w = (_groups(t, particles) for t in (moved.flatten(1), target.flatten(1), _ones(moved), scale[:, None]))
    pair = here @ here.mT
    if label is not None:
        kinds = _groups(label[:, None], particles)
        pair = pair * (kinds == kinds.mT)
    w = w[:, 0, 0]
    apart = kernel(y, y, w, kind) + kernel(z, z, w, kind) - kernel(y, z, w, kind) - kernel(z, y, w, kind)
    return ((pair * apart).sum(dim=2) / here.sum(dim=1)).flatten()[:count]


def _ones(x: Tensor) -> Tensor:
    return x.new_ones(len(x), 1)


def _groups(rows: Tensor, size: int) -> Tensor:
    """``[B, d] -> [G, size, d]``, filled up with zeros."""
    return F.pad(rows, (0, 0, 0, -len(rows) % size)).reshape(-1, size, rows.shape[1])
