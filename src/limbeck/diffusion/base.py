"""What every method of the family shares: a teacher's denoiser, guided or not, and clean samples to learn on.

All random numbers come from the clock, by sample and by name, so that a batch may be cut in any way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion import samplers
from limbeck.diffusion.dial import derived
from limbeck.diffusion.guidance import Guided
from limbeck.diffusion.levels import karras
from limbeck.diffusion.mixture import GaussianMixture
from limbeck.diffusion.networks import inherit
from limbeck.diffusion.paths import Denoise
from limbeck.engine import noise
from limbeck.engine.cache import parse_bytes
from limbeck.engine.method import Batch, Clock, Method, Parts
from limbeck.engine.pools import Keeping, Pool, Rows, make_pool
from limbeck.errors import UserError

CHUNK = 1024
"""Teacher samples that are made at once."""
LARGE, FEW = 4096, 16
"""Samples of more values than ``LARGE``, as latents of a pipeline, are made a few at once."""
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""EDM's range, for a student that does not say."""


class DiffusionMethod(Method):
    """Base of the methods with a denoising teacher. A subclass repeats ``needs`` and ``data_free``.

    Args:
        rho: curvature of the noise grid.
        guidance: scale of classifier-free guidance of the teacher, for classes; 1 is none.
        from_teacher: start networks as copies of the teacher where they have its layers.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True
    same_view = False
    """The teacher may also sample by itself, at points that no learner sees."""

    def __init__(
        self,
        *,
        rho: float = 7.0,
        guidance: float = 1.0,
        from_teacher: bool = True,
    ) -> None:
        self.rho = rho
        self.guidance = guidance
        self.from_teacher = from_teacher

    def setup(self, parts: Parts) -> None:
        """Take the student, and what its samples are like.

        Raises:
            UserError: teacher and student make unlike samples, or guidance is asked of networks without classes.
        """
        super().setup(parts)
        self.quiet = parts.quiet
        teacher = self.teacher.module
        self.shape = shape_of(parts.student, "student")
        self.noise_shape = tuple(getattr(parts.student, "noise_shape", self.shape))
        self.classes: int | None = getattr(parts.student, "classes", None)
        self._theirs = None if parts.data is None else parts.data.classes
        self.set_range(parts.student)
        theirs = shape_of(teacher, "teacher")
        if theirs != self.shape:
            raise UserError(f"the student makes samples of shape {self.shape}, the teacher {theirs}: make them alike")
        if self.classes is None and self.guidance != 1:
            raise UserError("guidance needs classes: give student and teacher 'classes', or leave guidance at 1")
        if self.from_teacher:
            inherit(getattr(parts.student, "net", parts.student), teacher)

    def set_range(self, student: nn.Module) -> None:
        """The noise levels ``sigma_min`` to ``sigma_max`` of the teacher: those of the student's grid."""
        self.sigma_min = float(getattr(student, "sigma_min", SIGMA_MIN))
        self.sigma_max = float(getattr(student, "sigma_max", SIGMA_MAX))

    def says(self) -> list[str]:
        """What follows from the student's levels."""
        return derived(self)

    # -- the teacher ---------------------------------------------------------------------------------------------------

    @property
    def real(self) -> Denoise:
        """The teacher, guided as the recipe says. It is called, not ``.denoise``d: sharding hooks calls alone."""
        module = self.teacher.module
        return module if self.guidance == 1 else Guided(module, self.guidance)

    def levels(self, u: Tensor) -> Tensor:
        """Levels at positions ``u`` in [0, 1] of the teacher's grid."""
        return karras(u, self.sigma_min, self.sigma_max, self.rho)

    # -- what is drawn -------------------------------------------------------------------------------------------------

    def draw_label(self, ids: Tensor, clock: Clock, name: str) -> Tensor | None:
        """A uniform class for each sample, or None for an unconditional generator."""
        return self._labels(ids, (clock.seed, clock.step, f"{name} class"))

    def _labels(self, ids: Tensor, key: Hashable) -> Tensor | None:
        if self.classes is None:
            return None
        return (noise.uniform(ids, (1,), key).squeeze(1) * self.classes).long()


class Pairs(DiffusionMethod):
    """Those that learn from clean samples, or from pairs of noise and what the teacher's sampler makes of it.

    Args:
        pairs: how many pairs to make; of a teacher that can be drawn from, samples without their noise are drawn
            anew instead.
        pair_steps: Heun steps for each.
        keep: how much of the disk pairs of a network may take, to be found again by the next training; ``null`` holds
            them in memory.
    """

    needs = {"teacher": {"denoiser"}}
    data_free = True

    def __init__(self, *, pairs: int = 10_000, pair_steps: int = 18, keep: str | None = "10GB", **rest: Any) -> None:
        super().__init__(**rest)
        if pairs < 1 or pair_steps < 1:
            raise UserError("pairs and pair_steps must be 1 or more")
        self.pairs = pairs
        self.pair_steps = pair_steps
        self.keep = keep
        self._budget = None if keep is None else _size("keep", keep)
        self._pool: Pool | None = None

    def clean(self, batch: Batch, clock: Clock, name: str) -> tuple[Tensor, Tensor | None]:
        """Clean samples [B, *shape] and their class: the data's where the recipe has some, else the teacher's own.

        An exact teacher draws new ones for every step; of another, ``pairs`` are made once and drawn from.

        Raises:
            UserError: the data's classes are not the student's.
        """
        if "input" in batch:
            if self.classes is not None and self._theirs != self.classes:
                says = f"the student has {self.classes} classes (or prompts) and the data {self._theirs or 'none'}"
                raise UserError(f"{says}: make them alike, or leave the data's pictures out")
            return batch["input"], batch["label"] if self.classes is not None else None
        module = self.teacher.module
        if not isinstance(module, GaussianMixture):
            _, label, made = self.pair(batch, clock, f"{name} clean")
            return made, label
        drawn = module.draw(batch["id"], (clock.seed, clock.step, f"{name} clean"))
        known = module.labels is not None and self.classes is not None
        return drawn.samples, module.labels[drawn.component] if known and module.labels is not None else None

    def pair(self, batch: Batch, clock: Clock, name: str = "pair") -> tuple[Tensor, Tensor | None, Tensor]:
        """A pair for each sample of the batch: noise, class and what the teacher's sampler makes of them."""
        if self._pool is None:
            self._pool = self.pool(
                "pairs",
                lambda ids: {"samples": self._sampled(ids, clock.seed)},
                self.pairs,
                clock.seed,
                batch["id"].device,
                sampler="heun",
                steps=self.pair_steps,
                nfe=2 * self.pair_steps - 1,
                guidance=float(self.guidance),
            )
        which = (clock.uniform(batch["id"], (1,), name).squeeze(1) * self.pairs).long()
        return *self.pair_start(which, clock.seed), self._pool[which]["samples"]

    def pair_start(self, ids: Tensor, seed: int) -> tuple[Tensor, Tensor | None]:
        """Noise and class of the pairs with these numbers."""
        return noise.normal(ids, self.shape, (seed, "pair start")), self._labels(ids, (seed, "pair class"))

    def pool(
        self, what: str, make: Callable[[Tensor], Rows], count: int, seed: int, device: torch.device, **facts: Any
    ) -> Pool:
        """What the teacher makes of :meth:`pair_start`, found on disk or made now, as :func:`make_pool` says.

        What a teacher without parameters makes takes no time and is not kept.

        Args:
            what: a word for it.
            make: from numbers, int64 [B], to rows.
            count: how many.
            seed: of the run.
            device: where they are made.
            facts: what they depend on beside the teacher, the seed and the levels, as JSON.
        """
        keeping = None
        if self._budget is not None and self.teacher.parameters():
            range_of = {"sigma_min": float(self.sigma_min), "sigma_max": float(self.sigma_max), "rho": float(self.rho)}
            own = {"seed": seed, "shape": self.shape, "classes": self.classes}
            keeping = Keeping(
                {"what": what, "teacher": self.teacher.hash, **range_of, **own, **facts},
                self._budget,
                {"teacher_name": type(self.teacher.module).__name__},
            )
        few = math.prod(self.shape) > LARGE
        return make_pool(make, count, chunk=FEW if few else CHUNK, device=device, keeping=keeping, quiet=self.quiet)

    def _sampled(self, ids: Tensor, seed: int) -> Tensor:
        start, label = self.pair_start(ids, seed)
        with self.teacher.context():
            return samplers.sample(
                self.real,
                start,
                steps=self.pair_steps,
                sigma_min=self.sigma_min,
                sigma_max=self.sigma_max,
                rho=self.rho,
                label=label,
            ).samples


def _size(name: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def conditioned(label: Tensor | None) -> dict[str, Tensor]:
    """The keyword arguments of a denoiser for these classes."""
    return {} if label is None else {"label": label}


def shape_of(module: nn.Module, role: str) -> tuple[int, ...]:
    """The shape of a model's samples.

    Raises:
        UserError: it does not say.
    """
    shape: Any = getattr(module, "shape", None)
    if shape is None:
        raise UserError(f"the {role} does not say the shape of its samples: give its module an attribute 'shape'")
    return tuple(shape)
