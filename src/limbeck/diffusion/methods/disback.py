"""DisBack: the student follows a path of teachers back, from one of its own first law to the true one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from limbeck.diffusion.backtracking import Path, due, way_back
from limbeck.diffusion.base import Pairs
from limbeck.diffusion.generators import CRITIC
from limbeck.diffusion.methods.diff_instruct import DiffInstruct
from limbeck.diffusion.networks import inherit
from limbeck.diffusion.paths import Denoise
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class DisBack(DiffInstruct, Pairs):
    """Distribution backtracking (Zhang et al., arXiv 2408.15991, algorithms 1 and 2).

    A teacher knows little of places where it has never seen samples, and these are what an untrained generator gives.
    So a path is recorded first: while the generator stands still, the critic, which starts as the teacher, learns the
    generator's law, and its weights are kept from time to time. Then the generator is trained by Diff-Instruct on the
    path's networks in reverse, each for an equal time, and on the true teacher for the rest. The critic goes on from
    the path's end, with its optimizer, as the networks are swapped.

    The three stages are shares of the steps of one training, so that the cost of recording is part of it; the paper
    counts updates. Its GAN loss is left out. A teacher whose weights the critic cannot take, such as an exact one, is
    learnt by it first, as diffusion models are, from its own samples. Recorded networks are not guided: their
    unconditional estimates have learnt nothing of the generator's law.

    Args:
        learn: share of the steps in which the critic first learns the teacher; 0 for one whose weights it has.
        record: share of the steps in which the path is recorded.
        backtrack: share of the steps in which the student follows it back.
        checkpoints: networks of the path beside the teacher; the last is where the way back begins, so 1 is no path.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        learn: float = 0.0,
        record: float = 0.1,
        backtrack: float = 0.4,
        checkpoints: int = 5,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if min(learn, record, backtrack) < 0 or learn + record + backtrack > 1 or checkpoints < 1:
            raise UserError(
                "disback: learn, record and backtrack must be shares of at most 1, and checkpoints 1 or more"
            )
        self.learn = learn
        self.record = record
        self.backtrack = backtrack
        self.checkpoints = checkpoints
        self.target: Denoise | None = None

    def setup(self, parts: Parts) -> None:
        """As Diff-Instruct, with a path of the critic.

        Raises:
            UserError: the critic neither starts as the teacher nor learns it.
        """
        super().setup(parts)
        critic = self.learners[CRITIC]
        if self.learn == 0 and not (self.from_teacher and inherit(critic, self.teacher.module)):
            raise UserError(
                "disback: the path starts at the teacher, whose weights this critic cannot take: "
                "give it steps to learn the teacher (method.learn: 0.1)"
            )
        self.path = Path(critic)
        self.frozen["path"] = self.path

    # -- the stages ----------------------------------------------------------------------------------------------------

    def stages(self, progress: float) -> tuple[float, float, float]:
        """How much of learning, recording and the way back is over at ``progress``, each in [0, 1]."""
        found, start = [], 0.0
        for length in (self.learn, self.record, self.backtrack):
            over = progress >= start + length
            found.append(1.0 if over else max(0.0, (progress - start) / length))
            start += length
        return found[0], found[1], found[2]

    @property
    def real(self) -> Denoise:
        """The network to head for now: one of the path, or the teacher, guided as the recipe says."""
        return super().real if self.target is None else self.target

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """Diff-Instruct's; of the critic alone until the path is recorded."""
        learnt, recorded, back = self.stages(clock.progress)
        if learnt < 1:
            yield Update(CRITIC, partial(self.learning_terms, batch, clock))
        elif recorded < 1:
            yield self.critic_update(batch, clock, "record")
        else:
            place = way_back(back, len(self.path)) if back < 1 and len(self.path) else 0
            self.target = self.path.at(place - 1) if place > 0 else None
            yield from super().updates(batch, clock)

    def learning_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """Plain denoising of the teacher's samples."""
        samples, label = self.clean(batch, clock, "teacher")
        return {"teacher": Term.of(self.denoising(samples, label, batch, clock, "teacher"))}

    def after_step(self, clock: Clock) -> None:
        """Record what is due."""
        learnt, recorded, _ = self.stages(clock.progress)
        if learnt == 1 and recorded < 1:
            after = self.stages((clock.step + 1) / clock.total)[1]
            while len(self.path) < due(after, self.checkpoints):
                self.path.record()

    def state_dict(self) -> dict[str, Any]:
        """The path."""
        return {"path": self.path.states()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.path.load_states(state["path"])
