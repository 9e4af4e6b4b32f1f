"""InfiGFusion: several teachers of any vocabulary fused into one student by the graphs of their likely tokens."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limbeck.engine.method import Batch, Term
from limbeck.language.cross import CrossMethod
from limbeck.language.crossing import Crossing, at
from limbeck.language.graphs import graph_distance, signatures
from limbeck.language.losses import scored, uld
from limbeck.losses import cross_entropy
from limbeck.registry import register


@register("method")
class InfiGFusion(CrossMethod):
    """``CE(y, q) + uld_weight mean L_ULD + graph_weight mean L_graph`` over the teachers.

    Wang et al. 2025, "InfiGFusion: Graph-on-Logits Distillation via Efficient Gromov-Wasserstein for Model Fusion"
    (arXiv 2505.13893). A row's graph joins tokens that are likely at the same positions; graphs are compared by their
    sorted row sums, a lower bound of the Gromov-Wasserstein distance. The graph does not know which token is which: it
    is never used alone. Each graph is divided by its norm, which removes the length of the row.

    Args:
        uld_weight: of the sorted distance of probabilities.
        graph_weight: of the distance of graphs.
        k: logits that are kept at each position.
        temperature: divides the logits of the sorted distance.
        reduction: mean over tokens, over sequences' means, or sum over a constant length.
        max_len: that constant; by default the number of predictions in a full row.
    """

    needs = {"*": {"logits"}}
    same_view = False
    live = True
    dial = "graph_weight"

    def __init__(
        self,
        *,
        uld_weight: float = 0.5,
        graph_weight: float = 0.5,
        k: int = 10,
        temperature: float = 1.0,
        reduction: Literal["token_mean", "seq_mean", "max_len"] = "token_mean",
        max_len: int | None = None,
    ) -> None:
        super().__init__(temperature=temperature, reduction=reduction, max_len=max_len)
        self.uld_weight = uld_weight
        self.graph_weight = graph_weight
        self.k = k

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The term ``ce``, and of each teacher ``uld`` and ``graph``."""
        logits, labels = self.next_tokens(batch)
        terms = {"ce": self.term(cross_entropy(logits, labels), labels)}
        for role in self.teachers:
            terms |= self.of_teacher(role, logits, labels, self.cross(batch, role))
        return terms

    def of_teacher(self, role: str, logits: Tensor, labels: Tensor, crossing: Crossing) -> dict[str, Term]:
        """What one teacher adds: ``uld`` and ``graph``, or these with its role."""
        among, after = len(self.teachers), "" if role == "teacher" else f"/{role}"
        ours, theirs = self.fitting(logits, self.asked(crossing, role).logits[:, :-1], role)
        found = {}
        if self.uld_weight > 0:
            first = at(ours, crossing.student[..., 0]), at(theirs, crossing.teacher[..., 0])
            value = uld(*first, temperature=self.temperature)
            found[f"uld{after}"] = self.span_term(value, crossing, role, self.uld_weight / among)
        if self.graph_weight > 0:
            sides = signatures(ours, scored(labels), self.k), self._graph(theirs, crossing)
            unit = "rows with spans" if role == "teacher" else f"rows with spans of {role}"
            rows = crossing.mask.any(1)
            found[f"graph{after}"] = Term.of(graph_distance(*sides), rows, weight=self.graph_weight / among, unit=unit)
        return found

    def _graph(self, theirs: Tensor, crossing: Crossing) -> Tensor:
        return signatures(theirs, scored(crossing.batch["labels"][:, 1:]), self.k)
