"""Generators that bring a sampler of few calls along, of one denoiser or of two."""

from __future__ import annotations

from limbeck.diffusion.few_step import Rule, few_levels
from limbeck.diffusion.grids import karras_grid
from limbeck.diffusion.hybrid import Hybrid
from limbeck.diffusion.models.generators import _network
from limbeck.diffusion.preset import SOLVERS, Preset
from limbeck.errors import UserError
from limbeck.registry import ModelBlock, register


@register("model", gives={"samples"})
def preset(
    *,
    net: ModelBlock,
    calls: int = 5,
    order: int = 2,
    levels: tuple[float, ...] | None = None,
    guidance: float = 1.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    classes: int | None = None,
) -> Preset:
    """A denoiser with a sampler of few calls, whose settings belong to the model (method ``few_step_hparams``).

    Args:
        net: the denoiser: the teacher's network, or an exact teacher.
        calls: calls of the network for a sample.
        order: of the multistep solver; 1 is DDIM, 2 and 3 are DPM-Solver++.
        levels: of the calls, falling, ``calls`` of them; by default EDM's grid.
        guidance: scale of classifier-free guidance at every call; 1 is none.
        sigma_min: the grid's lowest level.
        sigma_max: the grid's highest level, that of pure noise.
        rho: the grid's curvature.
        shape: of one sample, for a network that does not say.
        sigma_data: standard deviation of the data, for a network that does not say.
        classes: number of classes, for a network that does not say.
    """
    network = _network("preset", net, shape, sigma_data, classes)
    if order not in SOLVERS:
        raise UserError(f"preset: order must be one of {', '.join(map(str, SOLVERS))}, not {order}")
    if levels is None:
        if calls < 1 or not 0 < sigma_min < sigma_max:
            raise UserError("preset: calls >= 1 and 0 < sigma_min < sigma_max must hold")
        levels = tuple(karras_grid(calls, sigma_min, sigma_max, rho)[:-1].tolist())
    elif len(levels) != calls or list(levels) != sorted(levels, reverse=True) or min(levels) <= 0:
        raise UserError(f"preset: levels must be calls: {calls} falling numbers above 0, not {list(levels)}")
    return Preset(network, levels, order, guidance, sigma_min=sigma_min, sigma_max=sigma_max)


@register("model", gives={"samples"})
def hybrid(
    *,
    net: ModelBlock,
    base: ModelBlock,
    nfe: int = 4,
    rule: Rule = "renoise",
    first: int = 1,
    fine: int = 4,
    guidance: float = 1.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    classes: int | None = None,
) -> Hybrid:
    """A few-step generator whose first steps the teacher takes when it samples (method ``diversity_distill``).

    Args:
        net: the distilled network.
        base: the teacher's network, or an exact teacher.
        nfe: calls of the distilled network alone; the levels follow from it.
        rule: between two calls, as of ``few_step``.
        first: transitions between levels that the base takes.
        fine: calls of the base for these.
        guidance: scale of classifier-free guidance of the base.
        sigma_min: the grid's lowest level.
        sigma_max: the grid's highest level, that of pure noise.
        rho: the grid's curvature.
        shape: of one sample, for a network that does not say.
        sigma_data: standard deviation of the data, for a network that does not say.
        classes: number of classes, for a network that does not say.
    """
    if not 0 <= first < nfe or fine < 1 or not 0 < sigma_min < sigma_max:
        raise UserError("hybrid: 0 <= first < nfe, fine >= 1 and 0 < sigma_min < sigma_max must hold")
    network = _network("hybrid", net, shape, sigma_data, classes)
    if rule == "map" and not getattr(network, "jumps", False):
        raise UserError(f"hybrid: rule: map needs a network that knows where it goes: '{net.name}' with jumps: true")
    return Hybrid(
        network,
        _network("hybrid", base, shape, sigma_data, classes),
        few_levels(nfe, sigma_min, sigma_max, rho),
        rule,
        first=first,
        fine=fine,
        guidance=guidance,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )
