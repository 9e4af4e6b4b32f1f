"""Denoising networks of this library: for points, and for small pictures."""

from __future__ import annotations

from typing import Any, Literal

from limbeck.diffusion.models import positive
from limbeck.diffusion.networks import EDMDenoiser, MLPBackbone
from limbeck.diffusion.unet import UNetBackbone
from limbeck.errors import UserError
from limbeck.registry import register


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
    positive("mlp_denoiser", width=width, depth=depth, sigma_data=sigma_data)
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
    patch: int = 1,
    tokens: int = 0,
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
        patch: side of the squares of pixels that are folded into channels: 2 makes large pictures four times as cheap.
        tokens: by which cross-attention knows a class, as text-to-image networks know a prompt; with 0 the class
            modulates the blocks instead.
        sigma_data: standard deviation of the data; pictures of a data set have 1 as they come.
        classes: number of classes, for a conditional denoiser.
        floor: the level at which it is the identity, for consistency functions; 0 for denoisers.
        jumps: whether it takes the level that a jump goes to, for flow maps.
        guided: whether it takes the strength of guidance that it stands for.
    """
    positive("unet_denoiser", width=width, levels=levels, depth=depth, patch=patch, sigma_data=sigma_data)
    shape = tuple(shape)
    if len(shape) != 3 or width % 8:
        raise UserError(f"unet_denoiser needs pictures [C, H, W] and a width that 8 divides, not {shape} and {width}")
    if shape[1] % patch or shape[2] % patch:
        raise UserError(f"unet_denoiser: patch {patch} must divide the height and width of {shape}")
    if tokens < 0 or (tokens and classes is None):
        raise UserError("unet_denoiser: tokens are those of a class: 0 or more, and none without classes")
    told: dict[str, Any] = {"jumps": jumps, "guided": guided, "classes": classes, "tokens": tokens}
    backbone = UNetBackbone(shape, width, levels, depth, attention=attention, patch=patch, **told)
    return EDMDenoiser(backbone, shape, sigma_data, classes, floor=floor)
