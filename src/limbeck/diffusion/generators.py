"""What methods share that train a generator against a teacher's denoiser and a learned *fake score*.

The fake score, or critic, is a denoiser of the generator's own law, trained beside it; the difference of the two
denoisers tells the generator where to go. A method of this kind names its hyper-parameters and yields its updates out
of the pieces here. All random numbers come from the clock, by sample and by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck import registry
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.levels import karras, within
from limbeck.diffusion.losses import Weighting, denoising_weight, squared_error
from limbeck.diffusion.networks import inherit
from limbeck.diffusion.paths import Denoise, like
from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
from limbeck.errors import UserError
from limbeck.registry import Block

CRITIC = "fake_score"
"""The role of the critic."""


class Noised(NamedTuple):
    """Noised samples ``x`` [B, *shape], their level ``sigma`` [B], and the class, int64 [B] or None."""

    x: Tensor
    sigma: Tensor
    label: Tensor | None


class GeneratorMethod(Method):
    """Base of the data-free methods with a generator, a teacher's denoiser and a fake score.

    A subclass sets, in ``__init__``, every attribute that is annotated here, and repeats ``needs`` and ``data_free``
    (they are read from its source).

    Attributes:
        critic: the network of the fake score.
        critic_weighting: of its denoising loss.
        sigma_min, sigma_max, rho: the teacher's noise range and the curvature of its grid.
        guidance: scale of classifier-free guidance of the teacher; 1 is none.
        from_teacher: start student and critic as copies of the teacher where they are the same network.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    same_view = False
    """The teacher may also sample by itself, at points that no learner sees."""

    critic: Block
    critic_weighting: Weighting
    sigma_min: float
    sigma_max: float
    rho: float
    guidance: float
    from_teacher: bool

    def setup(self, parts: Parts) -> None:
        """Take the generator, and build its critic."""
        super().setup(parts)
        teacher = self.teacher.module
        self.shape = _shape_of(parts.student, "student")
        self.classes: int | None = getattr(parts.student, "classes", None)
        theirs = _shape_of(teacher, "teacher")
        if theirs != self.shape:
            raise UserError(f"the student makes samples of shape {self.shape}, the teacher {theirs}: make them alike")
        if self.classes is None and self.guidance != 1:
            raise UserError("guidance needs classes: give student and teacher 'classes', or leave guidance at 1")
        if self.from_teacher:
            inherit(getattr(parts.student, "net", parts.student), teacher)
        if self.has_critic:
            self.learners[CRITIC] = self.build_critic(teacher, parts.offers)

    @property
    def has_critic(self) -> bool:
        """Whether a fake score learns."""
        return True

    def build_critic(self, teacher: nn.Module, offers: Mapping[str, Any]) -> nn.Module:
        """The network of the fake score; what the recipe leaves out follows the teacher, then the data."""
        facts = {k: getattr(teacher, k, None) for k in ("sigma_data", "shape", "classes")}
        critic = registry.build("model", self.critic, offers={**offers, **facts})
        self.critic_sigma_data = float(getattr(critic, "sigma_data", facts["sigma_data"] or 0.5))
        if self.from_teacher:
            inherit(critic, teacher)
        return critic

    def generate(self, batch: Batch, clock: Clock, name: str) -> tuple[Tensor, Tensor | None]:
        """Samples [B, *shape] of the generator from fresh noise, and their class."""
        label = self.draw_label(batch["id"], clock, name)
        return self.call_student(clock.normal(batch["id"], self.shape, f"{name} start"), label), label

    def call_student(self, noise: Tensor, label: Tensor | None) -> Tensor:
        """The generator's samples, through the module as the loop wrapped it."""
        return self.student(noise) if label is None else self.student(noise, label)

    def draw_label(self, ids: Tensor, clock: Clock, name: str) -> Tensor | None:
        """A uniform class for each sample, or None for an unconditional generator."""
        if self.classes is None:
            return None
        return (clock.uniform(ids, (1,), f"{name} class").squeeze(1) * self.classes).long()

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
    ) -> Noised:
        """Samples at levels uniform over the positions ``[low, high]`` of the Karras grid, without gradient."""
        u = within(clock.uniform(batch["id"], (1,), f"{name} level").squeeze(1), low, high)
        sigma = karras(u, self.sigma_min, self.sigma_max, self.rho).to(samples.dtype)
        eps = clock.normal(batch["id"], self.shape, f"{name} noise").to(samples.dtype)
        return Noised(samples.detach() + like(sigma, samples) * eps, sigma, label)

    @property
    def real(self) -> Denoise:
        """The teacher, guided as the recipe says. It is called, not ``.denoise``d: sharding hooks calls alone."""
        module = self.teacher.module
        return module if self.guidance == 1 else Guided(module, self.guidance)

    @torch.no_grad()
    def estimates(self, at: Noised) -> tuple[Tensor, Tensor]:
        """What the teacher and the critic take the clean samples to be, without gradient."""
        condition = {} if at.label is None else {"label": at.label}
        with self.teacher.context():
            real = self.real(at.x, at.sigma, **condition)
        return real, self.learners[CRITIC](at.x, at.sigma, **condition)

    def critic_update(self, batch: Batch, clock: Clock, name: str) -> Update:
        """One step of the critic: plain denoising of fresh samples of the generator, at all levels."""
        return Update(CRITIC, lambda: {"denoising": Term.of(self.critic_loss(batch, clock, name))})

    def critic_loss(self, batch: Batch, clock: Clock, name: str) -> Tensor:
        """Weighted denoising error [B] of the critic on fresh samples, which take no gradient."""
        with torch.no_grad():
            samples, label = self.generate(batch, clock, name)
        at = self.noised(samples, label, batch, clock, name)
        condition = {} if label is None else {"label": label}
        weight = denoising_weight(at.sigma, self.critic_weighting, self.critic_sigma_data)
        return weight * squared_error(self.learners[CRITIC](at.x, at.sigma, **condition), samples)


def _shape_of(module: nn.Module, role: str) -> tuple[int, ...]:
    shape: Any = getattr(module, "shape", None)
    if shape is None:
        raise UserError(f"the {role} does not say the shape of its samples: give its module an attribute 'shape'")
    return tuple(shape)
