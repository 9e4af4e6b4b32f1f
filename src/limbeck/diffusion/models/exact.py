"""Teachers whose score is known exactly: mixtures of Gaussians."""

from __future__ import annotations

import torch

from limbeck.data.base import Data
from limbeck.diffusion import mixture
from limbeck.diffusion.memory import Memory
from limbeck.diffusion.mixture import GaussianMixture
from limbeck.diffusion.models import positive
from limbeck.errors import UserError
from limbeck.registry import register


@register("model", gives={"denoiser", "samples"}, exact=True)
def gaussian_ring(
    *, modes: int = 8, radius: float = 4.0, std: float = 0.3, classes: int | None = None
) -> GaussianMixture:
    """Equal Gaussians on a circle, as an exact teacher: score and denoiser in closed form, nothing to train.

    Args:
        modes: number of Gaussians; with ``classes``, mode k has the class ``k % classes``.
        radius: of the circle.
        std: of each Gaussian.
        classes: number of classes, for a conditional teacher.
    """
    positive("gaussian_ring", modes=modes, radius=radius, std=std)
    return mixture.ring(modes, radius, std, classes).float()


@register("model", gives={"denoiser", "samples"}, exact=True)
def gaussian_grid(
    *, side: int = 5, spacing: float = 2.0, std: float = 0.1, classes: int | None = None
) -> GaussianMixture:
    """``side * side`` equal Gaussians on a square grid, as an exact teacher.

    Args:
        side: Gaussians along each axis; with ``classes``, mode k has the class ``k % classes``.
        spacing: distance between neighbours.
        std: of each Gaussian.
        classes: number of classes, for a conditional teacher.
    """
    positive("gaussian_grid", side=side, spacing=spacing, std=std)
    return mixture.grid(side, spacing, std, classes).float()


@register("model", gives={"denoiser", "samples"}, exact=True)
def gaussian_line(
    *,
    means: tuple[float, ...] = (-2.0, 1.5),
    stds: tuple[float, ...] = (0.4, 0.6),
    weights: tuple[float, ...] = (0.3, 0.7),
) -> GaussianMixture:
    """A mixture in one dimension, as an exact teacher whose flow map is known too.

    Args:
        means: of the Gaussians.
        stds: of the Gaussians.
        weights: of the Gaussians, positive; normalised.
    """
    if not len(means) == len(stds) == len(weights) or min(*stds, *weights) <= 0:
        raise UserError("gaussian_line needs as many means as stds and weights, and positive stds and weights")
    return mixture.line(means, stds, weights).float()


@register("model", gives={"denoiser", "samples"}, exact=True)
def image_memory(*, data: Data, std: float = 0.1, count: int | None = None) -> GaussianMixture:
    """The exact teacher of a data set's own pictures: a Gaussian of ``std`` around each training picture.

    Its denoiser is the best possible for these pictures, which it knows by heart: for small sets only.

    Args:
        data: the recipe's data.
        std: of each Gaussian, in the pictures' unit.
        count: pictures to keep, the first; by default all.
    """
    positive("image_memory", std=std)
    if data.train is None:
        raise UserError("image_memory needs training pictures to remember: give the recipe data")
    rows = torch.arange(len(data.train) if count is None else min(count, len(data.train)))
    batch = data.train.batch(rows)
    means = batch["input"]
    return Memory(torch.ones(len(means)), means, std, batch.get("label"))
