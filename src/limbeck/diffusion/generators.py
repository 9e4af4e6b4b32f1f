"""What methods share that train a generator against a teacher's denoiser and a learned *fake score*.

The fake score, or critic, is a denoiser of the generator's own law, trained beside it; the difference of the two
denoisers tells the generator where to go. A method of this kind names its hyper-parameters and yields its updates out
of the pieces here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck import registry
from limbeck.diffusion.base import DiffusionMethod, conditioned
from limbeck.diffusion.health import diversity, diversity_alarms, matching_alarms, matching_health, variance_of
from limbeck.diffusion.levels import within
from limbeck.diffusion.losses import denoising_weight, matching_direction, squared_error, surrogate
from limbeck.diffusion.mixture import GaussianMixture
from limbeck.diffusion.networks import inherit
from limbeck.diffusion.paths import like
from limbeck.engine.health import Alarm
from limbeck.engine.method import Batch, Clock, Parts, Term, Update, frozen
from limbeck.errors import UserError
from limbeck.registry import ModelBlock

CRITIC = "fake_score"
"""The role of the critic."""


class Noised(NamedTuple):
    """Noised samples ``x`` [B, *shape], their level ``sigma`` [B], and the class, int64 [B] or None."""

    x: Tensor
    sigma: Tensor
    label: Tensor | None


class GeneratorMethod(DiffusionMethod):
    """Base of the data-free methods with a generator, a teacher's denoiser and a fake score.

    Args:
        critic: network of the fake score; by default like the student's.
        critic_updates: critic steps per step of the generator.
        critic_weighting: of the critic's denoising loss over noise levels.
        t_min: lowest position on the noise grid at which laws are compared, in [0, 1].
        t_max: highest position on the noise grid at which laws are compared, in [0, 1].
        sigma_min: lowest noise level of the teacher; by default that of the student's grid.
        sigma_max: highest noise level of the teacher, where its sampler starts; by default that of the student's grid.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True

    def __init__(
        self,
        *,
        critic: ModelBlock | None = None,
        critic_updates: int = 1,
        critic_weighting: Literal["edm", "snr", "uniform"] = "edm",
        t_min: float = 0.02,
        t_max: float = 0.98,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.sigma_min: float = sigma_min  # type: ignore[assignment]  # known after setup
        self.sigma_max: float = sigma_max  # type: ignore[assignment]
        if critic_updates < 0:
            raise UserError(f"critic_updates must be 0 or more, not {critic_updates}")
        if not 0 <= t_min < t_max <= 1:
            raise UserError(f"0 <= t_min < t_max <= 1 must hold, not {t_min} and {t_max}")
        self.critic = critic
        self.critic_updates = critic_updates
        self.critic_weighting = critic_weighting
        self.t_min = t_min
        self.t_max = t_max
        self._followed = False

    def setup(self, parts: Parts) -> None:
        """Take the generator, and build its critic."""
        super().setup(parts)
        if self.has_critic:
            self.learners[CRITIC] = self.build_critic(parts)

    def set_range(self, student: nn.Module) -> None:
        """As the recipe says, else as the student's grid."""
        given = self.sigma_min, self.sigma_max
        super().set_range(student)
        self.sigma_min, self.sigma_max = (
            own if own is not None else by_default
            for own, by_default in zip(given, (self.sigma_min, self.sigma_max), strict=True)
        )
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(f"0 < sigma_min < sigma_max must hold, not {self.sigma_min} and {self.sigma_max}")

    def says(self) -> list[str]:
        """Also after which calls it is trained, of a generator of several."""
        nfe, own = int(getattr(self.student, "nfe", 1)), type(self).critic_loss is not GeneratorMethod.critic_loss
        return [*super().says(), *([] if nfe == 1 or own else [f"trained after a random one of its {nfe} calls"])]

    @property
    def has_critic(self) -> bool:
        """Whether a fake score learns."""
        return self.critic_updates > 0

    def build_critic(self, parts: Parts) -> nn.Module:
        """The network of the fake score; what the recipe leaves out follows the teacher, then the data."""
        teacher = self.teacher.module
        facts = facts_of(teacher)
        if self.critic is not None:
            critic: nn.Module = registry.build("model", self.critic, offers={**parts.offers, **facts})
        elif isinstance(net := getattr(parts.student, "net", None), nn.Module):
            critic = copy.deepcopy(net)
        else:
            raise UserError("a student that is no denoising network says nothing of the critic's: name it in 'critic'")
        self.critic_sigma_data = float(getattr(critic, "sigma_data", facts["sigma_data"] or 0.5))
        if self.from_teacher:
            inherit(critic, teacher)
        return critic

    # -- a step --------------------------------------------------------------------------------------------------------

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """The generator, then its critic."""
        self._followed = True
        yield Update("student", partial(self.generator_terms, batch, clock))
        for k in range(self.critic_updates):
            yield self.critic_update(batch, clock, f"critic {k}")

    def generator_terms(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """The generator's loss terms."""
        raise NotImplementedError

    def critic_update(self, batch: Batch, clock: Clock, name: str) -> Update:
        """One step of the critic: plain denoising of fresh samples of the generator, at all levels."""
        return Update(CRITIC, lambda: {"denoising": Term.of(self.critic_loss(batch, clock, name))})

    def critic_loss(self, batch: Batch, clock: Clock, name: str) -> Tensor:
        """Weighted denoising error [B] of the critic on fresh samples, which take no gradient."""
        with torch.no_grad():
            samples, label = self.generate(batch, clock, name)
        return self.denoising(samples, label, batch, clock, name)

    def denoising(self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock, name: str) -> Tensor:
        """Weighted denoising error [B] of the critic on these samples."""
        at = self.noised(samples, label, batch, clock, name)
        weight = denoising_weight(at.sigma, self.critic_weighting, self.critic_sigma_data)
        return weight * squared_error(self.fake(at), samples)

    # -- the pieces ----------------------------------------------------------------------------------------------------

    def generate(self, batch: Batch, clock: Clock, name: str) -> tuple[Tensor, Tensor | None]:
        """Samples [B, *shape] of the generator from fresh noise, and their class.

        Of a generator of several steps, the estimate after a random one of them, the same in the whole batch: what
        comes before is the generator's own, as when it samples (arXiv 2405.14867, section 4.5).
        """
        return self.stopped(batch, clock, name, self.stop(clock, name))

    def stopped(self, batch: Batch, clock: Clock, name: str, steps: int | None) -> tuple[Tensor, Tensor | None]:
        """Likewise, after so many calls; None is for a generator of a single step."""
        label = self.draw_label(batch["id"], clock, name)
        start = clock.normal(batch["id"], self.noise_shape, f"{name} start")
        return self.call_student(start, label, steps), label

    def stop(self, clock: Clock, name: str) -> int | None:
        """After how many calls a generator of several steps stops in this update; None for one of a single step."""
        nfe = int(getattr(self.student, "nfe", 1))
        if nfe == 1:
            return None
        everybody = torch.zeros(1, dtype=torch.int64)
        return 1 + int(clock.uniform(everybody, (1,), f"{name} stop") * nfe)

    def call_student(self, noise: Tensor, label: Tensor | None, steps: int | None = None) -> Tensor:
        """The generator's samples, through the module as the loop wrapped it."""
        given = {} if steps is None else {"steps": steps}
        return self.student(noise, **given) if label is None else self.student(noise, label, **given)

    def noised(
        self,
        samples: Tensor,
        label: Tensor | None,
        batch: Batch,
        clock: Clock,
        name: str,
        *,
        low: float = 0.0,
        high: float = 1.0,
        through: bool = False,
    ) -> Noised:
        """Samples at levels uniform over the positions ``[low, high]`` of the grid, without gradient or ``through``."""
        u = within(clock.uniform(batch["id"], (1,), f"{name} level").squeeze(1), low, high)
        sigma = self.levels(u).to(samples.dtype)
        eps = clock.normal(batch["id"], self.shape, f"{name} noise").to(samples.dtype)
        return Noised((samples if through else samples.detach()) + like(sigma, samples) * eps, sigma, label)

    def fake(self, at: Noised) -> Tensor:
        """What the critic takes the clean samples to be."""
        return self.learners[CRITIC](at.x, at.sigma, **conditioned(at.label))

    @torch.no_grad()
    def estimates(self, at: Noised) -> tuple[Tensor, Tensor]:
        """What the teacher and the critic take the clean samples to be, without gradient."""
        self._followed = True
        with self.teacher.context():
            real = self.real(at.x, at.sigma, **conditioned(at.label))
        return real, self.fake(at)

    def estimates_through(self, at: Noised) -> tuple[Tensor, Tensor]:
        """Likewise, with a gradient in ``at.x`` and none in the networks' weights: what score identities need."""
        with self.teacher.context(), frozen(self.learners[CRITIC]):
            return self.real(at.x, at.sigma, **conditioned(at.label)), self.fake(at)

    def matching(
        self, samples: Tensor, label: Tensor | None, batch: Batch, clock: Clock, *, normalise: bool = True
    ) -> Tensor:
        """The surrogate [B] of the gradient of the reverse KL at the generator's noised samples (DMD, eq. 7 and 8)."""
        at = self.noised(samples, label, batch, clock, "generator", low=self.t_min, high=self.t_max)
        return surrogate(samples, matching_direction(samples, *self.estimates(at), normalise=normalise))

    # -- health --------------------------------------------------------------------------------------------------------

    def health(self, batch: Batch, clock: Clock) -> Mapping[str, Term]:
        """``diversity`` and, once the generator follows its critic, ``critic_lag`` and ``gap``, on fresh samples.

        See :mod:`limbeck.diffusion.health`. A critic whose loss is not plain denoising of the generator's samples has
        no lag: there is no sample that it would have to name on average.
        """
        plain = type(self).critic_loss is GeneratorMethod.critic_loss
        found = self._matching_health(batch, clock) if CRITIC in self.learners and self._followed and plain else {}
        return {**found, "diversity": self._diversity(batch, clock)}

    def alarms(self) -> list[Alarm]:
        """A critic that lags or that generator and critic chase each other, and samples that are all the same."""
        exact = self.classes is None or isinstance(self.teacher.module, GaussianMixture)
        return [*matching_alarms(), *diversity_alarms(exact=exact)]

    def _matching_health(self, batch: Batch, clock: Clock) -> dict[str, Term]:
        """Over all that the critic learns the mixture of: the estimates after each step of the generator."""
        parts = []
        for k, (samples, label) in enumerate(self._held_out(batch, clock)):
            at = self.noised(samples, label, batch, clock, f"health {k}", low=self.t_min, high=self.t_max)
            parts.append((samples, *self.estimates_through(at)))
        return matching_health(*(torch.cat(rows) for rows in zip(*parts, strict=True)))

    def _held_out(self, batch: Batch, clock: Clock) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Samples and their class that nothing learns from; as many after each step that the generator may stop at."""
        nfe = int(getattr(self.student, "nfe", 1))
        if nfe == 1 or type(self).generate is not GeneratorMethod.generate:
            yield self.generate(batch, clock, "health 0")
        else:
            yield from (self.stopped(batch, clock, f"health {k}", k + 1) for k in range(nfe))

    def _diversity(self, batch: Batch, clock: Clock) -> Term:
        """Of two samples for each class that is drawn."""
        ids, nfe = batch["id"], int(getattr(self.student, "nfe", 1))
        label = self.draw_label(ids, clock, "health")
        one, other = (
            self.call_student(clock.normal(ids, self.noise_shape, f"health {which}"), label, nfe if nfe > 1 else None)
            for which in ("one", "other")
        )
        sigma_data = float(facts_of(self.teacher.module)["sigma_data"] or getattr(self, "critic_sigma_data", 0.5))
        return diversity(one, other, variance_of(self.teacher.module, label, sigma_data))


def facts_of(module: nn.Module) -> Mapping[str, Any]:
    """What a network says of its samples, for building another like it."""
    return {k: getattr(module, k, None) for k in ("sigma_data", "shape", "classes")}
