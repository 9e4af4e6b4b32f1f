"""Networks with adapters that a recipe can name."""

from __future__ import annotations

from limbeck.diffusion.adapters import GuidanceAdapted
from limbeck.errors import UserError
from limbeck.registry import ModelBlock, build, register


@register("model", gives={"denoiser", "samples"})
def guidance_adapter(
    *,
    base: ModelBlock,
    width: int = 64,
    targets: tuple[str, ...] | None = None,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    classes: int | None = None,
) -> GuidanceAdapted:
    """A denoising network of which only small adapters learn, told the strength of guidance (arXiv 2503.07274).

    Args:
        base: the network.
        width: of the adapters.
        targets: paths of the modules that have one; by default its blocks or hidden layers.
        shape: of one sample, for a base that does not say.
        sigma_data: standard deviation of the data, for a base that does not say.
        classes: number of classes, for a base that does not say.
    """
    if width < 1:
        raise UserError(f"guidance_adapter: width must be 1 or more, not {width}")
    facts = {"shape": shape, "sigma_data": sigma_data, "classes": classes}
    return GuidanceAdapted(build("model", base, offers=facts), width, targets)
