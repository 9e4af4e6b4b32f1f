"""Deep mutual learning."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.losses import label_loss, soft_kl
from limbeck.models.forward import forward
from limbeck.registry import ModelBlock, build, register


@register("method")
class DML(Method):
    """Deep Mutual Learning (Zhang et al. 2018, arXiv 1706.00384): peers teach each other, none is frozen.

    Each peer i in turn learns ``CE_i + weight / (M - 1) sum_j KL(p_j || p_i)`` with its own optimizer. The default
    follows the paper's algorithm: the others' predictions are computed anew after each peer's update.

    Args:
        peers: number of networks that learn together, the student among them.
        peer: the other peers' model; by default the student's own architecture with fresh weights.
        weight: of the mutual term.
        temperature: of both distributions (1 in the paper).
        order: ``alternating`` (the paper) or ``simultaneous``, where all peers see the predictions before the step.
    """

    def __init__(
        self,
        *,
        peers: int = 2,
        peer: ModelBlock | None = None,
        weight: float = 1.0,
        temperature: float = 1.0,
        order: Literal["alternating", "simultaneous"] = "alternating",
    ) -> None:
        if peers < 2:
            raise ValueError(f"mutual learning needs at least 2 peers, got {peers}")
        self.peers = peers
        self.peer = peer
        self.weight = weight
        self.temperature = temperature
        self.order: Literal["alternating", "simultaneous"] = order

    def setup(self, parts: Parts) -> None:
        """The student and ``peers - 1`` networks with weights of their own."""
        super().setup(parts)
        for i in range(1, self.peers):
            self.learners[f"peer_{i}"] = self._new_peer(parts)

    def _new_peer(self, parts: Parts) -> nn.Module:
        if self.peer is not None:
            return build("model", self.peer, offers=parts.offers)
        network = copy.deepcopy(parts.student)
        for module in network.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        return network

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of each peer in turn."""
        fixed = self._predictions(batch) if self.order == "simultaneous" else None
        for role in self.learners:
            yield Update(role, self.terms(role, batch, fixed))

    def terms(self, role: str, batch: Batch, fixed: dict[str, Tensor] | None = None) -> dict[str, Term]:
        """``{"ce", "mutual"}`` of one peer; ``fixed`` holds the peers' logits where they must not be recomputed."""
        logits = forward(self.learners[role], batch).logits
        others = fixed or self._predictions(batch, skip=role)
        values = [
            soft_kl(logits, other, temperature=self.temperature) for name, other in others.items() if name != role
        ]
        mutual = torch.stack(values).mean(0)
        return {"ce": label_loss(logits, batch), "mutual": Term.of(mutual, weight=self.weight)}

    @torch.no_grad()
    def _predictions(self, batch: Batch, skip: str | None = None) -> dict[str, Tensor]:
        return {r: forward(m, batch).logits for r, m in self.learners.items() if r != skip}
