"""Dividing each loss term by its count over the whole global batch, however the batch is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.engine.method import Batch, Method, Term

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def declared(method: Method, micro: Sequence[Batch], fabric: Fabric) -> dict[str, Tensor] | None:
    """Items of each unit in a global step that comes in pieces, from the data alone; None for a single piece."""
    if len(micro) == 1:
        return None
    counts: dict[str, Tensor] = {}
    for batch in micro:
        for unit, n in method.count(batch).items():
            n = torch.as_tensor(n, dtype=torch.float32, device=fabric.device)
            counts[unit] = counts[unit] + n if unit in counts else n
    return _over_processes(counts, fabric)


def divisors(
    method: Method, terms: Mapping[str, Term], totals: Mapping[str, Tensor] | None, fabric: Fabric
) -> Mapping[str, Tensor | float]:
    """What each term's sum is divided by: its unit's declared total, or its own count over all processes.

    Raises:
        ValueError: the step comes in several pieces and a term counts in a unit that the method does not declare.
    """
    if totals is not None:
        unknown = {t.unit for t in terms.values()} - set(totals)
        if unknown:
            raise ValueError(
                f"terms are counted in {sorted(unknown)}, which count() of {type(method).__name__} does not give: "
                "add it there, or train with accumulate: 1"
            )
        return {n: totals[t.unit] for n, t in terms.items()}
    if fabric.world_size == 1:
        return {n: _at_least_one(t.count) for n, t in terms.items()}
    own = {n: torch.as_tensor(t.count, dtype=torch.float32, device=fabric.device) for n, t in terms.items()}
    return _over_processes(own, fabric)


def _over_processes(counts: dict[str, Tensor], fabric: Fabric) -> dict[str, Tensor]:
    if fabric.world_size > 1 and counts:
        total = fabric.all_reduce(torch.stack(list(counts.values())), reduce_op="sum")
        counts = dict(zip(counts, total.unbind(), strict=True))  # type: ignore[union-attr]
    return {k: v.clamp(min=1) for k, v in counts.items()}


def _at_least_one(count: int | Tensor) -> float | Tensor:
    """Stays on an accelerator, which need not be waited for; on the CPU a number is cheaper to divide by."""
    if isinstance(count, Tensor):
        return max(count.item(), 1) if count.is_cpu else count.clamp(min=1)
    return max(count, 1)
