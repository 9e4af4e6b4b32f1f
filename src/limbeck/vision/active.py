"""Learning actively: a student knows of few samples at first, and asks about more before every round."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.engine.devices import to_device
from limbeck.engine.features import Taps
from limbeck.engine.method import Batch, Clock, Parts
from limbeck.errors import UserError
from limbeck.losses import IGNORE, log_softmax
from limbeck.models import places
from limbeck.models.forward import forward
from limbeck.vision.base import example
from limbeck.vision.rounds import Rounds, Shelf, farthest
from limbeck.vision.selection import closeness, entropy


class Active(Rounds):
    """A student that begins with ``start`` labelled samples of a pool and asks about ``budget`` more in each round.

    The training data is the pool. Its labels lie in a table, and only those of ``labelled`` rows may be read: whatever
    the data say of the others changes nothing. A subclass says in :meth:`pick` what is asked.

    Args:
        start: labelled samples that are drawn at random before the first round; None is one for each class.
        budget: samples that are asked about before every further round; None is one for each class.
        rounds: how many, the first one included; they share the steps of the run evenly.
        restart: start every round from the student's first weights.
    """

    answered_by_teacher: ClassVar[bool] = False
    """Whether the teacher is asked, not the data: then every sample can be asked about."""

    def __init__(self, *, start: int | None, budget: int | None, rounds: int, restart: bool) -> None:
        super().__init__(rounds=rounds, restart=restart)
        if rounds < 1 or min(n for n in (start, budget, 1) if n is not None) < 1:
            raise UserError("active learning needs at least 1 round, 1 labelled sample to start with, a budget of 1")
        self.start = start
        self.budget = budget

    def setup(self, parts: Parts) -> None:
        """Draw the labelled samples of the start.

        Raises:
            UserError: the data has fewer labels than the start needs.
        """
        super().setup(parts)
        self._example = example(parts)
        self._classes = parts.data.classes if parts.data and parts.data.classes else 1
        self._answers = self.pool.labels
        has = (self._answers != IGNORE).nonzero().squeeze(1)
        wanted = self.start or self._classes
        if len(has) < 1:
            raise UserError(f"active learning starts with {wanted} labelled samples, and the data has no label")
        self.labelled = torch.zeros(len(self.pool), dtype=torch.bool)
        self.labelled[has[torch.randperm(len(has))[:wanted]]] = True
        self.asked = self.labelled.clone()
        self.shelf = Shelf(self.pool)

    @property
    def labels(self) -> Tensor:
        """What is known: int64 [N] on the CPU; -100 where it was not asked."""
        return torch.where(self.labelled, self._answers, IGNORE)

    def choose(self, number: int, clock: Clock) -> None:
        """Ask about ``budget`` samples more; the first round has the start alone."""
        rows = self.open()
        count = min(self.budget or self._classes, len(rows))
        if not number or not count:
            return
        picked = rows[self.pick(rows, count, clock)]
        self.asked[picked] = True
        if not self.answered_by_teacher:
            self.labelled[picked] = True

    def open(self) -> Tensor:
        """Rows that can still be asked about, int64 [n]."""
        free = ~self.asked
        if not self.answered_by_teacher:
            free &= self._answers != IGNORE
        return free.nonzero().squeeze(1)

    def pick(self, rows: Tensor, count: int, clock: Clock) -> Tensor:
        """Places among ``rows`` of those to ask about, int64 [count]."""
        raise NotImplementedError

    # -- what a choice is made of --------------------------------------------------------------------------------------

    def probabilities(self) -> Tensor:
        """The student's, of the whole pool, [N, K]."""
        return self.pool.ask(self.student, lambda batch: log_softmax(forward(self.student, batch).logits).exp())

    def embeddings(self) -> Tensor:
        """What the student's last layer reads, of the whole pool, [N, D]."""
        looked = to_device(self._example, self.device())
        with places.looking(self.student):
            gives = "embedding" in forward(self.student, looked)
        if gives:
            return self.pool.ask(self.student, lambda batch: forward(self.student, batch)["embedding"].float())
        path = places.head(self.student, looked)[0]
        with Taps(self.student, [path], of="input") as taps:

            def give(batch: Batch) -> Tensor:
                forward(self.student, batch)
                found: Tensor = taps.pop()[path]
                return found.float().flatten(1)

            return self.pool.ask(self.student, give)

    def at_random(self, rows: Tensor, count: int, clock: Clock) -> Tensor:
        """Evenly drawn."""
        return clock.uniform(self.pool.ids[rows], (), "ask").topk(count).indices

    def by_margin(self, rows: Tensor, count: int, clock: Clock) -> Tensor:
        """Those between whose two likeliest classes the student hesitates most."""
        return closeness(self.probabilities()[rows]).topk(count).indices

    def by_entropy(self, rows: Tensor, count: int, clock: Clock) -> Tensor:
        """Those of which the student is least sure."""
        return entropy(self.probabilities()[rows]).topk(count).indices

    def by_cover(self, points: Tensor, rows: Tensor, count: int) -> Tensor:
        """Greedy k-centre: those far from all that was asked, by points of the whole pool, [N, D]."""
        known = self.asked.nonzero().squeeze(1)
        chosen = torch.arange(len(known) + len(rows)) < len(known)
        return farthest(points[torch.cat([known, rows])], chosen, count) - len(known)

    # -- learning ------------------------------------------------------------------------------------------------------

    def known(self, batch: Batch, clock: Clock) -> Batch:
        """As many samples as the batch has, drawn from what was asked, as they look in its view.

        ``label`` is -100 where the teacher was asked.
        """
        view, version = int(batch["view"]), self.begun
        if not self.shelf.holds(view=view, version=version):
            rows = self.asked.nonzero().squeeze(1)
            self.shelf.hold(rows, batch["id"].device, view=view, version=version, labels=self.labels[rows])
        return self.shelf.draw(batch["id"], clock)

    def state_dict(self) -> dict[str, Any]:
        """What was asked and what has a label."""
        return {**super().state_dict(), "asked": self.asked, "labelled": self.labelled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        self.asked, self.labelled = state["asked"].cpu(), state["labelled"].cpu()
