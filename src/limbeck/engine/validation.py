"""Quick validation while training: mean loss and accuracy over a split, on every process's share of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.losses import IGNORE, cross_entropy
from limbeck.models.forward import forward

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from limbeck.data.base import Source


class Validator:
    """Scores modules on a labelled source: ``nll`` and ``accuracy`` per sample, or per token for token batches."""

    def __init__(self, source: Source, batch_size: int = 256) -> None:
        self.source = source
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, module: nn.Module, fabric: Fabric) -> dict[str, float]:
        """Mean NLL (nats) and top-1 accuracy over the whole source, summed over the processes."""
        was_training = module.training
        module.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        for batch, real in self._share(fabric.global_rank, fabric.world_size):
            batch = fabric.to_device(batch)
            logits = forward(module, batch).logits
            sums += real * torch.stack(_sums(logits, batch)).double().cpu()
        module.train(was_training)
        if fabric.world_size > 1:
            sums = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").cpu()  # type: ignore[union-attr]
        count = max(sums[2].item(), 1.0)
        return {"nll": sums[0].item() / count, "accuracy": sums[1].item() / count}

    def _share(self, rank: int, world: int) -> Iterator[tuple[dict[str, Any], int]]:
        """This rank's batches; every rank makes the same number of them (sharded models compute together)."""
        starts = list(range(0, len(self.source), self.batch_size))
        rounds = -(-len(starts) // world)
        for i in range(rounds):
            k = i * world + rank
            start = starts[k] if k < len(starts) else 0
            rows = torch.arange(start, min(start + self.batch_size, len(self.source)))
            yield self.source.batch(rows, 0), int(k < len(starts))


def _sums(logits: Tensor, batch: dict[str, Any]) -> list[Tensor]:
    labels = batch["label"] if "label" in batch else batch["labels"][:, 1:]
    if "labels" in batch:
        logits = logits[:, :-1]
    known = labels != IGNORE
    hits = (logits.argmax(-1) == labels) & known
    return [cross_entropy(logits, labels).sum(), hits.sum(), known.sum()]
