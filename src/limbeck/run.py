"""A run: one recipe, one directory, a list of stages that each leave an artifact and are not done twice.

The directory is named by the recipe's content, so the same command finds its run again and goes on where it ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric
from torch import nn

from limbeck import __version__
from limbeck.arms import arm_key, arm_recipe, file_state, fingerprints, start_files, teacher_files
from limbeck.codehash import code_of
from limbeck.data import load_data
from limbeck.data.base import Data
from limbeck.engine.checkpoint import write_json, write_text
from limbeck.engine.devices import Placement, launch
from limbeck.engine.progress import say
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.planning import plan_lines
from limbeck.preflight import preflight
from limbeck.processes import once
from limbeck.recipe import Recipe, load_recipe
from limbeck.registry import Block, find
from limbeck.training import Ingredients, Trained, start_student, train

RESULTS = "results.json"
MANIFEST = "manifest.json"
REPORT = "report.html"
DEFAULT_STAGES = ("teacher", "cache", "train", "controls", "evaluate", "export", "report")


@dataclass
class Arm:
    """One column of the results: a teacher, the student, or a control.

    Attributes:
        folder: its artifact below the run directory; None for a teacher that is not trained here.
        recipe: what it was trained by.
        numbers: steps, seconds, warnings of its training.
        scores, details: what the metrics found.
        judged_by: names of the metrics that can judge it; None for all that the run has.
        found: whether it was trained before.
    """

    name: str
    role: str
    label: str
    recipe: Recipe
    folder: Path | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    describe: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    teacher: Teacher | None = None
    judged_by: tuple[str, ...] | None = None
    found: bool = False


@dataclass
class Context:
    """What the stages of one run share."""

    recipe: Recipe
    folder: Path
    fabric: Fabric
    seed: int
    quiet: bool = False
    data: dict[str, Data] = field(default_factory=dict)
    teachers: dict[str, Teacher] = field(default_factory=dict)
    arms: dict[str, Arm] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    key: str = ""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.fabric.global_rank == 0

    @property
    def ingredients(self) -> Ingredients:
        """Data, teachers and device, as training takes them."""
        return Ingredients(self.data, self.teachers, self.fabric, self.quiet)

    def artifact(self, name: str, key: str) -> Path:
        """The folder of an artifact that depends on ``key``."""
        return self.folder / "artifacts" / f"{name}-{key[:10]}"

    def key_of(self, recipe: Recipe) -> str:
        """What a variant of the recipe depends on, trained with the data and the teachers of the run."""
        return arm_key(recipe, self.data, self.teachers, self.seed)

    def begun(self, recipe: Recipe) -> nn.Module:
        """The student of a variant of the recipe as it starts."""
        return start_student(recipe, self.ingredients, self.seed).module

    def trained(self, recipe: Recipe, name: str, label: str) -> Trained:
        """The student of a variant of the recipe after its training, in an artifact of that name or found there."""
        key = self.key_of(recipe)
        return train(recipe, self.ingredients, self.artifact(name, key), seed=self.seed, key=key, label=label)

    def once(self, work: Callable[[], Any]) -> None:
        """Let the first process do something while the others wait; its :class:`UserError` is raised in all."""
        once(self.fabric, work)

    def deliver(self, folder: Path, numbers: Mapping[str, Any], describe: str) -> None:
        """Make the model in ``folder`` the run's student, where a stage made it and none trains it."""
        self.arms["student"] = Arm("student", "student", "Student", self.recipe, folder, dict(numbers), describe)

    def say(self, text: str) -> None:
        """Tell the person at the terminal, once."""
        if self.first and not self.quiet:
            say(text)


@dataclass
class Result:
    """What a run gave.

    Attributes:
        folder: the run directory.
        results: the content of ``results.json``.
    """

    folder: Path
    results: dict[str, Any]

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.folder / REPORT

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Scores by arm and metric."""
        return {name: arm["metrics"] for name, arm in self.results["arms"].items()}

    @property
    def student(self) -> Any:
        """The delivered student, loaded."""
        from limbeck.export import store

        return store.load(self.folder / "student").module

    def summary(self) -> str:
        """Teacher, student and controls in a line each, and what was kept."""
        from limbeck.summary import summary

        return summary(self.results)


def run_recipe(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    seed: int | None = None,
    quiet: bool = False,
    fresh: bool = False,
) -> Result:
    """Run a recipe from start to report, going on where an earlier call was cut off.

    Args:
        recipe: a recipe, its file, or its content as a mapping.
        overrides: ``key=value`` changes, as ``--set`` takes them.
        runs: the folder that run directories are made in.
        seed: instead of the recipe's.
        quiet: no progress on standard error.
        fresh: start anew although the run directory exists (it is moved aside, never deleted).

    Raises:
        RecipeError: the recipe has mistakes; nothing was written.
        UserError: data, a checkpoint or the machine is not what the recipe needs.
        limbeck.engine.stopping.Interrupted: the process was asked to stop.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides=list(overrides))
    seed = recipe.seed if seed is None else seed
    fabric = launch(placement_of(recipe))
    folder = run_folder(recipe, Path(runs), seed)
    context = Context(recipe, folder, fabric, seed, quiet)
    context.data = {name: load_data(block) for name, block in recipe.data.items()}
    context.key = run_key(context)
    if not fresh and fabric.broadcast(is_finished(context)):
        context.say(f"{recipe.title}: finished before, in {folder}; --fresh (fresh=True) runs it anew")
        return _result(context)
    preflight(recipe, context.data, fabric)
    context.once(lambda: begin(context, fresh=fresh))
    with deterministic(recipe.train.deterministic and fabric.device.type == "cuda"):
        for block in stage_blocks(recipe):
            run_stage(context, block)
    context.once(lambda: finish(context))
    return _result(context)


def _result(context: Context) -> Result:
    """What the run left; stages that leave out the evaluation leave arms without scores."""
    path = context.folder / RESULTS
    if path.is_file():
        return Result(context.folder, json.loads(path.read_text(encoding="utf8")))
    from limbeck.stages.evaluate import results

    return Result(context.folder, results(context))


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within the context torch takes deterministic algorithms where it has a choice."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    tuned = torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = tuned


def run_stage(context: Context, block: Block) -> None:
    """Run one stage; what it makes it puts into the context."""
    find("stage", block.name).load()(context, **block.args)


def stage_blocks(recipe: Recipe) -> list[Block]:
    """The stages that the recipe names, or those that follow from its blocks."""
    return list(recipe.stages) if recipe.stages else [Block(name) for name in DEFAULT_STAGES]


def placement_of(recipe: Recipe) -> Placement:
    """Devices, precision and strategy from the ``train`` block."""
    t = recipe.train
    return Placement(t.accelerator, t.devices, t.nodes, t.strategy, t.precision, t.compile)


def run_folder(recipe: Recipe, runs: Path, seed: int) -> Path:
    """``<runs>/<slug>-<hash of the recipe and the seed>``."""
    return runs / f"{recipe.slug}-{recipe.fingerprint()[:8]}{'' if seed == recipe.seed else f'-seed{seed}'}"


def begin(context: Context, *, fresh: bool = False) -> None:
    """Make the directory, write the resolved recipe and the manifest, and print the plan."""
    if fresh and context.folder.exists():
        context.folder.rename(context.folder.with_name(f"{context.folder.name}.old-{time.time_ns()}"))
    try:
        context.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run directory {context.folder}: {error.strerror}") from error
    write_text(context.folder / "recipe.yaml", yaml.safe_dump(context.recipe.tree, sort_keys=False, allow_unicode=True))
    write_json(context.folder / MANIFEST, manifest(context))
    context.say(f"{context.recipe.title}  ->  {context.folder}")
    if not context.quiet:
        for line in plan_lines(context.recipe, context.ingredients.offers, context.seed):
            context.say(line)


def finish(context: Context) -> None:
    """Note in the manifest that the run is complete, and what that depends on."""
    kept = json.loads((context.folder / MANIFEST).read_text(encoding="utf8"))
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(context.folder / MANIFEST, {**kept, "finished": now, "key": context.key})


def is_finished(context: Context) -> bool:
    """Whether the run directory holds this very run, complete. One with stages of its own is gone through anew."""
    try:
        kept = json.loads((context.folder / MANIFEST).read_text(encoding="utf8"))
    except (OSError, json.JSONDecodeError):
        return False
    whole = all((context.folder / name).is_file() for name in (RESULTS, REPORT))
    return whole and context.recipe.stages is None and kept.get("key") == context.key


def run_key(context: Context) -> str:
    """What a whole run depends on: recipe, seed, the content of its data, weights it starts from, and the code."""
    recipe = context.recipe
    arms = [recipe, *(arm_recipe(recipe, overrides) for overrides in recipe.control_arms.values())]
    paths = [path for arm in arms for path in [*start_files(arm), *teacher_files(arm)]]
    facts = {
        "recipe": recipe.fingerprint(),
        "seed": context.seed,
        "data": fingerprints(context.data),
        "files": [file_state(path) for path in paths],
        "code": [code_of(arm.tree, arm.method.name) for arm in arms],
        "library": [__version__, package_state()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def package_state() -> str:
    """A hash that changes when a file of this library does: a finished run is then gone through once more."""
    files = sorted(f for f in Path(__file__).parent.rglob("*") if f.suffix in (".py", ".jinja", ".css", ".js"))
    return hashlib.sha256(repr([(f.name, *_stat(f)) for f in files]).encode()).hexdigest()


def _stat(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def manifest(context: Context) -> dict[str, Any]:
    """Versions, git state, seeds, machine and hashes: what is needed to trace a run."""
    return {
        "limbeck": __version__,
        "recipe": {"path": str(context.recipe.path or ""), "hash": context.recipe.fingerprint()},
        "seed": context.seed,
        "git": git_state(),
        "packages": {p: _version(p) for p in ("torch", "lightning-fabric", "numpy", "safetensors", "transformers")},
        "machine": machine(context.fabric),
        "data": {n: getattr(d.train or d.test, "fingerprint", "") for n, d in context.data.items()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def machine(fabric: Fabric) -> dict[str, Any]:
    """The machine that measured: numbers of speed mean nothing without it."""
    return {
        "device": torch.cuda.get_device_name() if fabric.device.type == "cuda" else "cpu",
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": fabric.world_size,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def git_state() -> dict[str, Any] | None:
    """Commit and cleanness of the working tree, if there is one."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.strip(), "clean": not dirty.strip()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
