"""What a teacher's batch normalisation remembers of its data, against what a batch of images gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.losses import same_shape, wide

Moments = list[tuple[Tensor, Tensor]]
"""Mean [C] and variance [C] of each layer."""


def norms_of(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch normalisations of a network that have running statistics, in order."""
    found = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [m for m in found if m.running_mean is not None]


def statistics_distance(mean: Tensor, variance: Tensor, wanted_mean: Tensor, wanted_variance: Tensor) -> Tensor:
    """``||mean - wanted||_2 + ||variance - wanted||_2`` of the channels of one layer, [C] each -> scalar.

    Yin et al. 2020, equation 4: what batch normalisation remembers of the data, against a batch of images.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(mean=mean, variance=variance, wanted_mean=wanted_mean, wanted_variance=wanted_variance)
    return (wide(mean) - wide(wanted_mean)).norm() + (wide(variance) - wide(wanted_variance)).norm()


class Statistics:
    """Statistics of what each batch normalisation of a network is handed, while the context is open.

    The network stays in evaluation mode; gradients flow to its input.

    Args:
        module: the network.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = norms_of(module)
        self._inputs: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Statistics:
        for number, norm in enumerate(self.norms):
            self._handles.append(norm.register_forward_pre_hook(self._note(number)))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inputs.clear()

    def _note(self, number: int) -> Any:
        return lambda module, inputs: self._inputs.__setitem__(number, inputs[0])

    @property
    def inputs(self) -> list[Tensor]:
        """What each layer was handed in the last forward, [B, C, ...]."""
        return [wide(self._inputs[number]) for number in range(len(self.norms))]

    def moments(self, rows: slice = slice(None)) -> Moments:
        """Mean and biased variance over all but the channels, of the last forward or of these ``rows`` of its batch."""
        return [_moments(x[rows]) for x in self.inputs]

    def distances(self, moments: Moments | None = None) -> Tensor:
        """:func:`statistics_distance` of each layer from its running statistics, [layers]."""
        found = moments if moments is not None else self.moments()
        return torch.stack(
            [
                statistics_distance(mean, variance, norm.running_mean, norm.running_var)  # type: ignore[arg-type]
                for (mean, variance), norm in zip(found, self.norms, strict=True)
            ]
        )

    def embedding(self) -> Tensor:
        """The mean over cells of every channel of every layer for each image, [B, D]."""
        return torch.cat([x.flatten(2).mean(2) if x.dim() > 2 else x for x in self.inputs], 1)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1, unbiased=False)


def mixed(old: Moments | None, new: Moments, momentum: float) -> Moments:
    """``momentum * old + (1 - momentum) * new`` of every mean and variance; the new ones where there are no old."""
    if old is None:
        return new
    return [_mixed(a, b, momentum) for a, b in zip(old, new, strict=True)]


def _mixed(old: Sequence[Tensor], new: Sequence[Tensor], momentum: float) -> tuple[Tensor, Tensor]:
    mean, variance = (momentum * a.to(b) + (1 - momentum) * b for a, b in zip(old, new, strict=True))
    return mean, variance
