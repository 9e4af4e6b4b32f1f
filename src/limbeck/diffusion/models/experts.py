"""Generators of several networks: one for every step, or one for every part of the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.diffusion.experts import ByClass, ByLevel, contiguous
from limbeck.diffusion.few_step import FewStep, Rule
from limbeck.diffusion.models.generators import few_step
from limbeck.errors import UserError
from limbeck.registry import ModelBlock, register


class Students(FewStep):
    """A generator whose networks share out the classes, so that it always has to be told one."""

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Arguments for one call."""
        return (*super().example_inputs(batch_size), torch.zeros(batch_size, dtype=torch.long))


@register("model", gives={"samples"})
def experts(
    *,
    net: ModelBlock,
    nfe: int = 2,
    rule: Rule = "ode",
    levels: tuple[float, ...] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    classes: int | None = None,
) -> FewStep:
    """A generator of ``nfe`` steps with a network of its own for each.

    Args:
        net: the denoising network, of which there are ``nfe``.
        nfe: steps of a sample.
        rule: between two steps, as of ``few_step``.
        levels: of the steps, falling, ``nfe`` of them; by default as of ``few_step``.
        sigma_min: the grid's lowest level; by default the network's, or EDM's 0.002.
        sigma_max: the grid's highest level, that of pure noise; by default the network's, or EDM's 80.
        rho: the grid's curvature.
        shape: of one sample, for a network that does not say.
        sigma_data: standard deviation of the data, for a network that does not say.
        classes: number of classes, for a network that does not say.
    """

    def one() -> FewStep:
        return few_step(
            net=net, nfe=nfe, rule=rule, levels=levels, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho,
            shape=shape, sigma_data=sigma_data, classes=classes,
        )  # fmt: skip

    made = [one() for _ in range(nfe)]
    like = made[0]
    net_of_all = ByLevel([m.net for m in made], like.levels)
    together = FewStep(net_of_all, like.levels, rule, sigma_min=like.sigma_min, sigma_max=like.sigma_max)
    together.levels_from = like.levels_from
    return together


@register("model", gives={"samples"})
def students(
    *,
    net: ModelBlock,
    count: int = 2,
    owners: tuple[int, ...] | None = None,
    nfe: int = 1,
    rule: Rule = "renoise",
    levels: tuple[float, ...] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    classes: int | None = None,
) -> FewStep:
    """Several generators that share out the classes: a sample costs what one of them does (arXiv 2410.23274).

    Args:
        net: the denoising network, with ``classes``; each generator has one.
        count: generators.
        owners: the number of the generator of each class, from 0; by default classes are shared out evenly, in order.
        nfe: steps of a sample.
        rule: between two steps, as of ``few_step``.
        levels: of the steps, falling, ``nfe`` of them; by default as of ``few_step``.
        sigma_min: the grid's lowest level; by default the network's, or EDM's 0.002.
        sigma_max: the grid's highest level, that of pure noise; by default the network's, or EDM's 80.
        rho: the grid's curvature.
        shape: of one sample, for a network that does not say.
        sigma_data: standard deviation of the data, for a network that does not say.
        classes: number of classes, for a network that does not say.

    Raises:
        UserError: the network has no classes, or they are not shared out among all.
    """

    def one() -> FewStep:
        return few_step(
            net=net, nfe=nfe, rule=rule, levels=levels, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho,
            shape=shape, sigma_data=sigma_data, classes=classes,
        )  # fmt: skip

    made = [one() for _ in range(count)]
    known = made[0].classes if made else None
    if known is None or known < count:
        raise UserError(f"students share out classes: give net at least {max(count, 1)} classes, not {known}")
    shared = list(owners) if owners is not None else contiguous(known, count)
    if len(shared) != known or set(shared) != set(range(count)):
        raise UserError(f"students: owners must name one of {count} for each of {known} classes, and leave none out")
    like = made[0]
    net_of_all = ByClass([m.net for m in made], shared)
    together = Students(net_of_all, like.levels, rule, sigma_min=like.sigma_min, sigma_max=like.sigma_max)
    together.levels_from = like.levels_from
    return together
