"""TwinFlow: a flow map that also learns, at negative times, the flow to its own samples, and so corrects itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.diffusion.flows import RF, FlowMethod, flow_step, mean_velocity, need_jumps
from limbeck.diffusion.losses import squared_error
from limbeck.diffusion.paths import like
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.registry import register


class Ways(NamedTuple):
    """Times [B] of the start and the end, and whether a sample is of the twin's."""

    t: Tensor
    s: Tensor
    twin: Tensor


@register("method")
class TwinFlow(FlowMethod):
    """Self-adversarial flows (Cheng et al., arXiv 2512.05150).

    A quarter of the samples goes all the way, a quarter a twentieth of it, a quarter any way down. For these the mean
    velocity is held to a finite difference of the identity of mean flows, with an end that a slow copy finds in jumps.
    The last quarter are the network's own one-step samples, whose velocity it learns at negative times. The difference
    of the velocities at the two times is then the direction from the samples' law to the teacher's, and moves the
    one-step answer (rectification): distribution matching, by one network instead of three.

    The student takes two levels of both signs: ``net: {name: twin_denoiser, net: {jumps: true}}``, ``rule: map``.
    ``points: teacher`` takes the velocities from the teacher, as in the paper those of the ``data``.

    What differs: sorts of samples are drawn by chance; times are uniform; rectification is of fresh noise for every
    sample of the batch; bounds are in deviations of the data; and guidance is the teacher's, not the network's own.

    Args:
        rectification: weight of the rectification.
        momentum: of the slow copy that finds ends; 0 takes the network itself, without gradient.
        shift: width of the finite difference.
        jumps: of the slow copy to the end.
        bound: largest entry of a residual, in standard deviations of the data.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    data_optional = True
    fixed = ("momentum",)
    controls = {"regression": {"method": {"name": "dmd", "distribution_weight": 0.0, "critic_updates": 0}}}

    def __init__(
        self,
        *,
        rectification: float = 0.5,
        momentum: float = 0.99,
        shift: float = 0.01,
        jumps: int = 2,
        bound: float = 1.0,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if rectification < 0 or not 0 < shift < 1 or jumps < 1 or bound <= 0:
            raise UserError(
                "twinflow: rectification must not be negative, shift between 0 and 1, jumps 1 or more, bound above 0"
            )
        self.rectification = rectification
        self.momentum = momentum
        self.shift = shift
        self.jumps = jumps
        self.bound = bound

    def setup(self, parts: Parts) -> None:
        """The student's network must take two levels, and negative ones.

        Raises:
            UserError: it does not.
        """
        super().setup(parts)
        need_jumps(parts)
        net: Any = parts.student.net
        if not getattr(net, "twins", False):
            raise UserError("twinflow: levels have a sign: student: {net: {name: twin_denoiser, net: {jumps: true}}}")
        self.sigma_data = float(getattr(net, "sigma_data", 0.5))
        self.top = self.sigma_max / (1 + self.sigma_max)

    def terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The error of the mean velocities, the twin's among them, and the rectification."""
        x0, label = self.clean(batch, clock, "data")
        eps = clock.normal(batch["id"], self.shape, "start").to(x0)
        first = eps.new_full((len(eps),), self.top)
        z = like(first, eps) * eps
        answer = self.average(z, first, torch.zeros_like(first), label)
        samples = flow_step(z, answer, first, torch.zeros_like(first))
        terms = {"flow": Term.of(self.any_way(x0, samples.detach(), label, batch, clock))}
        if self.rectification > 0:
            residual = self.between_twins(samples.detach(), label, batch, clock)
            moved = self.pulled(answer, residual)
            terms["rectification"] = Term.of(moved, weight=self.rectification)
        return terms

    # -- velocities ----------------------------------------------------------------------------------------------------

    def signed(
        self, z: Tensor, t: Tensor, s: Tensor, label: Tensor | None, twin: Tensor, *, lagging: bool = False
    ) -> Tensor:
        """The mean velocity from ``t`` to ``s``, of the twin where ``twin`` is 1."""
        call: Any = self.lagging if lagging else self.network
        sign = 1 - 2 * twin
        return mean_velocity(lambda x, sigma, to: call(x, sign * sigma, label, to=to), z, t, s)

    def ways(self, uniform: Tensor) -> Ways:
        """Times and sorts from uniform numbers [B, 3]."""
        sort, place, length = uniform.unbind(dim=1)
        t = self.within_range(place * self.top)
        whole, short, twin = sort < 0.25, (sort >= 0.25) & (sort < 0.5), sort >= 0.75
        t = torch.where(whole, torch.full_like(t, self.top), t)
        s = torch.where(short, t * (1 - 0.05 * length), t * length)
        s = torch.where(whole, torch.zeros_like(s), torch.where(twin, t, s))
        return Ways(t, s, twin.to(t))

    def any_way(self, x0: Tensor, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        """The weighted error [B] of mean velocities."""
        ids = batch["id"]
        way = self.ways(clock.uniform(ids, (3,), "ways").to(x0))
        own = like(way.twin, x0)
        clean = torch.where(own > 0, samples, x0)
        eps = clock.normal(ids, self.shape, "noise").to(x0)
        z = RF.noisy(clean, eps, way.t)
        velocity = eps - clean
        if self.points == "teacher":
            velocity = torch.where(own > 0, velocity, self.velocity(z, way.t, label))
        answer = self.signed(z, way.t, way.s, label, way.twin)
        weight = torch.tan((1 - (way.t - way.s)) * torch.pi / 2.5) + 1
        weight = torch.where(way.twin > 0, torch.ones_like(weight), weight)
        return weight * self.pulled(answer, self.residual(answer.detach(), z, velocity, way, label))

    @torch.no_grad()
    def residual(self, answer: Tensor, z: Tensor, velocity: Tensor, way: Ways, label: Tensor | None) -> Tensor:
        """What a mean velocity is off by.

        ``((t - s) F - (z - z_s)) / shift``, where ``z_s`` is the end of a step of ``shift`` at the velocity and then of
        the slow copy's jumps, is ``F + (t - s) dF/dt - v`` in the limit of no shift; over less than that, ``F - v``.
        """
        length = way.t - way.s
        long = length >= self.shift
        now = torch.where(long, way.t - self.shift, way.t)
        x = flow_step(z, velocity, way.t, now)
        # Times stay above zero, where a velocity is not defined; the last jump may end there.
        for k in range(self.jumps):
            then = torch.where(long, now - (now - way.s) / (self.jumps - k), now)
            at = now.clamp_min(1e-4)
            x = flow_step(x, self.signed(x, at, torch.minimum(then, at), label, way.twin, lagging=True), now, then)
            now = then
        difference = (like(length, z) * answer - (z - x)) / self.shift
        return torch.where(like(long.to(z), z) > 0, difference, answer - velocity)

    @torch.no_grad()
    def between_twins(self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock) -> Tensor:
        """The twin's velocity less the network's own, at samples that are noised."""
        u = clock.uniform(batch["id"], (1,), "twin time").squeeze(1).to(samples)
        t = self.within_range(u * self.top)
        z = RF.noisy(samples, clock.normal(batch["id"], self.shape, "twin noise").to(samples), t)
        none = torch.zeros_like(t)
        return self.signed(z, t, t, label, none + 1) - self.signed(z, t, t, label, none)

    def pulled(self, answer: Tensor, residual: Tensor) -> Tensor:
        """The distance [B] of an answer to itself less the bounded residual, weighed to have a slope of one."""
        bounded = residual.clamp(-self.bound * self.sigma_data, self.bound * self.sigma_data)
        errors = squared_error(answer, (answer - bounded).detach())
        return errors / torch.sqrt(errors.detach() + 1e-6)
