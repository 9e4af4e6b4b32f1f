"""LinguGKD: what a language model makes of a node's surroundings, hop by hop, teaches the layers of a graph network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.language.surroundings import Alignment, Surroundings, nearest_class, read_nodes
from limbeck.losses import IGNORE, label_loss
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class LinguGKD(Method):
    """``CE + weight sum_l g_l InfoNCE(h_l, e_l)`` (Hu et al. 2024, arXiv 2402.05894).

    ``e_l`` is the teacher's last hidden state at the last token of a node's prompt with l hops, ``h_l`` the student's
    state of the node after l passings of messages; linear maps bring both to vectors of length 1. The negatives of a
    node are teacher vectors of nodes of other classes. ``g`` is the softmax of one learnt number for each layer;
    that it is learnt by this loss moves it towards the layer whose contrast is the easiest.

    The teacher reads all training nodes once, before the training starts. A node without a label is taken for one of
    the class whose labelled nodes have, on average, the vector nearest to its own (by cosine, at the last hop): so it
    is the teacher that says what is unlike it, and unlabelled nodes learn as well.

    Args:
        weight: of the contrast.
        tau: temperature of the cosines.
        negatives: how many are drawn for each node and layer, with replacement.
        dim: length of the vectors that are compared.
        unlabelled: nodes without a label learn from the teacher, too.
        shuffled: each node learns from the vectors of another, drawn once: a control.
    """

    needs = {"teacher": {"hidden_states"}}
    live = True
    same_view = False
    any_tokenizer = True

    def __init__(
        self,
        *,
        weight: float = 1.0,
        tau: float = 0.1,
        negatives: int = 64,
        dim: int = 32,
        unlabelled: bool = True,
        shuffled: bool = False,
    ) -> None:
        self.weight = weight
        self.tau = tau
        self.negatives = negatives
        self.dim = dim
        self.unlabelled = unlabelled
        self.shuffled = shuffled

    def setup(self, parts: Parts) -> None:
        """Have the teacher read the nodes, and make the maps.

        Raises:
            UserError: the data has no nodes with prompts, the student gives no states of nodes, the teacher has no
                tokenizer, or there are too few labelled classes.
        """
        super().setup(parts)
        source = next((s for s in parts.streams.values() if hasattr(s, "prompts")), None)
        if source is None:
            raise UserError("lingugkd: the data has no nodes with prompts; it learns from data 'graph_nodes'")
        with torch.no_grad():
            states = forward(parts.student, source.batch(torch.arange(min(2, len(source))))).get("hidden_states")
        if states is None:
            raise UserError("lingugkd: the student gives no hidden states of nodes: take a graph network (gcn)")
        vectors = read_nodes(self.teacher, source, hops=len(states) - 1)
        if self.shuffled:
            vectors = vectors[torch.randperm(len(vectors))]
        label = nearest_class(vectors[:, -1], source.label)
        self.frozen["surroundings"] = Surroundings(source.nodes, vectors, label)
        self.learners["alignment"] = Alignment([h.shape[-1] for h in states], vectors.shape[-1], self.dim)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the student with the maps."""
        yield Update(("student", "alignment"), self.terms(batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """``{"ce", "contrast"}``; without weight the first alone."""
        signals = forward(self.student, batch)
        terms = {"ce": label_loss(signals.logits, batch)}
        if self.weight > 0:
            values = self.contrast(signals.hidden_states, batch["id"], clock)
            terms["contrast"] = Term.of(values, self.taught(batch), weight=self.weight, unit="nodes")
        return terms

    def contrast(self, states: Sequence[Tensor], ids: Tensor, clock: Clock) -> Tensor:
        """The layers' weighted contrast of each node, [B]; the teacher's vectors that are needed are mapped once."""
        around: Any = self.frozen["surroundings"]
        rows = around.rows(ids)
        drawn = around.draw(rows, clock.uniform(ids, (len(states), self.negatives), "others"))
        used, places = torch.cat([rows, drawn.flatten()]).unique(return_inverse=True)
        own, others = places[: len(rows)], places[len(rows) :].view(drawn.shape)
        values: Tensor = self.learners["alignment"](states, around.vectors[used], own, others, self.tau)
        return values

    def taught(self, batch: Batch) -> Tensor:
        """Which nodes of a batch learn from the teacher, bool [B]."""
        labelled: Tensor = batch["label"] != IGNORE
        return torch.ones_like(labelled) if self.unlabelled else labelled

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Adds the nodes that learn from the teacher."""
        return {**super().count(batch), "nodes": self.taught(batch).sum()}

    def says(self) -> Sequence[str]:
        """How many nodes the teacher read."""
        around: Any = self.frozen["surroundings"]
        return [f"the teacher read {len(around)} nodes at {around.vectors.shape[1]} distances"]
