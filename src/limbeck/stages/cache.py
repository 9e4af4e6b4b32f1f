"""Storing teacher outputs before training, so that the teacher runs once per sample and view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.engine.cache import CacheSpec, TeacherCache, fill
from limbeck.errors import UserError
from limbeck.paths import cache_root
from limbeck.registry import find, register
from limbeck.run import Context

if TYPE_CHECKING:
    from limbeck.recipe import Recipe


@register("stage")
def cache(context: Context) -> None:
    """Fill or open the cache of every teacher, check it against the live teacher, and serve from it.

    Raises:
        UserError: no training split, a method that needs what the cache cannot give, a budget that is too small, or
            stored outputs that the live teacher does not repeat.
    """
    settings = context.recipe.cache
    if settings is None:
        return
    source = context.ingredients.main.train
    if source is None:
        raise UserError("cache: the data has no training split to store teacher outputs for")
    method = find("method", context.recipe.method.name)
    if settings.mode == "topk" and not method.facts.get("truncated", False):
        raise UserError(f"cache: method {method.name} needs whole logits, so mode topk does not serve it; use fp16")
    spec = cache_spec(context.recipe)
    needs = method.facts.get("needs", {})
    for role, teacher in context.teachers.items():
        signals = set(needs.get(role, needs.get("*", {"logits"})))
        folder = cache_root() / "signals" / f"{teacher.hash[:16]}-{source.fingerprint[:16]}-{spec.key(signals)}"
        context.once(partial(_fill, context, teacher, source, folder, spec, signals))
        teacher.stored = TeacherCache.open(folder, teacher_hash=teacher.hash, fingerprint=source.fingerprint)
        context.say(f"cache: {role}'s {', '.join(sorted(signals))} from {folder}")


def cache_spec(recipe: Recipe) -> CacheSpec:
    """What the recipe's ``cache`` block asks for; a truncated cache is cut at the method's own temperature."""
    settings, param = recipe.cache, find("method", recipe.method.name).param("temperature")
    assert settings is not None
    temperature = 1.0
    if settings.mode == "topk" and param is not None:
        temperature = recipe.method.args.get("temperature", param.default)
    if not isinstance(temperature, int | float):
        raise UserError("cache: mode topk needs a fixed method.temperature: a scheduled one needs mode fp16 or full")
    return CacheSpec(
        mode=settings.mode, k=settings.k, views=settings.views, budget=settings.budget, temperature=float(temperature)
    )
