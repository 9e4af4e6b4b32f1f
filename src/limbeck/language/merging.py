"""Merging two models of one shape by their weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.errors import UserError

PARALLEL = 1e-4
"""Sine of the angle under which two directions are taken for one."""


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation from ``a`` (share 0) to ``b`` (1), both taken as one vector each (Shoemake 1985).

    ``sin((1 - s) w) / sin w * a + sin(s w) / sin w * b`` with ``w`` the angle between them; along the straight line
    where they point the same way or against each other, and where one is zero.

    Raises:
        ValueError: the shapes differ, or ``share`` is not in [0, 1].
    """
    if a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must have the same shape")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    x, y = a.double(), b.double()
    lengths = x.norm() * y.norm()
    cosine = ((x * y).sum() / lengths).clamp(-1, 1) if lengths > 0 else x.new_ones(())
    angle = torch.arccos(cosine)
    if torch.sin(angle) < PARALLEL:
        return ((1 - share) * x + share * y).to(a.dtype)
    parts = torch.sin((1 - share) * angle) * x + torch.sin(share * angle) * y
    return (parts / torch.sin(angle)).to(a.dtype)


def merged_by_slerp(a: nn.Module, b: nn.Module, share: float = 0.5) -> nn.Module:
    """A copy of ``a`` whose every weight is interpolated towards ``b``'s; what is no float stays.

    Two recoveries of one pruned model, made on different data, become one (self-data distillation, arXiv 2410.09982,
    section 3).

    Raises:
        UserError: the models have unlike weights.
    """
    made, other = copy.deepcopy(a), b.state_dict()
    own = made.state_dict()
    _same(own, other)
    made.load_state_dict({n: slerp(v, other[n], share) if v.is_floating_point() else v for n, v in own.items()})
    return made


def _same(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    unlike = sorted(own.keys() ^ other.keys()) or sorted(n for n in own if own[n].shape != other[n].shape)
    if unlike:
        raise UserError(f"models with unlike weights cannot be merged: look at '{unlike[0]}'")
