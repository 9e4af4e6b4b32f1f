"""D4M: what a generative network makes of the noised prototypes of each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck.condensation.generating import LOWEST, falling_levels, flow, guided
from limbeck.condensation.recover import real_images
from limbeck.condensation.selection import k_means_centres
from limbeck.condensation.synthetic import RealImages, SyntheticImages, first_images, image_set, relabel_by, tiled
from limbeck.engine.method import Batch, Clock, Method, Parts, Update
from limbeck.engine.noise import normal
from limbeck.errors import UserError
from limbeck.registry import register


@register("method")
class D4M(Method):
    """Dataset Distillation via Disentangled Diffusion Model (Su et al., CVPR 2024, arXiv 2407.15138), without training.

    The centres of each class's k-means clusters, as many as it has images, are noised to a middle level and brought
    back by a denoising network that is told the class: a centre is a blurred mean, and the generator makes a sharp
    image near it. A set that stores soft labels gets those of the teacher. The paper works on the latents of an
    autoencoder and decodes what comes out; here both clusters and generator live in the space of the images, so that
    the autoencoder is the identity. Its strength of 0.7 is a ``sigma_start`` of about 3.3 on Stable Diffusion's
    schedule, for data of deviation 1, and its guidance about 8.

    Teachers: ``generator``, a class-conditional denoiser ``D(x, sigma, label)`` of such images, and ``teacher``, which
    labels.

    Args:
        prototypes: what is noised: centres of k-means clusters, random real images, or means of random shares.
        sigma_start: the noise level that prototypes are brought to; 0 keeps them as they are.
        steps: of the sampler, Heun's on EDM's grid.
        guidance: scale of classifier-free guidance; 1 is none. Above, the generator must know what to do without class.
        generate: whether the generator is used at all; the prototypes are stored as they are without it.
    """

    data_free = True
    live = True
    same_view = False
    needs = {"generator": {"denoiser"}, "teacher": {"logits"}}
    controls: ClassVar[Mapping[str, dict[str, Any]]] = {
        "random": {"method": {"name": "d4m", "prototypes": "random", "generate": False}}
    }
    fixed = ("sigma_start", "guidance")

    def __init__(
        self,
        *,
        prototypes: Literal["kmeans", "random", "mean"] = "kmeans",
        sigma_start: float = 3.3,
        steps: int = 18,
        guidance: float = 8.0,
        generate: bool = True,
    ) -> None:
        if 0 < sigma_start <= LOWEST or sigma_start < 0 or steps < 1:
            raise UserError(f"d4m: sigma_start is 0 or above {LOWEST}, and there is at least 1 of the steps")
        self.prototypes = prototypes
        self.sigma_start = sigma_start
        self.steps = steps
        self.guidance = guidance
        self.generate = generate

    def setup(self, parts: Parts) -> None:
        """Make the images and put them into the student.

        Raises:
            UserError: the student is no set of images, the generator makes others or knows other classes, or a
                class is too small.
        """
        super().setup(parts)
        student = image_set(parts.student)
        device = student.images.device
        real = real_images(parts)
        count = student.per_class * student.tiles**2
        found = self.found(real, count, student.seed).to(device)
        labels = torch.arange(real.classes, device=device).repeat_interleave(count)
        if self.generate and self.sigma_start:
            found = self.made(found, labels, student)
        student.replace_(tiled(found, student.tiles))
        student.clamp_()
        relabel_by(student, {"teacher": self.teacher})

    def found(self, real: RealImages, count: int, seed: int) -> Tensor:
        """The prototypes, [classes * count, ...], sorted by class."""
        if self.prototypes != "kmeans":
            return first_images(real, count, "real" if self.prototypes == "random" else "mean", seed)
        real.require(count)
        shape = real.images.shape[1:]
        return torch.cat(
            [k_means_centres(real.of_class(c).flatten(1), count, seed).view(-1, *shape) for c in range(real.classes)]
        )

    def made(self, prototypes: Tensor, labels: Tensor, student: SyntheticImages) -> Tensor:
        """What the generator makes of the noised prototypes, of their shape."""
        teacher = self.teachers["generator"]
        module = teacher.module.to(prototypes.device)
        shape, classes = getattr(module, "shape", None), getattr(module, "classes", None)
        if shape is not None and tuple(shape) != tuple(prototypes.shape[1:]):
            raise UserError(f"d4m: the generator makes {tuple(shape)}, and images are {tuple(prototypes.shape[1:])}")
        if classes != student.classes:
            raise UserError(
                f"d4m: the generator knows {classes or 'no'} classes, and the images are of {student.classes}"
            )
        ids = torch.arange(len(prototypes), device=prototypes.device)
        noise = normal(ids, tuple(prototypes.shape[1:]), (student.seed, "generated"))
        levels = falling_levels(self.sigma_start, self.steps)
        return flow(guided(teacher, self.guidance), prototypes + self.sigma_start * noise, labels, levels)

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """None: the images stay as made."""
        yield from ()
