"""A generator that is one function of the sample alone."""

from __future__ import annotations

from limbeck.diffusion.idempotent import Idempotent
from limbeck.diffusion.models import positive
from limbeck.diffusion.models.generators import few_step
from limbeck.errors import UserError
from limbeck.registry import ModelBlock, register


@register("model", gives={"samples"})
def idempotent(
    *,
    net: ModelBlock,
    sigma: float = 1.0,
    again: tuple[float, ...] = (),
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    classes: int | None = None,
) -> Idempotent:
    """A function that makes data of noise and leaves data as they are, out of a denoising network at a fixed level.

    Args:
        net: the denoising network.
        sigma: deviation of the noise that it makes data of; about the data's own lets it be the identity on them.
        again: falling levels below ``sigma``; noise of each is put on the result and the function applied once more.
        sigma_min: lowest level at which the teacher is asked.
        sigma_max: highest level at which the teacher is asked.
        shape: of one sample, for a network that does not say.
        sigma_data: standard deviation of the data, for a network that does not say.
        classes: number of classes, for a network that does not say.
    """
    positive("idempotent", sigma=sigma, sigma_min=sigma_min)
    levels = (sigma, *again)
    if list(levels) != sorted(levels, reverse=True) or min(levels) <= 0 or sigma_min >= sigma_max:
        raise UserError("idempotent: 'again' must fall below sigma and stay above 0, and sigma_min < sigma_max hold")
    network = few_step(net=net, levels=levels, nfe=len(levels), shape=shape, sigma_data=sigma_data, classes=classes)
    return Idempotent(network.net, levels, sigma_min=sigma_min, sigma_max=sigma_max)
