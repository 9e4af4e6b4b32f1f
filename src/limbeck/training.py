"""From a recipe's blocks to a trained student: what one arm of a run does."""

from __future__ import annotations

import copy
import json
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from torch import nn

from limbeck.arms import PhaseRecipe, phase_recipes
from limbeck.data import load_data
from limbeck.data.base import Data, DataSpec
from limbeck.data.stream import NoData, Stream
from limbeck.data.together import Streams
from limbeck.engine import rng
from limbeck.engine.best import Best
from limbeck.engine.checkpoint import write_json
from limbeck.engine.learner import LearnerSettings
from limbeck.engine.loop import Loop, LoopSettings, Outcome
from limbeck.engine.method import Method, Parts
from limbeck.engine.progress import Logger, TensorBoard, say
from limbeck.engine.schedules import Schedule
from limbeck.engine.teacher import Teacher
from limbeck.engine.validation import Validator
from limbeck.errors import UserError
from limbeck.export import store
from limbeck.export.store import Stored
from limbeck.models.building import build_model
from limbeck.processes import once
from limbeck.registry import Block, build, find, nearest

if TYPE_CHECKING:
    from limbeck.recipe import Recipe

DONE = "done.json"
MODEL = store.MODEL
Weights = dict[str, torch.Tensor]


@dataclass
class Trained:
    """A finished arm on disk.

    Attributes:
        folder: holds ``model/``, ``metrics.jsonl`` and ``done.json``.
        numbers: steps, seconds, warnings and the last logged values.
        found: whether it was there before.
    """

    folder: Path
    numbers: dict[str, Any]
    found: bool = False

    @property
    def model(self) -> Stored:
        """The delivered model, read from disk."""
        return store.load(self.folder / MODEL)


@dataclass
class Ingredients:
    """What arms of one run share: data by stream, teachers by role, the device, and where to write."""

    data: Mapping[str, Data]
    teachers: Mapping[str, Teacher]
    fabric: Fabric
    quiet: bool = False

    @property
    def main(self) -> Data:
        """The first stream's data: what is judged on."""
        return next(iter(self.data.values())) if self.data else Data(DataSpec(task="generation"))

    @property
    def offers(self) -> dict[str, Any]:
        """What models may ask for by name."""
        teacher = next(iter(self.teachers.values()), None)
        shape = {"dim": getattr(teacher.module, "dim", None)} if teacher and not self.data else {}
        data = self.main if self.data else None
        return {**self.main.spec.offers(), "data": data, "teachers": self.teachers or None, **shape}


def train(
    recipe: Recipe, ingredients: Ingredients, folder: Path, *, seed: int, key: str, label: str = "student"
) -> Trained:
    """Train the recipe's student into ``folder``, or find it there.

    Args:
        recipe: its student, method, train and phases blocks are used.
        ingredients: data, teachers and device.
        folder: of this arm alone.
        seed: of weights, order and noise.
        key: what the result depends on; a finished folder of another key is an error of the caller.
        label: shown with the progress.
    """
    fabric = ingredients.fabric
    done = _read_done(folder, key) if fabric.global_rank == 0 else None
    done = fabric.broadcast(done)
    if done is not None:
        return Trained(folder, done["numbers"], found=True)
    began, phases = time.time(), phase_recipes(recipe)
    kept: dict[str, Weights] = {}
    outcomes: list[Outcome] = []
    for index, part in enumerate(phases):
        stored = start_student(recipe, ingredients, seed)
        before = phases[index - 1].title if index else None
        _start_phase(stored, part.start or before, kept)
        last = index == len(phases) - 1
        name = label if len(phases) == 1 else f"{label}, {part.title}"
        place = folder if last else folder / f"phase-{index}"
        outcomes.append(_train_phase(part, _of_phase(part, recipe, ingredients), stored, place, seed, name, index))
        kept[part.title] = _delivered(part.recipe, outcomes[-1])
    numbers = {
        "steps": sum(o.steps for o in outcomes),
        "seconds": round(sum(o.seconds for o in outcomes), 3),
        "warnings": [warning for o in outcomes for warning in o.warnings],
        "last": outcomes[-1].last,
    }

    def write() -> None:
        # A new module, because the trained one may be sharded, or carry the hooks of its method.
        fresh = start_student(recipe, ingredients, seed)
        fresh.module.load_state_dict(kept[phases[-1].title])
        store.save(folder / MODEL, fresh, tokenizer=ingredients.main.extra.get("tokenizer"))
        done = {"key": key, "numbers": numbers, "finished": began, "python": platform.python_version()}
        write_json(folder / DONE, done)

    once(fabric, write)
    return Trained(folder, numbers)


def _start_phase(stored: Stored, start: str | Path | None, kept: Mapping[str, Weights]) -> None:
    """Give the student the weights that a phase starts from: an earlier phase's, or those of a file or folder."""
    if isinstance(start, Path):
        store.load_weights(stored.module, start / store.WEIGHTS if start.is_dir() else start)
    elif start is not None:
        stored.module.load_state_dict(kept[start])


def _of_phase(phase: PhaseRecipe, recipe: Recipe, ingredients: Ingredients) -> Ingredients:
    """The ingredients with the data of a phase that brings its own."""
    return replace(ingredients, data=data_of(phase.recipe, recipe, ingredients.data))


def data_of(own: Recipe, recipe: Recipe, loaded: Mapping[str, Data]) -> Mapping[str, Data]:
    """The data of a variant of a recipe: what is loaded where its block is the recipe's, else loaded now."""
    if own.data == recipe.data:
        return loaded
    return {n: loaded[n] if block == recipe.data.get(n) else load_data(block) for n, block in own.data.items()}


def start_student(recipe: Recipe, ingredients: Ingredients, seed: int) -> Stored:
    """The student as it starts: fresh weights from the seed, or those at the recipe's path."""
    student, spec = recipe.student, ingredients.main.spec
    if _quantised(student.block):
        raise UserError("student: weights that are quantised do not train; 'export: [int8]' packs the trained student")
    stored = build_model(student.block, offers=ingredients.offers, seed=seed, path=student.path, spec=spec.as_dict())
    for pattern in student.freeze:
        matched = [p for n, p in stored.module.named_parameters() if fnmatch(n, pattern)]
        if not matched:
            raise UserError(f"student.freeze: no parameter is called like '{pattern}'")
        for p in matched:
            p.requires_grad_(False)
    return stored


def _quantised(block: Block) -> bool:
    inside = any(_quantised(value) for value in block.args.values() if isinstance(value, Block))
    return inside or bool(block.args.get("quantise"))


def make_method(block: Block) -> tuple[Method, dict[str, Schedule]]:
    """The method with its scalars at their first values, and the schedules that move them."""
    schedules: dict[str, Schedule] = {}
    return build("method", _unschedule_method(block, "", schedules)), schedules


def _unschedule(value: Any, path: str, param: Any, schedules: dict[str, Schedule]) -> Any:
    if isinstance(value, Block) and param is not None and "float" in param.source:
        schedules[path] = build("schedule", value)
        return schedules[path].value(0.0, 0)
    if isinstance(value, Mapping):
        inside = _unschedule_method if param is not None and "MethodBlock" in param.source else _unschedule_loss
        return {k: inside(v, f"{path}.{k}", schedules) for k, v in value.items()}
    return value


def _unschedule_method(value: Any, path: str, schedules: dict[str, Schedule]) -> Any:
    """A method, or one inside a mixture (at ``path``): its arguments are its attributes."""
    if not isinstance(value, Block):
        return value
    part = find("method", value.name)
    within = f"{path}." if path else ""
    args = {k: _unschedule(v, f"{within}{k}", part.param(k), schedules) for k, v in value.args.items()}
    return Block(value.name, args)


def _unschedule_loss(value: Any, path: str, schedules: dict[str, Schedule]) -> Any:
    """A loss block inside a composition: its weight is an attribute of the wire, the rest are its options."""
    if not isinstance(value, Block):
        return value
    part = find("loss", value.name)
    places = {k: k if k == "weight" else f"options.{k}" for k in value.args}
    return Block(
        value.name,
        {k: _unschedule(v, f"{path}.{places[k]}", part.param(k), schedules) for k, v in value.args.items()},
    )


def _train_phase(
    phase: PhaseRecipe, ingredients: Ingredients, stored: Stored, folder: Path, seed: int, label: str, index: int
) -> Outcome:
    recipe, fabric = phase.recipe, ingredients.fabric
    method, schedules = make_method(recipe.method)
    _freeze_all_but(stored, phase.parameters)
    teachers = {role: _to_train_with(teacher, fabric) for role, teacher in ingredients.teachers.items()}
    with hooks_kept(t.module for t in teachers.values()):
        rng.seed(seed + 1)
        method.setup(_parts(stored, teachers, ingredients))
        _check_roles(phase, method)
        stream = make_stream(recipe, method, ingredients, seed)
        settings = loop_settings(
            recipe, stream, schedules, seed=seed, label=label, index=index, quiet=ingredients.quiet
        )
        settings = replace(settings, trains=phase.learners)
        _say_what_trains(method, settings, ingredients)
        _say_what_is_left_out(phase.recipe, method, settings, ingredients)
        rng.seed(seed + 2 + fabric.global_rank)
        validator, best = _validation(recipe, ingredients, stored)
        loggers = _loggers(folder, fabric)
        loop = Loop(method, stream, settings, folder, fabric, validator=validator, best=best, loggers=loggers)
        return loop.fit()


def _parts(stored: Stored, teachers: Mapping[str, Teacher], ingredients: Ingredients) -> Parts:
    streams = {name: data.train for name, data in ingredients.data.items() if data.train is not None}
    held_out = {name: data.val for name, data in ingredients.data.items() if data.val is not None}
    offers, spec = ingredients.offers, ingredients.main.spec
    return Parts(stored.module, dict(teachers), spec, offers, streams, ingredients.quiet, held_out)


def _to_train_with(teacher: Teacher, fabric: Fabric) -> Teacher:
    """The teacher in its mode; a copy where the training will shard it, because it is asked alone again later."""
    if isinstance(fabric.strategy, ModelParallelStrategy) and teacher.parameters():
        own = Teacher(copy.deepcopy(teacher.module), teacher.gives, teacher.name, teacher.mode)
        own.stored, own._hash = teacher.stored, teacher._hash
        return own
    teacher.module.train(teacher.mode == "batch_stats")
    return teacher


@contextmanager
def hooks_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put the forward hooks of modules back as they were: a method's taps would slow what is measured later.

    Those that transformers installs once to hand out hidden states stay: it would not install them again.
    """
    kept = [(m._forward_hooks, dict(m._forward_hooks)) for module in modules for m in module.modules()]
    try:
        yield
    finally:
        for hooks, before in kept:
            for number in [n for n, hook in hooks.items() if n not in before and not _is_transformers(hook)]:
                del hooks[number]


def _is_transformers(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def _check_roles(phase: PhaseRecipe, method: Method) -> None:
    # With phases, train.learners may speak of the learners of another phase's method.
    named = {
        "phases: learners": phase.learners or (),
        "train.learners": () if phase.title else phase.recipe.train.learners,
    }
    for place, roles in named.items():
        for role in roles:
            if role not in method.learners:
                hint = nearest(role, method.learners)
                says = f"did you mean '{hint}'?" if hint else f"it has {', '.join(method.learners)}"
                raise UserError(f"{place}: method {phase.recipe.method.name} has no learner '{role}'; {says}")


def _say_what_trains(method: Method, settings: LoopSettings, ingredients: Ingredients) -> None:
    if ingredients.quiet or ingredients.fabric.global_rank:
        return
    parts = []
    for role, module in method.learners.items():
        if settings.trains is None or role in settings.trains:
            parameters = list(module.parameters())
            trains = sum(p.numel() for p in parameters if p.requires_grad)
            of_role = "" if len(method.learners) == 1 else f" of {role}"
            parts.append(f"{trains:,} of {sum(p.numel() for p in parameters):,} parameters{of_role}")
    say(f"{settings.label}: trains {', '.join(parts) or 'nothing'}, {settings.steps:,} steps")
    if follows := what_follows(method):
        say(f"{settings.label}: {follows}")


def _say_what_is_left_out(recipe: Recipe, method: Method, settings: LoopSettings, ingredients: Ingredients) -> None:
    """An arm of another method trains a learner of the same role otherwise, which nobody sees in a recipe."""
    quiet = ingredients.quiet or ingredients.fabric.global_rank
    for role in () if quiet else recipe.left_out:
        if role in method.learners:
            say(
                f"{settings.label}: train.learners.{role} of the recipe is left out in an arm of another method, which "
                f"has a learner of that name; say in the arm how it is to be trained"
            )


def what_follows(method: Method) -> str:
    """What student and method settle that the recipe leaves to them, in words; empty where they say nothing.

    Args:
        method: after its ``setup``. Both it and the student may say something: ``says()``.
    """
    own = getattr(method.learners.get("student"), "says", None)
    return "; ".join([*(own() if own is not None else ()), *method.says()])


def phases_follow(recipe: Recipe, ingredients: Ingredients) -> dict[str, str]:
    """:func:`what_follows` by the title of each phase that has something to say, with nothing trained."""
    found = {}
    for phase in phase_recipes(recipe):
        own = _of_phase(phase, recipe, ingredients)
        method, _ = make_method(phase.recipe.method)
        with hooks_kept(t.module for t in own.teachers.values()):
            method.setup(_parts(start_student(recipe, own, recipe.seed), own.teachers, own))
        found[phase.title] = what_follows(method)
    return {title: follows for title, follows in found.items() if follows}


def make_stream(recipe: Recipe, method: Method, ingredients: Ingredients, seed: int) -> Any:
    """The stream of global batches that the recipe asks for, cut for this process.

    Raises:
        UserError: a method that compares samples cannot have its batch cut; data is missing.
    """
    t, fabric = recipe.train, ingredients.fabric
    cut: dict[str, Any] = {"rank": fabric.global_rank, "world": fabric.world_size, "accumulate": t.accumulate}
    if method.couples_samples and t.accumulate > 1:
        raise UserError(f"method {recipe.method.name} compares the samples of a batch: train.accumulate must be 1")
    if len(ingredients.data) > 1 and t.accumulate > 1 and type(method).count is Method.count:
        raise UserError(f"method {recipe.method.name} says no count() for several streams: train.accumulate must be 1")
    if (method.data_free and not method.data_optional) or not ingredients.data:
        return NoData(t.batch_size, **cut)
    views = recipe.cache.views if recipe.cache else None
    streams = {}
    for name, data in ingredients.data.items():
        if data.train is None:
            raise UserError(f"data '{name}' has no training split, which method {recipe.method.name} needs")
        size = recipe.stream_batch.get(name, t.batch_size)
        streams[name] = Stream(data.train, size, seed, views=views, workers=t.workers, **cut)
    return next(iter(streams.values())) if len(streams) == 1 else Streams(streams)


def loop_settings(
    recipe: Recipe, stream: Any, schedules: Mapping[str, Schedule], *, seed: int, label: str, index: int, quiet: bool
) -> LoopSettings:
    """The loop's settings from the ``train`` block; epochs become steps here."""
    t = recipe.train
    per_epoch = stream.steps_per_epoch
    if t.steps is None and not per_epoch:
        raise UserError(f"method {recipe.method.name} uses no data, so it has no epochs: give train.steps")
    steps = t.steps if t.steps is not None else max(round((t.epochs or 20) * per_epoch), 1)
    every = max(round(t.validate_every * per_epoch), 1) if per_epoch else max(steps // 20, 1)
    default = learner_settings(t, None)
    return LoopSettings(
        steps=steps,
        learners={role: learner_settings(t, own) for role, own in t.learners.items()},
        default=default,
        schedules=schedules,
        log_every=max(min(t.log_every, steps // 20), 1),
        validate_every=every,
        checkpoint_seconds=60.0 if t.checkpoint_every is None else t.checkpoint_every,
        compile=t.compile,
        phase=index,
        seed=seed,
        label=label,
        quiet=quiet,
    )


def learner_settings(t: Any, own: Any) -> LearnerSettings:
    """One learner's settings: its own where the recipe gives them, the ``train`` block's elsewhere."""

    def pick(name: str) -> Any:
        value = getattr(own, name, None) if own is not None else None
        return getattr(t, name) if value is None else value

    return LearnerSettings(
        optimizer=pick("optimizer"),
        schedule=build("schedule", pick("schedule")),
        clip=pick("clip"),
        ema=tuple(pick("ema")),
        every=getattr(own, "every", 1) if own is not None else 1,
    )


def _validation(recipe: Recipe, ingredients: Ingredients, stored: Stored) -> tuple[Validator | None, Best | None]:
    data, t = ingredients.main, recipe.train
    source = data.val or data.test
    if source is None or "logits" not in stored.gives or data.spec.task == "generation":
        return None, None
    check_choice(recipe, data)
    chosen = t.early_stop or t.best
    best = None
    if chosen or t.deliver == "best":
        metric, mode = (chosen.metric, chosen.mode) if chosen else ("nll", "min")
        best = Best(metric, mode, t.early_stop.patience if t.early_stop else None)
    return Validator(source), best


def check_choice(recipe: Recipe, data: Data) -> None:
    """Refuse to choose weights by the test split.

    Raises:
        UserError: the best weights or an early stop are asked for, and the data has no validation split.
    """
    t = recipe.train
    if (t.early_stop or t.best or t.deliver == "best") and data.val is None:
        raise UserError("choosing the best or stopping early needs a validation split: give data.val_size")


def _loggers(folder: Path, fabric: Fabric) -> Sequence[Logger]:
    if fabric.global_rank or find_spec("tensorboard") is None:
        return []
    return [TensorBoard(folder / "tensorboard")]


def _freeze_all_but(stored: Stored, patterns: tuple[str, ...] | None) -> None:
    if patterns is None:
        return
    matched = 0
    for name, p in stored.module.named_parameters():
        wanted = any(fnmatch(name, pattern) for pattern in patterns)
        matched += wanted
        p.requires_grad_(wanted and p.requires_grad)
    if not matched:
        raise UserError(f"phases: no parameter of the student is called like {', '.join(patterns)}")


def _delivered(recipe: Recipe, outcome: Outcome) -> dict[str, torch.Tensor]:
    wanted = recipe.train.deliver
    if wanted not in outcome.student:
        raise UserError(f"train.deliver is '{wanted}', but this run kept {', '.join(outcome.student)}")
    return outcome.student[wanted]


def _read_done(folder: Path, key: str) -> dict[str, Any] | None:
    try:
        done = json.loads((folder / DONE).read_text(encoding="utf8"))
    except (OSError, json.JSONDecodeError):
        return None
    return done if done.get("key") == key and (folder / MODEL).is_dir() else None
