"""What a run will take, before it starts: everything is built, one step is timed, and nothing is written."""

from __future__ import annotations

import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.data import load_data
from limbeck.engine.devices import launch
from limbeck.engine.progress import duration
from limbeck.engine.teacher import Teacher
from limbeck.models.building import build_model
from limbeck.preflight import preflight
from limbeck.recipe.blocks import AUTO
from limbeck.training import Ingredients, data_of, phases_follow, start_student, train

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

WARM, TIMED, MOST = 2, 5, 1280
"""Steps before the timed ones; timed at first, and at most where they are too short to be told from the rest."""
TELLING = 0.3
"""Seconds that the timed steps should take, and their share of the time that everything before them takes."""
UNSAID = frozenset(
    f"train.{key}"
    for key in ("devices", "accelerator", "strategy", "nodes", "checkpoint_every", "log_every", "deterministic")
)
"""Defaults that the printed plan leaves to ``limbeck check``."""


def estimate_run(recipe: Recipe) -> dict[str, Any]:
    """Bytes of teacher, student, optimizer and cache per device, and the time that the training will take.

    Every part is built and a few steps are trained in a temporary folder; untrained teachers stand in for trained
    ones, which are as large and as fast.

    Raises:
        UserError: anything that would stop the run: files, shapes, a machine that lacks what is asked for.
    """
    from limbeck.run import placement_of

    fabric = launch(placement_of(recipe))
    data = {name: load_data(block) for name, block in recipe.data.items()}
    preflight(recipe, data, fabric)
    ingredients = Ingredients(data, {}, fabric, quiet=True)
    teachers = {}
    for role, block in recipe.teachers.items():
        read = data_of(recipe.of_teacher(role), recipe, data) if block.own_data else data
        own = Ingredients(read, {}, fabric, quiet=True)
        stored = build_model(block.block, offers=own.offers, seed=0, path=block.path)
        teachers[role] = Teacher(stored.module, stored.gives, role, block.mode)
        if block.own_data and teachers[role].tokenizer is None:
            built: Any = stored.module
            built.tokenizer = own.main.extra.get("tokenizer")  # as it will be stored with it
    ingredients = Ingredients(data, teachers, fabric, quiet=True)
    student = start_student(recipe, ingredients, seed=0).module
    facts: dict[str, Any] = {"device": str(fabric.device), "processes": fabric.world_size}
    for role, teacher in teachers.items():
        facts[f"{role} parameters"] = teacher.parameters()
        facts[f"{role} bytes"] = _bytes(teacher.module)
    facts["student parameters"] = sum(p.numel() for p in student.parameters())
    facts["student bytes"] = _bytes(student)
    for title, follows in phases_follow(recipe, ingredients).items():
        facts[f"{title} sets".strip()] = follows
    per_step, steps = _time_steps(recipe, ingredients)
    facts["steps"] = steps
    facts["seconds per step"] = round(per_step, 5)
    facts["training time"] = duration(per_step * steps)
    if fabric.device.type == "cuda":
        facts["peak device bytes"] = torch.cuda.max_memory_allocated(fabric.device)
    if recipe.cache and ingredients.main.train is not None:
        facts["cache bytes"] = _cache_bytes(recipe, ingredients)
    return facts


def plan_lines(recipe: Recipe, offers: Mapping[str, Any], seed: int) -> list[str]:
    """The plan for a terminal: what the recipe says, and where every other value comes from (empty ones left out).

    Args:
        recipe: the recipe.
        offers: facts of the data by name, which fill what models leave out.
        seed: of this run.
    """
    sections: dict[str, dict[str, list[str]]] = {}
    for key, value, where in recipe.plan():
        section, _, rest = key.partition(".")
        if section in ("seed", "phases", "controls", "stages") or not rest or rest.rsplit(".", 1)[-1] == "data":
            continue
        origin = _origin(where)
        shown = offers.get(rest.rsplit(".", 1)[-1], value) if origin == "the data" else value
        if (shown not in (None, [], {}, False, "") and key not in UNSAID) or origin == "":
            rest = rest.removesuffix(".name")
            text = _short(shown) if rest == "name" or rest.isdecimal() else f"{rest}={_short(shown)}"
            if text == AUTO:
                continue
            sections.setdefault(section, {}).setdefault(origin, []).append(text)
    if recipe.phases:
        sections["phases"] = {"": [p.name for p in recipe.phases]}
    sections["controls"] = {"": list(recipe.control_arms) or ["none"]}
    sections["seed"] = {"": [str(seed)]}
    return [line for name, found in sections.items() for line in _section(name, found)]


def _section(name: str, found: Mapping[str, list[str]]) -> list[str]:
    ordered = [origin for origin in ("", "--set", "the data", "default") if origin in found]
    text = "; ".join((f"{origin}: " if origin else "") + ", ".join(found[origin]) for origin in ordered)
    return textwrap.wrap(text, 118, initial_indent=f"  {name:<9} ", subsequent_indent=" " * 12)


def _origin(where: str) -> str:
    return where if where in ("--set", "the data", "default") else "the data" if where.startswith("the data") else ""


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_short, value)) + "]"
    if isinstance(value, dict):
        if list(value) == ["name"]:
            return str(value["name"])
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    return str(value)


def _time_steps(recipe: Recipe, ingredients: Ingredients) -> tuple[float, int]:
    from limbeck.training import loop_settings, make_method, make_stream

    method, schedules = make_method(recipe.method)
    stream = make_stream(recipe, method, ingredients, 0)
    steps = loop_settings(recipe, stream, schedules, seed=0, label="", index=0, quiet=True).steps
    before, timed = _time_training(recipe, ingredients, WARM), TIMED
    while True:
        took = _time_training(recipe, ingredients, WARM + timed) - before
        if took > TELLING * max(before, 1.0) or timed >= MOST:
            return max(took, 0.0) / timed, steps
        timed *= 4


def _time_training(recipe: Recipe, ingredients: Ingredients, steps: int) -> float:
    short = recipe.with_overrides({"phases": None, "train": {"epochs": None, "steps": steps, "validate_every": 1e9}})
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        train(short, ingredients, Path(folder), seed=0, key="plan")
        return time.perf_counter() - began


def _cache_bytes(recipe: Recipe, ingredients: Ingredients) -> int:
    from limbeck.engine.cache import BY_TOKENS, estimate, estimate_tokens
    from limbeck.engine.cache.tokens import learnt
    from limbeck.stages.cache import cache_spec

    source, spec = ingredients.main.train, cache_spec(recipe)
    assert source is not None
    total = 0
    for teacher in ingredients.teachers.values():
        batch = source.batch(torch.arange(min(2, len(source))))
        seen = teacher.compute(batch)
        if spec.mode in BY_TOKENS:
            length = int(learnt(batch).sum(1).max())
            classes = seen.logits.shape[-1] if "logits" in seen else seen.logits_topk.classes
            total += estimate_tokens(spec, classes, len(source) * length, len(source))
            continue
        shapes = {"logits": tuple(seen.logits.shape[1:])}
        total += estimate(spec, shapes, len(source))
    return total


def _bytes(module: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
