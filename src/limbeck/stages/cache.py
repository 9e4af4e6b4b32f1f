"""Storing teacher outputs before training, so that the teacher runs once per sample and view."""

from __future__ import annotations

from limbeck.engine.cache import CacheSpec, TeacherCache, fill
from limbeck.errors import UserError
from limbeck.paths import cache_root
from limbeck.registry import find, register
from limbeck.run import Context


@register("stage")
def cache(context: Context) -> None:
    """Fill or open the cache of every teacher, check it against the live teacher, and serve from it."""
    settings = context.recipe.cache
    if settings is None:
        return
    source = context.ingredients.main.train
    if source is None:
        raise UserError("cache: the data has no training split to store teacher outputs for")
    needs = find("method", context.recipe.method.name).facts.get("needs", {})
    spec = CacheSpec(mode=settings.mode, k=settings.k, views=settings.views, budget=settings.budget)
    for role, teacher in context.teachers.items():
        signals = set(needs.get(role, needs.get("*", {"logits"})))
        folder = cache_root() / "signals" / f"{teacher.hash[:16]}-{source.fingerprint[:16]}-{spec.mode}-{spec.views}"
        if context.first:
            kept = fill(folder, teacher, source, spec, signals, batch_size=256)
            kept.verify(teacher, source, settings.verify)
        context.fabric.barrier()
        teacher.stored = TeacherCache.open(folder, teacher_hash=teacher.hash, fingerprint=source.fingerprint)
        context.say(f"cache: {role}'s {', '.join(sorted(signals))} from {folder}")
