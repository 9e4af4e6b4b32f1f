"""Generators out of a denoising network, of one step or of a few."""

from __future__ import annotations

from torch import nn

from limbeck.diffusion.few_step import FewStep, OneStep, Rule, few_levels
from limbeck.diffusion.models import positive
from limbeck.errors import UserError
from limbeck.registry import Block, ModelBlock, build, register


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
    positive("one_step", sigma=sigma)
    return OneStep(_network("one_step", net, shape, sigma_data, classes), sigma)


@register("model", gives={"samples"})
def few_step(
    *,
    net: ModelBlock,
    nfe: int = 1,
    rule: Rule = "renoise",
    levels: tuple[float, ...] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
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
        levels: of the calls, falling, ``nfe`` of them; by default those of the network's own scheduler, or the first
            ``nfe`` of ``nfe + 1`` of EDM's grid.
        sigma_min: the grid's lowest level; by default the network's, or EDM's 0.002.
        sigma_max: the grid's highest level, that of pure noise; by default the network's, or EDM's 80.
        rho: the grid's curvature.
        scale: the strength of guidance asked of a ``guided`` network when it samples.
        shape: of one sample, for a network that does not say.
        sigma_data: standard deviation of the data, for a network that does not say.
        classes: number of classes, for a network that does not say.
    """
    network = _network("few_step", net, shape, sigma_data, classes)
    lowest, highest = getattr(network, "sigma_range", (0.002, 80.0))
    low, high = lowest if sigma_min is None else sigma_min, highest if sigma_max is None else sigma_max
    if nfe < 1 or not 0 < low < high:
        raise UserError("few_step: nfe >= 1 and 0 < sigma_min < sigma_max must hold")
    origin = "levels as given"
    if levels is None:
        own = getattr(network, "levels_for", None)
        levels = tuple(few_levels(nfe, low, high, rho) if own is None else own(nfe, rule))
        origin = f"rho {rho:g}" if own is None else "levels of the network's scheduler"
    elif len(levels) != nfe or list(levels) != sorted(levels, reverse=True) or min(levels) <= 0:
        raise UserError(f"few_step: levels must be nfe: {nfe} falling numbers above 0, not {list(levels)}")
    if rule == "map" and not getattr(network, "jumps", False):
        raise UserError(f"few_step: rule: map needs a network that knows where it goes: '{net.name}' with jumps: true")
    made = FewStep(network, levels, rule, scale=scale, sigma_min=low, sigma_max=high)
    made.levels_from = origin
    return made


def _network(
    name: str, net: Block, shape: tuple[int, ...] | None, sigma_data: float | None, classes: int | None
) -> nn.Module:
    network: nn.Module = build("model", net, offers={"shape": shape, "sigma_data": sigma_data, "classes": classes})
    if not hasattr(network, "shape"):
        raise UserError(f"{name} needs a denoising network, and '{net.name}' does not say the shape of its samples")
    return network
