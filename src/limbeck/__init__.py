"""limbeck: distillation of every kind, configured by recipes and backed by evidence.

The names below are the public API. They are loaded when they are first used, so that ``import limbeck`` and the
command line start without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Batch": "limbeck.engine.method",
    "Clock": "limbeck.engine.method",
    "Data": "limbeck.data.base",
    "DataSpec": "limbeck.data.base",
    "Method": "limbeck.engine.method",
    "Parts": "limbeck.engine.method",
    "Recipe": "limbeck.recipe",
    "RecipeError": "limbeck.recipe",
    "Result": "limbeck.run",
    "Signals": "limbeck.models.forward",
    "Teacher": "limbeck.engine.teacher",
    "Term": "limbeck.engine.method",
    "Update": "limbeck.engine.method",
    "UserError": "limbeck.errors",
    "compare": "limbeck.claims",
    "distill": "limbeck.api",
    "forward": "limbeck.models.forward",
    "load": "limbeck.api",
    "load_recipe": "limbeck.recipe",
    "prove": "limbeck.claims",
    "register": "limbeck.registry",
    "run_recipe": "limbeck.run",
}

__all__ = [
    "Batch",
    "Clock",
    "Data",
    "DataSpec",
    "Method",
    "Parts",
    "Recipe",
    "RecipeError",
    "Result",
    "Signals",
    "Teacher",
    "Term",
    "Update",
    "UserError",
    "__version__",
    "compare",
    "distill",
    "forward",
    "load",
    "load_recipe",
    "prove",
    "register",
    "run_recipe",
]

if TYPE_CHECKING:
    from limbeck.api import distill, load
    from limbeck.claims import compare, prove
    from limbeck.data.base import Data, DataSpec
    from limbeck.engine.method import Batch, Clock, Method, Parts, Term, Update
    from limbeck.engine.teacher import Teacher
    from limbeck.errors import UserError
    from limbeck.models.forward import Signals, forward
    from limbeck.recipe import Recipe, RecipeError, load_recipe
    from limbeck.registry import register
    from limbeck.run import Result, run_recipe


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'limbeck' has no attribute '{name}'")


def __dir__() -> list[str]:
    return list(__all__)
