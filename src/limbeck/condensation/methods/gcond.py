"""Gradient matching on a graph: a few nodes that push a network's weights where the whole graph pushes them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.condensation.graphs.networks import (
    Kind,
    NodeNetwork,
    fresh_node_network,
    normalised,
    spread,
    train_on_nodes,
)
from limbeck.condensation.graphs.nodes import RealNodes, node_set
from limbeck.condensation.losses import gradient_distance
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update, frozen
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class GCond(Method):
    """Graph condensation for node classification (Jin et al., ICLR 2022, arXiv 2110.07580).

    Of each class, the gradient of the cross-entropy with respect to a network's weights is taken on the labelled nodes
    of the graph and on the student's, and these move so that both are alike:
    ``sum_c w_c sum_l sum_i (1 - cos)`` over layers and output units, with ``w_c`` the size of the class beside the
    largest. The network is fresh every ``outer`` steps and learns the student for ``inner`` steps after each of the
    steps between. Features and edges of the student learn by turns. A student without edges makes it GCondX.

    Args:
        net: ``sgc``, the paper's, or ``gcn``.
        hidden: width of ``gcn``.
        layers: passings of messages.
        outer: steps with one network.
        inner: steps of Adam that the network takes on the student after each.
        net_lr: of that.
        feature_steps: steps in which the features learn, before the edges do.
        structure_steps: steps in which the edges learn then.
    """

    couples_samples = True
    data_free = True
    controls = {
        "random": {"student": {"structure": "none"}, "method": {"name": "real_nodes", "selection": "random"}},
    }

    def __init__(
        self,
        *,
        net: Kind = "sgc",
        hidden: int = 64,
        layers: int = 2,
        outer: int = 10,
        inner: int = 5,
        net_lr: float = 0.01,
        feature_steps: int = 40,
        structure_steps: int = 10,
    ) -> None:
        if min(hidden, layers, outer, feature_steps) < 1 or min(inner, structure_steps) < 0:
            raise UserError("gcond: hidden, layers, outer, feature_steps must be 1 or more, inner, structure_steps 0")
        self.net = net
        self.hidden = hidden
        self.layers = layers
        self.outer = outer
        self.inner = inner
        self.net_lr = net_lr
        self.feature_steps = feature_steps
        self.structure_steps = structure_steps

    def setup(self, parts: Parts) -> None:
        """Take the graph into memory.

        Raises:
            UserError: the student is no set of nodes, or the data has no graph with labelled nodes of all classes.
        """
        super().setup(parts)
        # Its parts are called one by one, which the loop's wrapper of the whole would not allow.
        self.nodes = node_set(parts.student)
        self.real = RealNodes.of_streams(parts.streams)
        self.passed = spread(self.real.features, self.real.adjacency, self.layers)
        self.network: NodeNetwork | None = None
        self._kept: dict[str, Tensor] = {}

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the nodes; the batch is not used."""
        yield Update("student", partial(self.terms, clock))

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step; its count is 1, because the paper sums over the classes."""
        student = self.nodes
        device = student.features.device
        network, real = self.seen_by(clock, device), self.real.to(device)
        features, adjacency = self.turn(clock)
        total = torch.zeros((), device=device)
        for weight, wanted, given in self.gradients(network, features, adjacency, student.labels, real):
            total = total + weight * gradient_distance(wanted, given)
        return {"gradients": Term(total, 1, unit="sets")}

    def turn(self, clock: Clock) -> tuple[Tensor, Tensor | None]:
        """The student's features and adjacency, of which only what is due at the step takes a gradient."""
        student = self.nodes
        if student.structure is None:
            return student.matched()
        if clock.step % (self.feature_steps + self.structure_steps) < self.feature_steps:
            with frozen(student.structure):
                return student.matched()
        features = student.features.detach()
        return features, normalised(student.structure(features))

    def gradients(
        self, network: NodeNetwork, features: Tensor, adjacency: Tensor | None, labels: Tensor, real: RealNodes
    ) -> Iterator[tuple[float, tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """Of each class its weight, the gradients that the graph gives, and those that the student gives."""
        weights = [p for p in network.parameters() if p.dim() > 1]
        whole = self._logits(network, real)
        own = network(features, adjacency)
        counts = real.counts
        for c, count in enumerate(counts):
            nodes, few = real.of_class(c), (labels == c).nonzero()[:, 0]
            wanted = torch.autograd.grad(_loss(whole[nodes], c), weights, retain_graph=True)
            given = torch.autograd.grad(_loss(own[few], c), weights, create_graph=True)
            yield count / max(counts), wanted, given

    def _logits(self, network: NodeNetwork, real: RealNodes) -> Tensor:
        """Logits of all nodes of the graph; ``sgc`` passes their features on only once."""
        if network.kind == "sgc":
            self.passed = self.passed.to(real.features.device)
            return network.head(self.passed)
        return network(real.features, real.adjacency)

    def seen_by(self, clock: Clock, device: torch.device) -> NodeNetwork:
        """The network of a step."""
        episode, step = divmod(clock.step, self.outer)
        if self.network is None or step == 0:
            sizes = (self.real.features.shape[1], self.real.classes, self.hidden, self.layers)
            self.network = fresh_node_network(self.net, *sizes, key=(clock.seed, episode, "network"), device=device)
            if self._kept and step > 0:
                self.network.load_state_dict(self._kept)
        self._kept = {}
        return self.network

    def after_step(self, clock: Clock) -> None:
        """Let the network learn the student, unless the next step has a fresh one."""
        if self.network is None or (clock.step + 1) % self.outer == 0:
            return
        student = self.nodes
        with torch.no_grad():
            features, adjacency = student.matched()
        train_on_nodes(self.network, features.detach(), adjacency, student.labels, steps=self.inner, lr=self.net_lr)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """A step compares one synthetic graph."""
        return {**super().count(batch), "sets": 1}

    def state_dict(self) -> dict[str, Any]:
        """The network's weights, which have learnt the student of earlier steps."""
        kept = self._kept if self.network is None else self.network.state_dict()
        return {f"network.{k}": v for k, v in kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.network = None
        self._kept = {k.removeprefix("network."): v for k, v in state.items()}


def _loss(logits: Tensor, label: int) -> Tensor:
    return F.cross_entropy(logits, torch.full((len(logits),), label, device=logits.device))
