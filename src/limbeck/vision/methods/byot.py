"""Be your own teacher."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.losses import label_loss, soft_kl, wide
from limbeck.models import places
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.base import Layers, example, summed
from limbeck.vision.exits import Exits
from limbeck.vision.shapes import as_vector


@register("method")
class BYOT(Method):
    """Be Your Own Teacher (Zhang et al. 2019, arXiv 1905.08094): a network's last exit teaches its earlier ones.

    ``L = CE(q_C) + sum_i (1 - alpha) CE(q_i) + alpha T^2 KL(q_C^T || q_i^T) + hint_weight |F_i - F_C|^2`` over the
    exits i, each a bottleneck and a classifier at the end of a stage but the last. ``q_C`` and ``F_C``, the last
    stage's features averaged over cells, take no gradient as teachers. The exits learn beside the student and are
    dropped: what is delivered is the plain network.

    Args:
        alpha: share of the last exit's soft targets in what the earlier ones learn.
        hint_weight: of the features.
        temperature: of the soft targets.
        student_layers: module paths of the features, shallow to deep, the last of them the teacher; by default the
            ends of the stages.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        hint_weight: float = 0.03,
        temperature: float = 3.0,
        student_layers: list[str] | None = None,
    ) -> None:
        self.alpha = alpha
        self.hint_weight = hint_weight
        self.temperature = temperature
        self.student_layers = student_layers

    def setup(self, parts: Parts) -> None:
        """Tap the stages and build an exit at each but the last."""
        super().setup(parts)
        batch = example(parts)
        paths = self.student_layers or places.stages(parts.student, batch)
        if len(paths) < 2:
            raise UserError(f"an earlier exit needs a stage before the last, and there is only {', '.join(paths)}")
        self._layers = Layers(parts.student, paths, "output")
        with places.looking(parts.student):
            classes = forward(parts.student, batch).logits.shape[-1]
        *shallow, last = self._layers.pop()
        self.learners["exits"] = Exits(shallow, last, classes)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student and its exits."""
        yield Update(("student", "exits"), self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """``{"ce"}`` of the last exit, and ``{"exits", "kd", "hint"}``, the sums over the earlier ones."""
        logits = forward(self.student, batch).logits
        *shallow, last = self._layers.pop()
        features, found = self.learners["exits"](shallow)
        target, soft = wide(as_vector(last)).detach(), logits.detach()
        hint = summed((wide(own) - target).square().sum(1) for own in features)
        kd = summed(soft_kl(own, soft, temperature=self.temperature) for own in found)
        ce = [label_loss(own, batch, weight=1 - self.alpha) for own in found]
        total = sum((term.sum for term in ce[1:]), start=ce[0].sum)
        return {
            "ce": label_loss(logits, batch),
            "exits": Term(total, ce[0].count, ce[0].weight, ce[0].unit),
            "kd": Term.of(kd, weight=self.alpha),
            "hint": Term.of(hint, weight=self.hint_weight),
        }
