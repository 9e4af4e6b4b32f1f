"""Learnable sampler distillation: a few steps of a discrete diffusion model, each with its own coefficient and time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.diffusion.discrete import LEAST, DiscreteSampler, inverse, log_linear, step_law
from limbeck.engine import noise
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class LSD(Method):
    """Learnable sampler distillation for discrete diffusion models (2509.19962): the network stays, the sampler learns.

    The teacher goes down in many steps; its sequences are kept at the times of all of them. The student begins with
    the same noise and makes a few steps, step k with the network's output times a coefficient ``c_k``. ``L = sum_k
    KL(softmax o_teacher(x_k, t_k) || softmax c_k o(x'_k, t_k))`` compares the outputs on the teacher's sequence and on
    the student's own at the same time; draws are not differentiated, so each term moves its own step. With ``times``
    (LSD+) the increments ``softmax(a)`` of the time grid learn too, through the time that the network is asked at.

    What differs: ``objective: moves`` is an alternative of this library in closed form. From the student's own
    sequence the teacher goes over the student's step in many, and the likelihood of where it arrives under the
    student's law of that step is raised: the divergence of the two steps, but for a constant. The paper's objective
    compares outputs on two sequences that have drifted apart, which with exact scores rewards blurred ones: its
    coefficients then fall well below 1.

    Args:
        objective: ``score``, the paper's, or ``moves``.
        times: let the time increments learn as well (LSD+), by the scores; ``moves`` compares steps of a given length.
        teacher_steps: of the teacher, by the exact law of one token.
        trajectories: of the teacher that are made once, for ``score``.
        candidates: starts of which the nearest counts (the relaxed objective), for ``score``; 1 is the teacher's own.
        radius: tokens of a start that are drawn anew in all candidates but the first.
    """

    needs = {"teacher": {"concrete_score"}}
    data_free = True
    same_view = False
    controls = {
        "plain": {
            "train": {"steps": 1, "optimizer": {"lr": 0.0}},
            "method": {"name": "lsd", "objective": "moves", "teacher_steps": 8},
        }
    }

    def __init__(
        self,
        *,
        objective: Literal["score", "moves"] = "score",
        times: bool = False,
        teacher_steps: int = 256,
        trajectories: int = 256,
        candidates: int = 2,
        radius: int = 1,
    ) -> None:
        if min(teacher_steps, trajectories, candidates) < 1 or radius < 0:
            raise UserError("lsd: teacher_steps, trajectories and candidates must be 1 or more, radius 0 or more")
        if objective == "moves" and times:
            raise UserError("lsd: times are learnt by objective: score")
        self.objective = objective
        self.times = times
        self.teacher_steps = teacher_steps
        self.trajectories = trajectories
        self.candidates = candidates
        self.radius = radius

    def setup(self, parts: Parts) -> None:
        """Take the sampler.

        Raises:
            UserError: the student is no sampler of sequences, or not of the teacher's.
        """
        super().setup(parts)
        student, teacher = parts.student, self.teacher.module
        if not isinstance(student, DiscreteSampler):
            raise UserError("lsd trains a sampler: student: {name: discrete_sampler, net: {...}}")
        if student.shape != tuple(teacher.shape):  # type: ignore[arg-type]
            raise UserError("lsd: the student's network makes other sequences than the teacher")
        own = student.net.state_dict()
        if own.keys() == teacher.state_dict().keys():
            student.net.load_state_dict(teacher.state_dict())
        self.sampler = student
        student.increments.requires_grad_(self.times)
        self._kept: Tensor | None = None

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update, of the sampler."""
        yield Update("student", partial(self.terms, batch, clock))

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The one term of the objective."""
        if self.objective == "moves":
            return {"moves": Term.of(self.moves(batch["id"], clock))}
        return {"score": Term.of(self.scores(batch["id"], clock))}

    # -- the paper's ---------------------------------------------------------------------------------------------------

    def scores(self, ids: Tensor, clock: Clock) -> Tensor:
        """Divergence [B] of the student's outputs from the teacher's, summed over its steps; of the best candidate."""
        which = (clock.uniform(ids, (1,), "trajectory").squeeze(1) * self.trajectories).long()
        kept = self.kept(clock, ids.device)[which]
        found = []
        for number in range(self.candidates):
            x = kept[:, 0]
            if number > 0:
                x = self.near(x, ids, clock, f"candidate {number}")
            found.append(self.compare(x, kept, ids, clock, f"draw {number}"))
        return torch.stack(found).min(dim=0).values

    def compare(self, x: Tensor, kept: Tensor, ids: Tensor, clock: Clock, name: str) -> Tensor:
        """The divergence [B] along the student's path from ``x``, beside the teacher's ``kept`` [B, steps + 1, L]."""
        sampler, times = self.sampler, self.sampler.times()
        grid = self.grid(ids.device)
        loss = x.new_zeros(len(x), dtype=times.dtype)
        for k in range(sampler.nfe):
            nearest = int((grid - times[k].detach()).abs().argmin())
            beside = kept[:, nearest]
            with torch.no_grad():
                target = self.output(self.teacher.module(beside, times[k].detach())).log_softmax(-1)
            score = sampler.net(x, times[k])
            own = (sampler.coefficients[k].clamp_min(1e-3) * self.output(score)).log_softmax(-1)
            loss = loss + (target.exp() * (target - own)).sum(-1).mean(-1)
            with torch.no_grad():
                law = sampler.law(sampler.scale(score, x, k), x, k, times)
                x = inverse(law, clock.uniform(ids, sampler.shape, f"{name} step {k}"))
        return loss

    def output(self, score: Tensor) -> Tensor:
        """What the coefficients multiply, of a logarithm of the score."""
        return score if self.sampler.scaled == "log_score" else score.exp()

    def near(self, x: Tensor, ids: Tensor, clock: Clock, name: str) -> Tensor:
        """Starts in whose sequences up to ``radius`` tokens are drawn anew."""
        places = clock.uniform(ids, self.sampler.shape, f"{name} places").argsort(dim=1) < self.radius
        return torch.where(places, self.sampler.first(clock.uniform(ids, self.sampler.shape, name)), x)

    @torch.no_grad()
    def kept(self, clock: Clock, device: torch.device) -> Tensor:
        """The teacher's sequences at all its times, int64 [trajectories, teacher_steps + 1, L]; made once."""
        if self._kept is None:
            ids = torch.arange(self.trajectories, device=device)
            draw = partial(noise.uniform, ids, self.sampler.shape)
            x = self.sampler.first(draw((clock.seed, "trajectory start")))
            grid, seen = self.grid(device), [x]
            for k in range(self.teacher_steps):
                x = self.taught(x, grid[k], grid[k + 1], draw((clock.seed, f"trajectory step {k}")))
                seen.append(x)
            self._kept = torch.stack(seen, dim=1)
        return self._kept

    def grid(self, device: torch.device) -> Tensor:
        """The teacher's corruption times, falling to 0."""
        places = torch.linspace(1, 0, self.teacher_steps + 1, device=device)
        return log_linear(places, self.sampler.net.total)  # type: ignore[arg-type]

    def taught(self, x: Tensor, now: Tensor, then: Tensor, u: Tensor) -> Tensor:
        """One step of the teacher."""
        module: nn.Module = self.teacher.module
        with self.teacher.context():
            return inverse(step_law(module(x, now), x, now, then, module.rates, "tweedie"), u)  # type: ignore[arg-type]

    # -- in closed form ------------------------------------------------------------------------------------------------

    def moves(self, ids: Tensor, clock: Clock) -> Tensor:
        """Negative log likelihood [B], a token, of the teacher's moves over the student's steps."""
        sampler, times = self.sampler, self.sampler.times().detach()
        x = sampler.first(clock.uniform(ids, sampler.shape, "start"))
        fine = max(self.teacher_steps // sampler.nfe, 1)
        loss = torch.zeros(len(ids), device=ids.device)
        for k in range(sampler.nfe):
            with torch.no_grad():
                score, arrived = sampler.net(x, times[k]), x
                between = torch.linspace(1, 0, fine + 1, device=ids.device) * (times[k] - times[k + 1]) + times[k + 1]
                for j in range(fine):
                    u = clock.uniform(ids, sampler.shape, f"move {k} {j}")
                    arrived = self.taught(arrived, between[j], between[j + 1], u)
            law = sampler.law(sampler.scale(score, x, k), x, k, times)
            likelihood = law.gather(2, arrived[..., None]).squeeze(2)
            loss = loss - likelihood.clamp_min(LEAST).log().mean(-1)
            with torch.no_grad():
                x = inverse(law, clock.uniform(ids, sampler.shape, f"step {k}"))
        return loss
