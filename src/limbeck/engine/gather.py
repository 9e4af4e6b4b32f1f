"""The rows of a global batch in every process, for losses that compare samples with one another.

Such a loss is written for a whole batch and gives one value for each row. Each process gathers everybody's rows,
computes the values and keeps its own; gradients flow back to the process that each row came from, so that the sum over
processes is the loss of the global batch:

    rows = Together(len(student))
    values = rows.own(sp(rows.all(student), rows.all(teacher)))
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class Together:
    """The rows of all processes in one order.

    Args:
        count: how many rows this process has (the counts may differ).
    """

    def __init__(self, count: int, device: torch.device | str = "cpu") -> None:
        self.sizes = [count]
        self.rank = 0
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            own = torch.tensor([count], device=device)
            found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
            dist.all_gather(found, own)
            self.sizes = [int(n) for n in torch.cat(found).tolist()]
            self.rank = dist.get_rank()

    @property
    def bounds(self) -> tuple[int, int]:
        """Where this process's rows begin and end among all."""
        first = sum(self.sizes[: self.rank])
        return first, first + self.sizes[self.rank]

    def all(self, rows: Tensor) -> Tensor:
        """Everybody's rows, [B_own, ...] -> [B, ...], with the gradient of all processes' losses."""
        if len(self.sizes) == 1:
            return rows
        return _Gather.apply(rows, self.sizes, self.bounds)

    def own(self, values: Tensor) -> Tensor:
        """This process's part of what was computed for all rows, [B, ...] -> [B_own, ...]."""
        first, last = self.bounds
        return values[first:last]


class _Gather(torch.autograd.Function):
    """Gathers rows; backward sums what every process's loss says of each row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], bounds: tuple[int, int]) -> Tensor:
        ctx.bounds = bounds
        # A collective takes equal shapes: shorter parts are filled up, and cut again.
        filled = rows.new_zeros(max(sizes), *rows.shape[1:])
        filled[: len(rows)] = rows
        found = [torch.empty_like(filled) for _ in sizes]
        dist.all_gather(found, filled)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        first, last = ctx.bounds
        return whole[first:last], None, None
