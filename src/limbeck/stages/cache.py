"""Storing teacher outputs before training, so that the teacher runs once per sample and view."""

from __future__ import annotations

import warnings
from collections.abc import Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.data.base import Source
from limbeck.engine.cache import BY_TOKENS, CacheSpec, TeacherCache, TokenCache, fill, fill_tokens
from limbeck.engine.progress import Progress
from limbeck.engine.teacher import Teacher
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
    if context.recipe.cache is None:
        return
    check_cache(context.recipe)
    source = context.ingredients.main.train
    if source is None:
        raise UserError("cache: the data has no training split to store teacher outputs for")
    spec = cache_spec(context.recipe)
    needs = find("method", context.recipe.method.name).facts.get("needs", {})
    for role, teacher in context.teachers.items():
        signals = frozenset(needs.get(role, needs.get("*", {"logits"})))
        folder = cache_root() / "signals" / f"{teacher.hash[:16]}-{_of_data(source, spec)[:16]}-{spec.key(signals)}"
        context.once(partial(_fill, context, teacher, source, folder, spec, signals))
        says = ""
        if spec.mode in BY_TOKENS:
            own = source.spec.tokenizer_hash
            kept = TokenCache.open(folder, teacher_hash=teacher.hash, tokenizer=own)
            teacher.stored, says = kept, f"; {kept.says()}"
        else:
            teacher.stored = TeacherCache.open(folder, teacher_hash=teacher.hash, fingerprint=source.fingerprint)
        context.say(f"cache: {role}'s {', '.join(sorted(signals))} from {folder}{says}")


def _of_data(source: Source, spec: CacheSpec) -> str:
    """What of the data a cache is tied to: its content, or, where rows are found by their tokens, the tokenizer."""
    return f"text{source.spec.tokenizer_hash or ''}" if spec.mode in BY_TOKENS else source.fingerprint


def _fill(context: Context, teacher: Teacher, source: Source, folder: Path, spec: CacheSpec, signals: Set[str]) -> None:
    """Complete the stored outputs of one teacher and repeat some of them live; its warnings go into the report."""
    settings, device = context.recipe.cache, context.fabric.device
    assert settings is not None
    teacher.module.to(device)
    bar = Progress(f"cache: {teacher.name}", len(source) * len(spec.view_numbers), quiet=context.quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come with the cache, too
        shown: dict[str, Any] = {"device": device, "progress": lambda done, total: bar.update(done)}
        kept: TokenCache | TeacherCache
        if spec.mode in BY_TOKENS:
            kept = fill_tokens(folder, teacher, source, spec, batch_size=256, **shown)
        else:
            kept = fill(folder, teacher, source, spec, signals, batch_size=256, **shown)
    kept.verify(teacher.compute, source, settings.verify, device=device)
    for warning in kept.warnings:
        context.say(f"cache: {warning}")
    context.warnings += kept.warnings


def check_cache(recipe: Recipe) -> None:
    """Refuse a ``cache`` block that could not serve the run, from the recipe alone.

    Raises:
        UserError: several streams or phases with data of their own, whose samples the cache could not tell apart; a
            method that looks inside the teacher; or a truncated cache for a method that needs whole logits.
    """
    if recipe.cache is None:
        return
    if len(recipe.data) > 1:
        raise UserError(f"cache: stores outputs for one stream of data, and there are {', '.join(recipe.data)}")
    if any("data" in phase.overrides for phase in recipe.phases):
        raise UserError("cache: stores outputs for the run's data, and a phase brings its own: leave one of them out")
    method = find("method", recipe.method.name)
    if method.facts.get("live", False):
        raise UserError(f"cache: method {method.name} looks inside the teacher, and a cache holds its outputs alone")
    mode = recipe.cache.mode
    if mode in ("topk", "packed") and not method.facts.get("truncated", False):
        raise UserError(f"cache: method {method.name} needs whole logits, so mode {mode} does not serve it; use fp16")
    if mode == "sampled" and not method.facts.get("sampled", False):
        raise UserError(f"cache: method {method.name} does not learn from draws: use mode packed or fp16, or sparse_kd")
    cache_spec(recipe)


def cache_spec(recipe: Recipe) -> CacheSpec:
    """What the recipe's ``cache`` block asks for; a truncated cache is cut at the method's own temperature."""
    settings, param = recipe.cache, find("method", recipe.method.name).param("temperature")
    assert settings is not None
    temperature = 1.0
    if settings.mode in ("topk", *BY_TOKENS) and param is not None:
        temperature = recipe.method.args.get("temperature", param.default)
    if not isinstance(temperature, int | float):
        raise UserError(
            f"cache: mode {settings.mode} needs a fixed method.temperature: a scheduled one needs mode fp16 or full"
        )
    return CacheSpec(
        mode=settings.mode,
        k=settings.k,
        views=settings.views,
        budget=settings.budget,
        temperature=float(temperature),
        bits=settings.bits,
        draws=settings.draws,
        proposal=settings.proposal,
        seed=settings.seed,
    )
