"""Several denoising networks that act as one: each sample is answered by one of them, by its noise level or class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError

ROUNDING = 1e-4
"""Relative slack of a level, so that a network's own level in single precision is still its own."""


class Routed(nn.Module):
    """Networks of one kind behind one call. A subclass says which of them answers (:meth:`which`).

    What it says of itself (``shape``, ``classes``, ``sigma_data``, ...) is what its first network does.

    Args:
        nets: denoisers, called as ``net(x, sigma, label, **given)``.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name in ("nets", "features_at"):
                raise
            nets: Any = super().__getattr__("nets")
            return getattr(nets[0], name)

    def which(self, sigma: Tensor, label: Tensor | None) -> Tensor:
        """The number of the network that answers each sample, int64 [B]."""
        raise NotImplementedError

    def forward(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None, **given: Tensor) -> Tensor:
        """Estimates [B, *shape]; ``given`` are tensors [B]."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        which = self.which(sigma, label)
        asked: list[int] = which.unique().tolist()
        if len(asked) == 1:
            one: Tensor = self.nets[asked[0]](x, sigma, label, **given)
            return one
        parts = [(which == k).nonzero().squeeze(1) for k in asked]
        answers = [
            self.nets[k](x[rows], sigma[rows], _of(label, rows), **{n: v[rows] for n, v in given.items()})
            for k, rows in zip(asked, parts, strict=True)
        ]
        return torch.cat(answers)[torch.cat(parts).argsort()]


class ByLevel(Routed):
    """Each network answers from its own noise level down to the next one's; the first also above its own."""

    def __init__(self, nets: Sequence[nn.Module], levels: Sequence[float]) -> None:
        super().__init__(nets)
        self.levels = tuple(levels)

    def which(self, sigma: Tensor, label: Tensor | None) -> Tensor:
        """As the level says."""
        own = torch.tensor(self.levels, dtype=sigma.dtype, device=sigma.device) * (1 + ROUNDING)
        return ((sigma[:, None] <= own).sum(dim=1) - 1).clamp_min(0)


class ByClass(Routed):
    """Each network answers for the classes that are its own.

    Args:
        nets: the networks.
        owners: the number of the network of each class.
    """

    owners: Tensor

    def __init__(self, nets: Sequence[nn.Module], owners: Sequence[int]) -> None:
        super().__init__(nets)
        self.register_buffer("owners", torch.tensor(owners), persistent=False)

    def which(self, sigma: Tensor, label: Tensor | None) -> Tensor:
        """As the class says; without one, or for class -1, there is no network to ask.

        Raises:
            UserError: a sample has no class.
        """
        if label is None or bool((label < 0).any()):
            raise UserError(
                "students that share out the classes have no estimate without a class: give each sample one"
            )
        return self.owners[label]


def contiguous(classes: int, count: int) -> list[int]:
    """Classes shared out evenly in order, as the number of the owner of each (arXiv 2410.23274, section 4.1)."""
    return [c * count // classes for c in range(classes)]


def _of(label: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if label is None else label[rows]
