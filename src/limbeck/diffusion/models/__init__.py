"""Diffusion models that a recipe can name: exact teachers, denoising networks, and generators made of them."""

from __future__ import annotations

from limbeck.errors import UserError


def positive(name: str, **values: float) -> None:
    """For arguments of a model.

    Raises:
        UserError: one is not above 0.
    """
    for key, value in values.items():
        if value <= 0:
            raise UserError(f"{name}: {key} must be positive, not {value}")
