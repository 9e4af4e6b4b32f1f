"""Generators that a recipe can name, whose steps are drawn from their law."""

from __future__ import annotations

from limbeck.diffusion.latent import LatentDenoiser, PosteriorSteps
from limbeck.diffusion.models.generators import few_step
from limbeck.diffusion.networks import EDMDenoiser
from limbeck.errors import UserError
from limbeck.registry import ModelBlock, register


@register("model", gives={"samples"})
def posterior_steps(
    *,
    net: ModelBlock,
    nfe: int = 4,
    latent: bool = True,
    levels: tuple[float, ...] | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    classes: int | None = None,
) -> PosteriorSteps:
    """A generator that calls a denoising network ``nfe`` times and draws from the Gaussian posterior between two calls.

    Args:
        net: the denoising network.
        nfe: network evaluations of a sample.
        latent: whether the network also takes a latent, drawn anew for each call.
        levels: of the calls, falling, ``nfe`` of them; by default the first ``nfe`` of ``nfe + 1`` of EDM's grid.
        sigma_min: the grid's lowest level.
        sigma_max: the grid's highest level, that of pure noise.
        rho: the grid's curvature.
        shape: of one sample, for a network that does not say.
        sigma_data: standard deviation of the data, for a network that does not say.
        classes: number of classes, for a network that does not say.
    """
    grid = {"levels": levels, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    generator = few_step(net=net, nfe=nfe, shape=shape, sigma_data=sigma_data, classes=classes, **grid)  # type: ignore[arg-type]
    network = generator.net
    if latent:
        if not isinstance(network, EDMDenoiser):
            raise UserError(f"posterior_steps: mlp_denoiser and unet_denoiser take a latent, and '{net.name}' does not")
        network = LatentDenoiser(network)
    return PosteriorSteps(network, generator.levels, sigma_min=generator.sigma_min, sigma_max=generator.sigma_max)
