"""A denoising network with a twin, by name."""

from __future__ import annotations

from limbeck.diffusion.models.generators import _network
from limbeck.diffusion.networks import EDMDenoiser
from limbeck.diffusion.twin import TwinDenoiser
from limbeck.errors import UserError
from limbeck.registry import ModelBlock, register


@register("model", gives={"denoiser", "samples"})
def twin_denoiser(
    *,
    net: ModelBlock,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    classes: int | None = None,
) -> TwinDenoiser:
    """A denoising network that is another denoiser under negative noise levels, for methods that learn their own fakes.

    Args:
        net: the network: ``mlp_denoiser`` or ``unet_denoiser``.
        shape: of one sample, for a network that does not say.
        sigma_data: standard deviation of the data, for a network that does not say.
        classes: number of classes, for a network that does not say.
    """
    network = _network("twin_denoiser", net, shape, sigma_data, classes)
    if not isinstance(network, EDMDenoiser):
        raise UserError(f"twin_denoiser: mlp_denoiser and unet_denoiser can have a twin, and '{net.name}' cannot")
    return TwinDenoiser(network)
