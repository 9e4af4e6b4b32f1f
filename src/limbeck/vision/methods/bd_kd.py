"""Balanced divergences between a student and a teacher that learn together."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.losses import label_loss, soft_kl
from limbeck.models.forward import forward
from limbeck.registry import ModelBlock, build, register
from limbeck.vision.losses.logits import divergences


@register("method")
class BDKD(Method):
    """Balancing the Divergences for Online Knowledge Distillation (Amara et al. 2022, arXiv 2212.12965).

    A larger peer teaches while it learns. Student: ``CE + weight T^2 mean_i (u_i KL(p_t || p_s) + v_i KL(p_s || p_t))``
    where ``(u, v)`` is ``(balance, 1)`` for a sample of which the student is surer than the peer and ``(1, balance)``
    for the others. Peer: ``CE + peer_weight T^2 KL(p_t || p_s)``. Each takes the other's predictions as given, and both
    step at once with optimizers of their own.

    Args:
        peer: the model that teaches.
        balance: weight of the divergence that a sample calls for; the other one has 1.
        weight: of the student's divergences.
        peer_weight: of the peer's.
        temperature: T of all distributions.
    """

    def __init__(
        self,
        *,
        peer: ModelBlock,
        balance: float = 2.0,
        weight: float = 1.0,
        peer_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        self.peer = peer
        self.balance = balance
        self.weight = weight
        self.peer_weight = peer_weight
        self.temperature = temperature

    def setup(self, parts: Parts) -> None:
        """The student, and the peer with fresh weights."""
        super().setup(parts)
        self.learners["peer"] = build("model", self.peer, offers=parts.offers)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of both."""
        yield Update(("student", "peer"), self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"ce", "forward", "reverse"}`` of the student and ``{"peer_ce", "peer_reverse"}``."""
        s, t = (forward(self.learners[role], batch).logits for role in ("student", "peer"))
        return self._of_student(s, t.detach(), batch) | self._of_peer(t, s.detach(), batch)

    def _of_student(self, own: Tensor, given: Tensor, batch: Batch) -> dict[str, Term]:
        ahead, back = divergences(own, given, balance=self.balance, temperature=self.temperature)
        return {
            "ce": label_loss(own, batch),
            "forward": Term.of(ahead, weight=self.weight),
            "reverse": Term.of(back, weight=self.weight),
        }

    def _of_peer(self, own: Tensor, given: Tensor, batch: Batch) -> dict[str, Term]:
        # Reverse, as the peer sees it: it is the one that learns, so its distribution comes first.
        value = soft_kl(own, given, temperature=self.temperature, direction="reverse")
        return {"peer_ce": label_loss(own, batch), "peer_reverse": Term.of(value, weight=self.peer_weight)}
