"""Distilled decoding 2: all tokens of an autoregressive model in one call, by conditional score distillation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from limbeck.diffusion.codebook import CodebookChain, PrefixDenoiser, TokenGenerator
from limbeck.diffusion.levels import within
from limbeck.diffusion.losses import denoising_weight, matching_direction, squared_error, surrogate
from limbeck.engine import noise
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.registry import register

CRITIC = "fake_score"


@register("method")
class DD2(Method):
    """Distilled decoding 2 (arXiv 2510.21003): one call gives all tokens of an autoregressive teacher.

    The teacher's law of a token given those before it is a mixture of codes, so its score in the space of codes is
    exact at every noise level. A critic learns that of the generator's own tokens given its own tokens before them, and
    the generator goes down the difference at all places at once: conditional score distillation, which by the chain
    rule is at rest where the joint law is the teacher's. What comes before a place is a condition and takes no
    gradient. Before it, for ``warmup`` of the training, the generator learns by regression where the exact flow takes
    its noise token after token (distilled decoding, arXiv 2412.17153); the critic learns all along.

    What differs: ``regression_weight`` may keep the regression beside the distillation, the teacher is given in closed
    form, both networks are MLPs that start anew (the paper's start as the teacher), generated tokens enter conditions
    as their nearest codes, and the ratio of updates, the weights and the range of times are this library's.

    Args:
        warmup: share of the training that is regression; 1 is the first distilled decoding, 0 leaves it out.
        regression_weight: of the regression after the warm-up; 0 is the paper's.
        critic_updates: critic steps per step of the generator.
        critic_width: of the critic's hidden layers.
        critic_depth: its residual layers.
        t_min: lowest time of rectified flow at which scores are compared, in (0, 1); near 0 a posterior is one code.
        t_max: highest time.
        normalise: divide the direction by the distance to the teacher's estimate, as DMD does (arXiv 2311.18828).
        pairs: of noise and codes that are made once, for the regression.
        flow_steps: steps of the flow for each token.
    """

    needs = {"teacher": {"codes"}}
    data_free = True
    same_view = False
    fixed = ("critic_width", "critic_depth")
    controls = {"regression": {"method": {"name": "dd2", "warmup": 1.0}}}

    def __init__(
        self,
        *,
        warmup: float = 0.4,
        regression_weight: float = 0.0,
        critic_updates: int = 2,
        critic_width: int = 96,
        critic_depth: int = 3,
        t_min: float = 0.1,
        t_max: float = 0.95,
        normalise: bool = True,
        pairs: int = 8192,
        flow_steps: int = 16,
    ) -> None:
        if not 0 <= warmup <= 1 or min(critic_updates, pairs, flow_steps, critic_width, critic_depth) < 1:
            raise UserError("dd2: warmup must be in [0, 1], and updates, sizes, pairs and flow_steps 1 or more")
        if not 0 < t_min < t_max < 1:
            raise UserError(f"dd2: 0 < t_min < t_max < 1 must hold, not {t_min} and {t_max}")
        self.warmup = warmup
        self.regression_weight = regression_weight
        self.critic_updates = critic_updates
        self.critic_width = critic_width
        self.critic_depth = critic_depth
        self.t_min = t_min
        self.t_max = t_max
        self.normalise = normalise
        self.pairs = pairs
        self.flow_steps = flow_steps

    def setup(self, parts: Parts) -> None:
        """Take the generator, and build its critic.

        Raises:
            UserError: student and teacher are not made for the same codes.
        """
        super().setup(parts)
        student, law = parts.student, self.teacher.module
        if not isinstance(law, CodebookChain) or not isinstance(student, TokenGenerator):
            raise UserError("dd2 distils a codebook_chain into a token_generator")
        if student.shape != law.shape or student.codes.shape != law.codes.shape:
            raise UserError("dd2: the student's tokens and length must be the teacher's")
        self.law = law
        self.learners[CRITIC] = PrefixDenoiser(law.shape, self.critic_width, self.critic_depth, law.sigma_data)
        self._made: Tensor | None = None

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """The generator, then its critic."""
        yield Update("student", partial(self.generator_terms, batch["id"], clock))
        for k in range(self.critic_updates):
            yield Update(CRITIC, partial(self.critic_terms, batch["id"], clock, f"critic {k}"))

    def generator_terms(self, ids: Tensor, clock: Clock) -> dict[str, Term]:
        """Regression while it warms up, then conditional score distillation."""
        if clock.progress < self.warmup:
            return {"regression": Term.of(self.regression(ids, clock))}
        points = self.student(clock.normal(ids, self.law.shape, "start"))
        direction = self.direction(points.detach(), *self.noised(points, ids, clock, "generator"))
        terms = {"matching": Term.of(surrogate(points, direction))}
        if self.regression_weight:
            terms["regression"] = Term.of(self.regression(ids, clock), weight=self.regression_weight)
        return terms

    def critic_terms(self, ids: Tensor, clock: Clock, name: str) -> dict[str, Term]:
        """Denoising of the generator's own points, given its own tokens before them."""
        with torch.no_grad():
            points = self.student(clock.normal(ids, self.law.shape, f"{name} start"))
        x, sigma = self.noised(points, ids, clock, name)
        weight = denoising_weight(sigma.flatten(), "edm", self.law.sigma_data).reshape(sigma.shape)
        estimate = self.learners[CRITIC](x, sigma, self.snapped(points))
        return {"denoising": Term.of((weight[..., None] * (estimate - points).square()).flatten(1).mean(1))}

    # -- the pieces ----------------------------------------------------------------------------------------------------

    def noised(self, points: Tensor, ids: Tensor, clock: Clock, name: str) -> tuple[Tensor, Tensor]:
        """Points on the path of rectified flow at a time of their own each, in EDM space, and their levels [B, L]."""
        t = within(clock.uniform(ids, points.shape[1:2], f"{name} time"), self.t_min, self.t_max)
        sigma = t / (1 - t)
        eps = clock.normal(ids, self.law.shape, f"{name} noise")
        return points.detach() + sigma[..., None] * eps, sigma

    @torch.no_grad()
    def direction(self, points: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Where the divergence of every conditional grows, [B, L, d]."""
        with self.teacher.context():
            real = self.law(x, sigma, self.law.nearest(points))
        fake = self.learners[CRITIC](x, sigma, self.snapped(points))
        rows = (t.flatten(0, 1) for t in (points, real, fake))
        return matching_direction(*rows, normalise=self.normalise).reshape(points.shape)

    def snapped(self, points: Tensor) -> Tensor:
        """The nearest codes."""
        return self.law.codes[self.law.nearest(points)]

    def regression(self, ids: Tensor, clock: Clock) -> Tensor:
        """Squared error [B] to the codes that the flow takes the same noise to."""
        which = (clock.uniform(ids, (1,), "pair").squeeze(1) * self.pairs).long()
        codes = self.made(clock, ids.device)[which]
        return squared_error(self.student(self.pair_noise(which, clock)), codes)

    def pair_noise(self, which: Tensor, clock: Clock) -> Tensor:
        """The noise of the pairs with these numbers."""
        return noise.normal(which, self.law.shape, (clock.seed, "pair"))

    @torch.no_grad()
    def made(self, clock: Clock, device: torch.device) -> Tensor:
        """The codes of all pairs, made once."""
        if self._made is None:
            everything = torch.arange(self.pairs, device=device)
            self._made = self.law.flow(self.pair_noise(everything, clock), self.flow_steps)
        return self._made
