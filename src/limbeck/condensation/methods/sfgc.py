"""SFGC: nodes without edges on which a network goes the way that experts went on the whole graph."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.condensation.experts import require_budget
from limbeck.condensation.graphs.experts import NodeCourse, NodeExperts
from limbeck.condensation.graphs.kernels import KernelScore
from limbeck.condensation.graphs.nodes import RealNodes, node_set
from limbeck.condensation.rates import Rate
from limbeck.condensation.trajectory import distance
from limbeck.condensation.unroll import unroll
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.engine.noise import uniform
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class SFGC(Method):
    """Structure-free graph condensation (Zheng et al., NeurIPS 2023, arXiv 2306.02664).

    ``experts`` networks are trained on the whole graph. A step takes one of them after t epochs and lets it go on for
    ``steps`` steps on the student's nodes, without edges, at a rate that learns; features and rate move so that it ends
    where the expert was ``ahead`` epochs later: ``|w_N - w*_{t+M}|^2 / |w*_t - w*_{t+M}|^2``. Every ``score_every``
    steps the nodes are scored by ridge regression with the tangent kernel of a wide graph network, from them to the
    validation nodes; the run delivers the nodes of the best score. For Cora the paper's code trains 200 experts of
    width 256 and takes ``ahead`` 150 to 200, ``starts`` 3 to 5, 400 to 500 ``steps`` and Adam with 1e-4 over 2,000
    steps.

    Args:
        hidden: width of the experts (``gcn``).
        layers: their passings of messages.
        experts: trainings on the graph; what they depend on is what they are found by on disk.
        expert_states: states of each that are kept after its first weights.
        expert_optimizer: plain descent or Adam.
        expert_lr: of that.
        expert_decay: its weight decay.
        every: epochs from one state to the next.
        keep: how much of the disk they may take; ``null`` holds them in memory.
        steps: on the student's nodes (N).
        ahead: states that the expert is ahead in the end (M, over ``every``).
        starts: the latest state that is started from; by default the last that ``ahead`` more follow.
        inner_lr: first value of the rate on the student's nodes, a learner of its own (``train.learners.rate``).
        score_every: steps between two scores; 0 delivers the last nodes.
        score_strength: of the ridge, beside the mean of the kernel's diagonal.
        checkpoint: hold the graph of one step at a time: less memory, half as much time again, the same gradient.
    """

    couples_samples = True
    data_free = True
    fixed: ClassVar[tuple[str, ...]] = ("expert_lr", "expert_decay", "inner_lr", "score_strength")
    controls = {"random": {"method": {"name": "real_nodes", "selection": "random"}, "train": {"learners": None}}}

    def __init__(
        self,
        *,
        hidden: int = 256,
        layers: int = 2,
        experts: int = 200,
        expert_states: int = 250,
        expert_optimizer: Literal["sgd", "adam"] = "sgd",
        expert_lr: float = 0.4,
        expert_decay: float = 0.0,
        every: int = 10,
        keep: str | None = "10GB",
        steps: int = 400,
        ahead: int = 150,
        starts: int | None = None,
        inner_lr: float = 0.5,
        score_every: int = 1,
        score_strength: float = 1.0,
        checkpoint: bool = False,
    ) -> None:
        if min(hidden, layers, experts, every, steps, ahead) < 1 or score_every < 0 or inner_lr <= 0:
            raise UserError("sfgc: numbers of layers, experts, epochs and steps must be at least 1, inner_lr above 0")
        self.latest = expert_states - ahead if starts is None else starts
        if not 0 <= self.latest <= expert_states - ahead:
            raise UserError(f"sfgc: of {expert_states} states none is {ahead} after the one with number {starts or 0}")
        require_budget(keep)
        self.hidden = hidden
        self.layers = layers
        self.experts = experts
        self.expert_states = expert_states
        self.expert_optimizer = expert_optimizer
        self.expert_lr = expert_lr
        self.expert_decay = expert_decay
        self.every = every
        self.keep = keep
        self.steps = steps
        self.ahead = ahead
        self.starts = starts
        self.inner_lr = inner_lr
        self.score_every = score_every
        self.score_strength = score_strength
        self.checkpoint = checkpoint

    def setup(self, parts: Parts) -> None:
        """Take the graph into memory.

        Raises:
            UserError: the student is no set of nodes or has edges, the data has no graph with labelled nodes of all
                classes, or there is no validation split to choose by.
        """
        super().setup(parts)
        self.nodes = node_set(parts.student)
        if self.nodes.structure is not None:
            raise UserError("sfgc learns nodes without edges: say student.structure: none")
        self.real = RealNodes.of_streams(parts.streams)
        self.quiet = parts.quiet
        self.learners["rate"] = Rate(self.inner_lr)
        self.score = self._scorer(parts)
        self._experts: NodeExperts | None = None
        self._best: dict[str, Tensor] = {}

    def _scorer(self, parts: Parts) -> KernelScore | None:
        held_out = next(iter(parts.held_out.values()), None)
        if self.score_every and held_out is None:
            raise UserError("sfgc chooses nodes by validation ones: give data.val_size, or say method.score_every: 0")
        if not self.score_every or held_out is None:
            return None
        return KernelScore(self.real, held_out, strength=self.score_strength, rounds=self.layers)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of the nodes and the rate together; the batch is not used."""
        yield Update(("student", "rate"), partial(self.terms, clock))

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The one term of a step: the share of the expert's way that is left."""
        features, labels = self.nodes.features, self.nodes.labels
        expert, state = self.segment(clock)
        begin, target = self.expert_weights(clock, expert, [state, state + self.ahead], features.device)

        def loss(weights: Tensor, k: int, given: Tensor) -> Tensor:
            return F.cross_entropy(self.flat(weights, given), labels)

        rate = cast("Tensor", self.learners["rate"]())
        path = unroll(loss, begin, rate, self.steps, (features,), checkpoint=self.checkpoint)
        return {"trajectory": Term(distance(path[-1], target, begin), 1, unit="sets")}

    def segment(self, clock: Clock) -> tuple[int, int]:
        """The expert of a step, and the number of the state that it starts from."""
        drawn = uniform(torch.zeros(1, dtype=torch.int64), (2,), (clock.seed, clock.step, "segment"))[0].tolist()
        return int(drawn[0] * self.experts), int(drawn[1] * (self.latest + 1))

    def expert_weights(self, clock: Clock, expert: int, states: list[int], device: torch.device) -> list[Tensor]:
        """Weights [P] of an expert in its states with these numbers."""
        if self._experts is None:
            course = NodeCourse(
                self.expert_states, self.every, self.expert_optimizer, self.expert_lr, self.expert_decay
            )
            sizes = (self.hidden, self.layers, course, self.experts, clock.seed)
            self._experts = NodeExperts(self.real, *sizes, keep=self.keep, quiet=self.quiet)
            self.flat = self._experts.net
        return self._experts.at(expert, states, device)

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Score the nodes now and then and remember the best; in the end they are the student."""
        cast("Rate", self.learners["rate"]).keep_positive_()
        if self.score is None:
            return
        if (clock.step + 1) % self.score_every == 0 or clock.step + 1 == clock.total:
            score = self.score(self.nodes.features, self.nodes.labels)
            if not self._best or score < float(self._best["score"]):
                self._best = {"score": torch.tensor(score), "features": self.nodes.features.detach().clone()}
        if clock.step + 1 == clock.total:
            self.nodes.features.copy_(self._best["features"])

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """A step compares one synthetic graph."""
        return {**super().count(batch), "sets": 1}

    def state_dict(self) -> dict[str, Any]:
        """The best nodes so far and their score."""
        return dict(self._best)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._best = dict(state)
