"""SlimFlow: a small rectified flow that need not start from the teacher's weights, and its single step."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.diffusion.methods.rectified_flow import RectifiedFlow
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.engine.momentum import MovingAverage
from limbeck.errors import UserError
from limbeck.registry import register

Annealing = Literal["exponential", "cosine", "linear"]


def fresh_share(progress: float, until: float, shape: Annealing) -> float:
    """beta, the share of fresh noise in a pair's: from 1 down to 0 (arXiv 2407.12718, section 3.1).

    Args:
        progress: of the reflow, in [0, 1].
        until: where it is over; the exponential has fallen to 1/1000 there, and is 0 from then on.
        shape: of the way down.
    """
    if progress >= until:
        return 0.0
    place = progress / until
    if shape == "exponential":
        return math.exp(-place * math.log(1000))
    return math.cos(math.pi * place / 2) if shape == "cosine" else 1 - place


@register("method")
class SlimFlow(RectifiedFlow):
    """SlimFlow (Zhu et al., arXiv 2407.12718): annealing reflow, then distillation guided by the flow.

    A small student has not the teacher's layers to start from. *Annealing reflow* begins with the first rectified
    flow, which is smooth and soon learnt, and ends with the teacher's pairs: the noise of a pair is ``sqrt(1 - beta^2)
    eps + beta fresh`` with beta from 1 to 0. Then a copy of the student keeps the flow, and the student learns its
    single step from the pairs and, in *flow-guided distillation*, from the flow itself at fresh noise: its own step is
    gone back to a random time, and where the copy goes from there is its target. Of that there is no end, while
    simulated pairs are few.

    What differs: the pairs of the single step are the teacher's, like those of the reflow, and not simulated again by
    the student's flow; the distance is the mean square or the pseudo-Huber one, as LPIPS is for photographs; there are
    no flips.

    Args:
        anneal: share of the reflow in which beta falls to 0; 0 begins with the teacher's pairs.
        annealing: how it falls.
        flow_weight: of the distillation guided by the flow; 0 leaves the pairs alone.
        time_min: the lowest of these times, as a share of the line.
        time_max: the highest.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        anneal: float = 0.75,
        annealing: Literal["exponential", "cosine", "linear"] = "cosine",
        flow_weight: float = 1.0,
        time_min: float = 0.2,
        time_max: float = 0.8,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if not 0 <= anneal <= 1 or not 0 <= time_min <= time_max <= 1:
            raise UserError("slimflow: 0 <= anneal <= 1 and 0 <= time_min <= time_max <= 1 must hold")
        self.anneal = anneal
        self.annealing: Annealing = annealing
        self.flow_weight = flow_weight
        self.time_min = time_min
        self.time_max = time_max

    def setup(self, parts: Parts) -> None:
        """Take the student, and a copy of it to keep the flow while the single step is distilled."""
        super().setup(parts)
        self.slow = MovingAverage(parts.student)
        self.frozen["target"] = self.slow

    def distils(self, progress: float) -> bool:
        """Whether the reflow is over."""
        return progress >= 1 - self.distil

    def before_step(self, clock: Clock) -> Collection[str]:
        """Between reflow and distillation the copy takes the flow."""
        before = (clock.step - 1) / max(clock.total, 1)
        if clock.step > 0 and self.distils(clock.progress) and not self.distils(before):
            assert self.slow is not None
            self.slow.follow(0.0)
        return ()

    def after_step(self, clock: Clock) -> None:
        """The copy stays as it is."""

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The velocity on the lines, and later the single step by pairs and by the flow."""
        found = super().terms(batch, clock)
        if self.distils(clock.progress) and self.flow_weight:
            eps = clock.normal(batch["id"], self.shape, "flow start")
            label = self.draw_label(batch["id"], clock, "flow")
            u = clock.uniform(batch["id"], (1,), "flow time").squeeze(1)
            top = torch.full_like(eps.flatten(1)[:, 0], self.sigma_max)
            made = self.network(self.sigma_max * eps, top, label)
            target = self.flow_target(eps, label, made, self.time_min + u * (self.time_max - self.time_min))
            found["flow"] = Term.of(self.apart(made, target), weight=self.flow_weight)
        return found

    def couple(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor | None, Tensor]:
        """A pair, with as much fresh noise as is due."""
        eps, label, x0 = super().couple(batch, clock)
        reflow = 1 - self.distil
        beta = fresh_share(clock.progress / reflow if reflow else 1.0, self.anneal, self.annealing)
        if self.distils(clock.progress) or beta == 0:
            return eps, label, x0
        fresh = clock.normal(batch["id"], self.shape, "fresh noise").to(eps)
        return math.sqrt(1 - beta**2) * eps + beta * fresh, label, x0

    @torch.no_grad()
    def flow_target(self, eps: Tensor, label: Tensor | None, made: Tensor, u: Tensor) -> Tensor:
        """Where the flow goes, in a single step, from a share [B] of the line to the sample that was made."""
        x, sigma, _ = self.on_pair(made.detach(), eps, u.to(eps))
        return self.lagging(x, sigma, label)
