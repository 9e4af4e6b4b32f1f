"""Diffusion models that a recipe can name: exact teachers, denoising networks and generators made of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from limbeck.data.base import Data
from limbeck.diffusion import mixture
from limbeck.diffusion.few_step import FewStep, OneStep, Rule, few_levels
from limbeck.diffusion.mixture import GaussianMixture
from limbeck.diffusion.networks import EDMDenoiser, MLPBackbone
from limbeck.diffusion.unet import UNetBackbone
from limbeck.errors import UserError
from limbeck.registry import Block, ModelBlock, build, register


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


@register("model", gives={"denoiser", "samples"}, exact=True)
def image_memory(*, data: Data, std: float = 0.1, count: int | None = None) -> GaussianMixture:
    """The exact teacher of a data set's own pictures: a Gaussian of ``std`` around each training picture.

    Its denoiser is the best possible for these pictures, which it knows by heart: for small sets only.

    Args:
        data: the recipe's data.
        std: of each Gaussian, in the pictures' unit.
        count: pictures to keep, the first; by default all.
    """
    _positive("image_memory", std=std)
    if data.train is None:
        raise UserError("image_memory needs training pictures to remember: give the recipe data")
    rows = torch.arange(len(data.train) if count is None else min(count, len(data.train)))
    batch = data.train.batch(rows)
    means = batch["input"]
    return GaussianMixture(torch.ones(len(means)), means, torch.full_like(means, std**2), batch.get("label"))


@register("model", gives={"denoiser", "samples"})
def mlp_denoiser(
    *,
    shape: tuple[int, ...] = (2,),
    width: int = 128,
    depth: int = 3,
    sigma_data: float = 0.5,
    classes: int | None = None,
    activation: Literal["silu", "gelu", "relu"] = "silu",
    floor: float = 0.0,
    jumps: bool = False,
    guided: bool = False,
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
        floor: the level at which it is the identity, for consistency functions; 0 for denoisers.
        jumps: whether it takes the level that a jump goes to, for flow maps.
        guided: whether it takes the strength of guidance that it stands for.
    """
    _positive("mlp_denoiser", width=width, depth=depth, sigma_data=sigma_data)
    shape = tuple(shape)
    backbone = MLPBackbone(shape, width, depth, classes, activation, jumps=jumps, guided=guided)
    return EDMDenoiser(backbone, shape, sigma_data, classes, floor=floor)


@register("model", gives={"denoiser", "samples"})
def unet_denoiser(
    *,
    shape: tuple[int, ...],
    width: int = 32,
    levels: int = 2,
    depth: int = 1,
    attention: bool = False,
    sigma_data: float = 1.0,
    classes: int | None = None,
    floor: float = 0.0,
    jumps: bool = False,
    guided: bool = False,
) -> EDMDenoiser:
    """A small U-Net for pictures under EDM preconditioning.

    Args:
        shape: of one picture, [C, H, W].
        width: channels at full resolution, a multiple of 8; each level below has twice as many.
        levels: resolutions.
        depth: residual blocks at each.
        attention: whether the lowest resolution has an attention layer.
        sigma_data: standard deviation of the data; pictures of a data set have 1 as they come.
        classes: number of classes, for a conditional denoiser.
        floor: the level at which it is the identity, for consistency functions; 0 for denoisers.
        jumps: whether it takes the level that a jump goes to, for flow maps.
        guided: whether it takes the strength of guidance that it stands for.
    """
    _positive("unet_denoiser", width=width, levels=levels, depth=depth, sigma_data=sigma_data)
    shape = tuple(shape)
    if len(shape) != 3 or width % 8:
        raise UserError(f"unet_denoiser needs pictures [C, H, W] and a width that 8 divides, not {shape} and {width}")
    backbone = UNetBackbone(
        shape, width, levels, depth, attention=attention, classes=classes, jumps=jumps, guided=guided
    )
    return EDMDenoiser(backbone, shape, sigma_data, classes, floor=floor)


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
    return OneStep(_network("one_step", net, shape, sigma_data, classes), sigma)


@register("model", gives={"samples"})
def few_step(
    *,
    net: ModelBlock,
    nfe: int = 1,
    rule: Rule = "renoise",
    levels: tuple[float, ...] | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    scale: float | None = None,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    classes: int | None = None,
) -> FewStep:
    """A generator that calls a denoising network ``nfe`` times.

    Args:
        net: the denoising network.
        nfe: network evaluations of a sample; the levels follow from it, unless they are given.
        rule: between two calls ``renoise`` puts fresh noise on the clean estimate (consistency models), ``ode`` goes
            along the line to it (DDIM), ``map`` jumps with a network that has ``jumps``.
        levels: of the calls, falling, ``nfe`` of them; by default the first ``nfe`` of ``nfe + 1`` of EDM's grid.
        sigma_min: the grid's lowest level.
        sigma_max: the grid's highest level, that of pure noise.
        rho: the grid's curvature.
        scale: the strength of guidance asked of a ``guided`` network when it samples.
        shape: of one sample, for a network that does not say.
        sigma_data: standard deviation of the data, for a network that does not say.
        classes: number of classes, for a network that does not say.
    """
    network = _network("few_step", net, shape, sigma_data, classes)
    if levels is None:
        if nfe < 1 or not 0 < sigma_min < sigma_max:
            raise UserError("few_step: nfe >= 1 and 0 < sigma_min < sigma_max must hold")
        levels = tuple(few_levels(nfe, sigma_min, sigma_max, rho))
    elif len(levels) != nfe or list(levels) != sorted(levels, reverse=True) or min(levels) <= 0:
        raise UserError(f"few_step: levels must be nfe: {nfe} falling numbers above 0, not {list(levels)}")
    if rule == "map" and not getattr(network, "jumps", False):
        raise UserError(f"few_step: rule: map needs a network that knows where it goes: '{net.name}' with jumps: true")
    return FewStep(network, levels, rule, scale=scale, sigma_min=sigma_min, sigma_max=sigma_max)


def _network(
    name: str, net: Block, shape: tuple[int, ...] | None, sigma_data: float | None, classes: int | None
) -> nn.Module:
    network: nn.Module = build("model", net, offers={"shape": shape, "sigma_data": sigma_data, "classes": classes})
    if not hasattr(network, "shape"):
        raise UserError(f"{name} needs a denoising network, and '{net.name}' does not say the shape of its samples")
    return network


def _positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if value <= 0:
            raise UserError(f"{name}: {key} must be positive, not {value}")
