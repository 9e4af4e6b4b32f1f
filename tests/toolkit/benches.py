"""A tiny bench for every registered method, made from its own recipe: what the contract tests train.

A method that has a recipe is tried on that recipe, made small by rules that know argument names but no method; one
without is tried on the default of its family. So a method that is added later is covered without a line here.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_origin
from unittest import mock

import torch
import yaml
from torch import Tensor, nn

from limbeck import registry, training
from limbeck.data import load_data
from limbeck.data.base import Data
from limbeck.engine.checkpoint import read_jsonl
from limbeck.engine.devices import launch
from limbeck.engine.loop import Loop
from limbeck.engine.method import Method
from limbeck.engine.teacher import Teacher
from limbeck.losses import IGNORE
from limbeck.models.building import build_model
from limbeck.recipe import Recipe, load_recipe
from limbeck.registry import Part, find
from limbeck.run import Context, placement_of
from limbeck.stages.cache import cache as fill_caches
from limbeck.training import Ingredients, Trained

ROOT = Path(__file__).parents[2]
STEPS, BATCH, ROWS = 6, 16, 64

DIGITS = {"name": "digits", "train_size": ROWS, "test_size": 20}
SIZES = {"train_size": ROWS, "val_size": 20, "test_size": 20, "nodes": ROWS + 20}
TEXT = {"name": "text", "corpus": "grammar", "characters": 4000, "context": 16}
IMAGES = ("digits", "fashion_mnist", "cifar10", "cifar10_lossless")

CAPS = {
    "hidden": 16, "width": 16, "dim": 16, "layers": 2, "depth": 2, "heads": 2, "pairs": 32, "pair_steps": 4,
    "batch_real": 4, "per_class": 2, "synthesis_batch": 32, "ffn": 8, "experts": 4, "expert_epochs": 6, "starts": 3,
    "expert_states": 12, "ahead": 4, "steps": 8, "iterations": 10, "warmup": 2, "fit_epochs": 8, "epochs": 8,
    "new_tokens": 12,
}  # fmt: skip
"""Largest values of sizes that cost time, by argument name. Every other whole number is cut at 64."""

_CLASSIFIERS = {"data": DIGITS, "teacher": {"name": "mlp", "hidden": 16}, "student": {"name": "mlp", "hidden": 8}}
_LANGUAGE_MODEL = {"name": "causal_lm", "hidden": 16, "layers": 1, "heads": 2}
_DENOISER = {"name": "mlp_denoiser", "width": 16, "depth": 1}
DEFAULTS: dict[str, dict[str, Any]] = {
    "general": _CLASSIFIERS,
    "vision": _CLASSIFIERS,
    "language": {"data": TEXT, "teacher": _LANGUAGE_MODEL, "student": _LANGUAGE_MODEL},
    "diffusion": {"teacher": {"name": "gaussian_ring"}, "student": {"name": "one_step", "net": _DENOISER}},
    "condensation": {"data": DIGITS, "student": {"name": "synthetic_images", "per_class": 2}},
}
"""The bench of a family's method that has no recipe."""


@dataclass
class Bench:
    """A method and the small recipe that it is tried on."""

    name: str
    recipe: Recipe

    @property
    def part(self) -> Part:
        """The method as the registry reads it."""
        return find("method", self.name)

    @property
    def method(self) -> type[Method]:
        """Its class."""
        return self.part.load()

    @property
    def couples_samples(self) -> bool:
        """Whether its batch cannot be cut; of a method that is made of others they decide."""
        return training.make_method(self.recipe.method)[0].couples_samples

    def varied(self, **overrides: Any) -> Recipe:
        """The small recipe with blocks laid over it."""
        return self.recipe.with_overrides(overrides) if overrides else self.recipe

    @property
    def needs_logits(self) -> bool:
        """Whether there are teachers, and no more than logits is asked of them."""
        needs = self.part.facts.get("needs", {})
        looks_inside = self.part.facts.get("live", False)
        return bool(self.recipe.teachers) and not looks_inside and all(set(s) <= {"logits"} for s in needs.values())


@functools.cache
def bench_of(name: str) -> Bench:
    """The bench of a method."""
    recipe = small(load_recipe(path)) if (path := recipe_path(name)) else load_recipe(_default_tree(name))
    return Bench(name, recipe)


def methods() -> list[str]:
    """Every method that is registered, but those that other tests made."""
    return [name for name in registry.names("method") if find("method", name).family != "user"]


def recipe_path(name: str) -> Path | None:
    """The recipe of a method: the file that is called like it, else any that names it."""
    named = sorted(ROOT.glob(f"recipes/*/{name}.yaml"))
    return next(iter(named or [p for p in recipe_paths() if _method_in(p) == name]), None)


def recipe_paths() -> list[Path]:
    """Every shipped recipe; what lies in ``benches`` is only there to be extended."""
    return sorted(p for p in ROOT.glob("recipes/**/*.yaml") if p.parent.name != "benches")


@functools.cache
def _method_in(path: Path) -> str | None:
    block = (yaml.safe_load(path.read_text(encoding="utf8")) or {}).get("method") or {}
    return block if isinstance(block, str) else block.get("name")


def _default_tree(name: str) -> dict[str, Any]:
    part = find("method", name)
    tree: dict[str, Any] = copy.deepcopy(DEFAULTS[part.family])
    if not part.facts.get("needs"):
        tree.pop("teacher", None)
    return {"title": name, **tree, "method": {"name": name}, "train": _train({}), "controls": False}


# -- making a recipe small ---------------------------------------------------------------------------------------------


def small(recipe: Recipe) -> Recipe:
    """A recipe with few rows, small networks, a few steps, and nothing but the training."""
    tree = {k: recipe.tree[k] for k in ("title", "data", "teacher", "teachers", "student", "train") if k in recipe.tree}
    tree["method"] = _small_block("method", recipe.method.tree())
    own = DEFAULTS[find("method", recipe.method.name).family]
    tree["student"] = _small_model(tree["student"], own["student"])
    if "teacher" in tree:
        tree["teacher"] = _small_model(tree["teacher"], own.get("teacher"))
    if isinstance(tree.get("teachers"), Mapping):
        tree["teachers"] = {role: _small_model(t, own.get("teacher")) for role, t in tree["teachers"].items()}
    elif "teachers" in tree:
        tree["teachers"] = [_small_model(t, own.get("teacher")) for t in tree["teachers"]]
    if "data" in tree:
        streams = recipe.tree["data"] if set(recipe.data) != {"data"} else None
        tree["data"] = {n: _small_data(b) for n, b in streams.items()} if streams else _small_data(tree["data"])
    tree["train"] = _train(tree.get("train") or {})
    return load_recipe({**tree, "controls": False}, folder=recipe.source.folder)


def _train(given: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in given.items() if k in ("optimizer", "schedule", "clip", "learners", "ema")}
    return {**kept, "steps": STEPS, "batch_size": BATCH, "log_every": 1, "validate_every": 1e9}


def _small_data(block: Any) -> Any:
    block = {"name": block} if isinstance(block, str) else dict(block)
    beside = {k: block[k] for k in ("augment", "batch_size") if k in block}
    if "batch_size" in beside:
        beside["batch_size"] = BATCH
    if block["name"] in IMAGES:
        return {**DIGITS, **beside}
    if block["name"] == "text" and "prompt_field" not in block:
        words = {"tokenizer": block["tokenizer"], "vocab_size": 300} if "tokenizer" in block else {}
        return {**TEXT, **words, **{k: v for k, v in beside.items() if k != "augment"}}
    return {**block, **{k: min(block[k], rows) for k, rows in SIZES.items() if isinstance(block.get(k), int)}}


def _small_model(block: Any, instead: Any) -> Any:
    """The model with sizes cut; one that is downloaded or read from a file gives way to a small one of its family."""
    if not isinstance(block, Mapping):
        return block
    if block.get("hub") or block.get("path"):
        return instead
    kept = {k: v for k, v in block.items() if k not in ("train", "method", "data", "teacher", "teachers")}
    if {"form", "tokens"} & set(block.get("data") or {}):
        kept["data"] = {k: min(v, SIZES[k]) if k in SIZES else v for k, v in block["data"].items()}
    if "tokenizer" in (block.get("data") or {}):
        # A teacher of other tokens stays one; it reads as much text as the student.
        own = {**_small_data({"name": "text", **block["data"]}), "context": 3 * TEXT["context"]}
        kept["data"] = own | ({"vocab_size": 280} if "vocab_size" in own else {})
    return _small_block("model", kept)


def _small_block(kind: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes cut, those that the block leaves to the signature too; nested blocks likewise."""
    part = find(kind, block["name"]) if isinstance(block.get("name"), str) and block["name"] != "auto" else None
    made = {k: _small_value(k, v) for k, v in block.items()}
    if block.get("labels") == "features":
        made["dim"] = block["dim"]  # what the teacher gives, which is not cut below it
    if part and part.facts.get("from_teacher"):
        made |= {"hidden": CAPS["hidden"] // 4}  # cut in earnest: it would be its small teacher nearly as it is
    for p in part.params if part else ():
        if p.name not in made and type(p.default) is int and p.annotation is int:
            cut = _small_value(p.name, p.default)
            made |= {p.name: cut} if cut != p.default else {}
        if get_origin(p.annotation) is Literal and p.name in block:
            made[p.name] = block[p.name]  # one of a few allowed values is not ours to cut
    return made


def _small_value(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        nested = isinstance(value.get("name"), str)
        return _small_block("model", value) if nested and _is_model(value["name"]) else dict(value)
    if type(value) is int:
        return min(value, CAPS.get(name, 64))
    return value


def _is_model(name: str) -> bool:
    return name in registry.names("model")


# -- what a run is made of ---------------------------------------------------------------------------------------------


def ingredients_of(recipe: Recipe, wrap: Callable[[Any], Any] | None = None) -> Ingredients:
    """Data, untrained teachers and the device; ``wrap`` may change every training source."""
    fabric = _fabric(placement_of(recipe))
    data = {name: _data(json.dumps(block.tree(), default=str)) for name, block in recipe.data.items()}
    if wrap is not None:
        data = {name: replace(d, train=wrap(d.train)) for name, d in data.items()}
    bare = Ingredients(data, {}, fabric, quiet=True)
    teachers = {role: _teacher(role, recipe, bare) for role in recipe.teachers}
    return Ingredients(data, teachers, fabric, quiet=True)


_fabric = functools.cache(launch)


@functools.cache
def _data(block: str) -> Data:
    tree = json.loads(block)
    return load_data(load_recipe({"data": tree, "student": "mlp", "method": "supervised"}).data["data"])


def _teacher(role: str, recipe: Recipe, bare: Ingredients) -> Teacher:
    """A network with random weights, made more certain than networks start, so that what it says matters."""
    block = recipe.teachers[role]
    if block.own_data:
        own = recipe.of_teacher(role).data["data"]
        bare = replace(bare, data={"data": _data(json.dumps(own.tree(), default=str))})
    made = build_model(block.block, offers=bare.offers, seed=11, path=block.path)
    if block.own_data and "tokenizer" in bare.main.extra:
        made.module.tokenizer = bare.main.extra["tokenizer"]
        made.module.tokenizer_hash = bare.main.spec.tokenizer_hash
    exact = block.block.name != "auto" and find("model", block.block.name).facts.get("exact")
    if not exact:
        for p in made.module.parameters():
            p.data.mul_(2.0 if p.dim() > 1 else 1.0)
    return Teacher(made.module, made.gives, role, block.mode)


@dataclass
class Run:
    """A training that was watched.

    Attributes:
        loop: as it ended.
        noted: every value that the loop noted: (step, role, key) and the number.
        ingredients: data and teachers that it was given.
        trained: what lies on disk; None where it was interrupted.
    """

    folder: Path
    loop: Loop
    ingredients: Ingredients
    noted: list[tuple[tuple[int, str, str], float]] = field(default_factory=list)
    trained: Trained | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """Everything that learnt, averages included, by role and name."""
        found = {}
        for role, learner in self.loop.learners.items():
            found |= {f"{role}.{k}": v for k, v in learner.plain.state_dict().items()}
            for name, average in learner.averages.items():
                found |= {f"{role}.{name}.{k}": v for k, v in average.values.items()}
        return found

    def values(self, kind: str) -> dict[tuple[int, str, str], float]:
        """The noted values of a kind (``term``, ``weighted``, ``share``)."""
        return {key: value for key, value in self.noted if key[2].startswith(f"{kind}/")}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return list(read_jsonl(self.folder / "metrics.jsonl"))


Watch = Callable[[Loop], None]


def trained(
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 0,
    watch: Watch | None = None,
    wrap: Callable[[Any], Any] | None = None,
    fill: bool = False,
    keep: bool = True,
) -> Run:
    """Train a recipe's student as a run would, and keep what happened.

    Args:
        recipe: small.
        folder: of this training.
        seed: of weights, order and noise.
        watch: called with the loop before it starts.
        wrap: changes every training source.
        fill: fill the teachers' caches first, as the recipe's ``cache`` says.
        keep: write checkpoints and the student, and measure shares; without it a run takes half the time.
    """
    ingredients = ingredients_of(recipe, wrap)
    if fill:
        context = Context(recipe, folder, ingredients.fabric, seed, True, dict(ingredients.data))
        context.teachers = dict(ingredients.teachers)
        fill_caches(context)
    runs: list[Run] = []

    def begin(loop: Loop) -> None:
        runs.append(Run(folder, loop, ingredients))
        _listen(loop, runs[-1].noted)
        if not keep:
            loop.journal.measure = lambda *a: None  # type: ignore[method-assign]
            loop._save = lambda: None  # type: ignore[method-assign]
        if watch is not None:
            watch(loop)

    with _watched(begin), nullcontext() if keep else mock.patch.object(training.store, "save"):
        try:
            finished = training.train(recipe, ingredients, folder, seed=seed, key="bench")
        except BaseException as error:
            error.run = runs[-1] if runs else None  # type: ignore[attr-defined]
            raise
    runs[-1].trained = finished
    return runs[-1]


@contextmanager
def _watched(begin: Watch) -> Iterator[None]:
    class Watched(Loop):
        def fit(self) -> Any:
            begin(self)
            return super().fit()

    with mock.patch.object(training, "Loop", Watched), mock.patch.object(training, "_loggers", lambda *a: []):
        yield


def _listen(loop: Loop, noted: list[tuple[tuple[int, str, str], float]]) -> None:
    add = loop.journal.add

    def listen(step: int, role: str, values: Mapping[str, Tensor | float]) -> None:
        noted.extend(((step, role, key), float(value)) for key, value in values.items())
        add(step, role, values)

    loop.journal.add = listen  # type: ignore[method-assign]


def stop_after(step: int, code: int = 143) -> Watch:
    """Ask the loop to stop when that many steps are done, as a signal would."""

    def watch(loop: Loop) -> None:
        inner = loop.method.after_step

        def after_step(clock: Any) -> None:
            inner(clock)
            if clock.step + 1 == step:
                loop.asked.code = code

        loop.method.after_step = after_step  # type: ignore[method-assign]

    return watch


# -- changes that some contracts need ----------------------------------------------------------------------------------


class Masked:
    """A source whose labels are partly hidden: of every third row all, and of every other row the last quarter."""

    def __init__(self, source: Any, *, everything: bool = False) -> None:
        self._source, self._everything = source, everything

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, indices: Tensor, view: int = 0) -> dict[str, Any]:
        batch = dict(self._source.batch(indices, view))
        hidden = batch["id"] % 3 == 0
        for name in ("label", "labels"):
            if name in batch:
                values = batch[name].clone()
                values[torch.ones_like(hidden) if self._everything else hidden] = IGNORE
                if values.dim() > 1:
                    values[batch["id"] % 2 == 0, values.shape[1] * 3 // 4 :] = IGNORE
                batch[name] = values
        return batch


def without_batch_statistics(loop: Loop) -> None:
    """Hold still in every learner what makes one sample's output depend on others or on chance."""
    for learner in loop.learners.values():
        for module in learner.plain.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
                module.eval()
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
