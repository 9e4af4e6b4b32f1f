"""Diffusion models that a recipe can name: exact teachers, denoising networks and generators made of them."""

from __future__ import annotations

from typing import Literal

from torch import nn

from limbeck.diffusion import mixture
from limbeck.diffusion.mixture import GaussianMixture
from limbeck.diffusion.networks import EDMDenoiser, MLPBackbone, OneStep
from limbeck.errors import UserError
from limbeck.registry import ModelBlock, build, register


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
    _positive("gaussian_ring", modes=modes, radius=radius, std=std)
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
    _positive("gaussian_grid", side=side, spacing=spacing, std=std)
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


@register("model", gives={"denoiser", "samples"})
def mlp_denoiser(
    *,
    shape: tuple[int, ...] = (2,),
    width: int = 128,
    depth: int = 3,
    sigma_data: float = 0.5,
    classes: int | None = None,
    activation: Literal["silu", "gelu", "relu"] = "silu",
) -> EDMDenoiser:
    """A small denoising MLP under EDM preconditioning, with Fourier features of the logarithm of the noise level.

    Args:
        shape: of one sample.
        width: of the hidden layers.
        depth: number of residual layers.
        sigma_data: standard deviation of the data (per dimension).
        classes: number of classes, for a conditional denoiser.
        activation: ``relu`` follows the steep maps between separate modes with far fewer parameters than the smooth
            ones, which suit methods that differentiate through the network twice.
    """
    _positive("mlp_denoiser", width=width, depth=depth, sigma_data=sigma_data)
    shape = tuple(shape)
    return EDMDenoiser(MLPBackbone(shape, width, depth, classes, activation), shape, sigma_data, classes)


@register("model", gives={"samples"})
def one_step(
    *,
    net: ModelBlock,
    sigma: float = 80.0,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    classes: int | None = None,
) -> OneStep:
    """A one-step generator out of a denoising network: ``G(z) = D_net(sigma z, sigma)``.

    Args:
        net: the denoising network.
        sigma: the noise level its input is taken to have; where the teacher's sampler starts.
        shape: of one sample, for a network that does not say.
        sigma_data: standard deviation of the data, for a network that does not say.
        classes: number of classes, for a network that does not say.
    """
    _positive("one_step", sigma=sigma)
    network: nn.Module = build("model", net, offers={"shape": shape, "sigma_data": sigma_data, "classes": classes})
    if not hasattr(network, "shape"):
        raise UserError(f"one_step needs a denoising network, and '{net.name}' does not say the shape of its samples")
    return OneStep(network, sigma)


def _positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if value <= 0:
            raise UserError(f"{name}: {key} must be positive, not {value}")
