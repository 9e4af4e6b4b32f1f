"""Delivering the student: its folder with a model card, and the formats that the recipe asks for."""

from __future__ import annotations

from limbeck.registry import register
from limbeck.run import Context


@register("stage")
def export(context: Context) -> None:
    """Copy the student to ``student/``."""
