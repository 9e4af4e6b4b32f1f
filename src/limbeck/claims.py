"""Claims: arms times seeds make a table, the table decides whether a claim holds, the ledger keeps the outcome."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.arms import arm_recipe
from limbeck.engine.checkpoint import write_json
from limbeck.engine.progress import say
from limbeck.errors import MissingDataError, UserError
from limbeck.expectation import parse_expectation
from limbeck.gallery import evidence_path, evidence_state, sources_hash
from limbeck.recipe import Recipe, load_recipe
from limbeck.registry import Block, find, nearest

if TYPE_CHECKING:
    from limbeck.run import Context

Table = dict[str, dict[str, list[float]]]
"""Arm -> metric -> one value per seed."""


@dataclass
class Check:
    """One expectation and how it came out."""

    text: str
    left: float
    right: float
    holds: bool


@dataclass
class Measured:
    """Arms times seeds.

    Attributes:
        table: of metrics.
        machine: that it was measured on.
        seconds: of each arm's trainings, one for each seed.
        spared: seconds of the trainings that were found and not repeated.
    """

    table: Table
    machine: dict[str, Any]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    spared: float = 0.0


@dataclass
class Verdict:
    """What a proof found; :meth:`as_dict` is what the ledger keeps. ``seconds`` is what it takes from nothing."""

    slug: str
    title: str
    family: str
    method: str
    says: str
    holds: bool
    checks: list[Check]
    arms: dict[str, dict[str, dict[str, Any]]]
    seeds: list[int]
    seconds: float
    because: str = ""
    paper: Mapping[str, Any] | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    recorded: str = ""
    page: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; where the page lies is no part of the outcome."""
        return {k: v for k, v in asdict(self).items() if k != "page"}

    def text(self) -> str:
        """The verdict for a terminal."""
        lines = [f"{'HOLDS' if self.holds else 'DOES NOT HOLD'}  {self.family}/{self.slug}: {self.says}"]
        lines += [
            f"  {'ok ' if c.holds else 'NO '} {c.text}   ({c.left:.5g} against {c.right:.5g})" for c in self.checks
        ]
        for arm, metrics in self.arms.items():
            shown = [f"{k} {v['mean']:.4g} ± {v['std']:.2g}" for k, v in metrics.items() if k in self._named()]
            lines.append(f"      {arm}: {', '.join(shown)}")
        if self.because and not self.holds:
            lines.append(f"  because: {self.because}")
        lines.append(f"  {len(self.seeds)} seeds, {self.seconds:.0f} s" + (f"; {self.page}" if self.page else ""))
        return "\n".join(lines)

    def _named(self) -> set[str]:
        return {metric for c in self.checks for metric, _ in parse_expectation(c.text).names}


def prove(
    recipe: Recipe | str | Path, *, record: bool = False, runs: str | Path = "runs", quiet: bool = True
) -> Verdict:
    """Measure a recipe's claim: train its arms over its seeds and evaluate its expectations on the means.

    Args:
        recipe: a recipe with a ``claim``.
        record: write the outcome to the ledger (``evidence/<family>/<slug>.json``).
        runs: folder for what is trained on the way; a proof that was cut off goes on there.
        quiet: no progress of the single trainings.

    Raises:
        UserError: the recipe makes no claim.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if recipe.claim is None:
        raise UserError(f"{recipe.path or recipe.title} makes no claim: give it a claim block")
    from limbeck.report.proof import write_proof

    _check_measured(recipe)
    began = time.monotonic()
    arms = claimed_arms(recipe)
    seeds = seeds_of(recipe)
    found = measure(recipe, arms, seeds, Path(runs), quiet=quiet, values=_named_values(recipe))
    table = found.table
    means = {(m, arm): statistics.fmean(v) for arm, metrics in table.items() for m, v in metrics.items()}
    checks = []
    for text in recipe.claim.expect:
        holds, left, right = parse_expectation(text).evaluate(means)
        checks.append(Check(text, left, right, holds))
    verdict = Verdict(
        slug=recipe.slug,
        title=recipe.title,
        family=family_of(recipe),
        method=recipe.method.name,
        says=recipe.claim.says,
        holds=all(c.holds for c in checks),
        checks=checks,
        arms={arm: {m: _spread(v) for m, v in metrics.items()} for arm, metrics in table.items()},
        seeds=seeds,
        seconds=round(time.monotonic() - began + found.spared, 1),
        because=recipe.claim.because or "",
        paper=recipe.paper,
        hashes=sources_hash(recipe),
        machine=found.machine,
        recorded=time.strftime("%Y-%m-%d", time.gmtime()),
    )
    if record:
        write_json(evidence_path(recipe), verdict.as_dict())
    verdict.page = write_proof(verdict.as_dict(), Path(runs) / "proofs" / f"{verdict.family}-{verdict.slug}.html")
    return verdict


def prove_all(
    recipes: Iterable[str | Path],
    *,
    record: bool = False,
    only_stale: bool = False,
    budget: float | None = None,
    runs: str | Path = "runs",
) -> Iterator[Verdict]:
    """:func:`prove` one after the other; what is passed over is said, with the reason.

    Passed over are recipes without a claim, and with ``only_stale`` those whose record is fresh, those that call
    themselves slow, and those whose data is not on this machine. No proof is begun when the budget (seconds) is spent.

    Raises:
        UserError: none of the recipes makes a claim, or one of them cannot be run.
    """
    began = time.monotonic()
    loaded = [load_recipe(path) for path in recipes]
    if all(recipe.claim is None for recipe in loaded):
        raise UserError(f"{', '.join(r.slug for r in loaded)}: no claim to prove; give the recipe a claim block")
    for recipe in loaded:
        if recipe.claim is None:
            say(f"{recipe.slug}: makes no claim")
            continue
        if only_stale and (why := _passed_over(recipe)):
            say(f"{recipe.slug}: {why}")
            continue
        if budget is not None and time.monotonic() - began > budget:
            say(f"{recipe.slug}: not begun, the budget of {budget:g} s is spent")
            continue
        try:
            yield prove(recipe, record=record, runs=runs)
        except MissingDataError as error:
            if not only_stale:
                raise
            say(f"{recipe.slug}: passed over, {error}")


def _passed_over(recipe: Recipe) -> str:
    if evidence_state(recipe) in ("holds", "fails"):
        return "its record is fresh"
    return "passed over, for it takes long: prove it by itself" if recipe.slow else ""


def claimed_arms(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    """The arms of a claim with their overrides, and the control arms that its expectations name."""
    assert recipe.claim is not None
    arms: dict[str, Mapping[str, Any]] = dict(recipe.arms)
    named = {arm for text in recipe.claim.expect for _, arm in parse_expectation(text).names}
    for name, overrides in recipe.control_arms.items():
        if name in named and name not in arms:
            arms[name] = overrides
    if "student" in named and "student" not in arms:
        arms["student"] = {}
    arms |= {role: {} for role in recipe.teachers if role in named and role not in arms}
    return arms


def measure(
    recipe: Recipe,
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    runs: Path,
    *,
    quiet: bool = True,
    values: Set[str] | None = None,
    loaded: dict[str, Any] | None = None,
) -> Measured:
    """Train and judge every arm with every seed. The teacher is trained once, with the recipe's own seed.

    Args:
        recipe: what the arms are variants of.
        arms: overrides by name; the role of a teacher stands for that teacher.
        seeds: of data order, student and noise.
        runs: folder for what is trained.
        quiet: no progress.
        values: those that are wanted; metrics that give none of them are left out. None for all.
        loaded: keeps the data for later calls, see :func:`arm_context`.
    """
    from limbeck.engine.devices import launch
    from limbeck.preflight import preflight
    from limbeck.run import machine, placement_of

    fabric = launch(placement_of(recipe))
    folder = runs / "proofs"  # of all recipes: many share their controls
    loaded = {} if loaded is None else loaded
    found = Measured({arm: {} for arm in arms}, machine(fabric))
    own = {arm: _with_metrics(arm_recipe(recipe, overrides), values) for arm, overrides in arms.items()}
    contexts = {arm: arm_context(made, folder, fabric, loaded, quiet=quiet) for arm, made in own.items()}
    for arm, made in own.items():
        preflight(made, contexts[arm].data, fabric)
    for seed in seeds:
        for arm, context in contexts.items():
            # Teachers are loaded anew each time, but told of once.
            fresh = replace(context, seed=seed, teachers={}, arms={}, quiet=quiet or seed != seeds[0])
            for metric, value in _score(fresh, arm, quiet).items():
                found.table[arm].setdefault(metric, []).append(value)
            trained = fresh.arms[arm]
            found.seconds.setdefault(arm, []).append(trained.numbers.get("seconds", 0.0))
            found.spared += trained.numbers.get("seconds", 0.0) if trained.found else 0.0
    return found


def arm_context(recipe: Recipe, folder: Path, fabric: Any, loaded: dict[str, Any], *, quiet: bool) -> Context:
    """What an arm is trained in; ``loaded`` keeps the data that several arms share."""
    from limbeck.data import load_data
    from limbeck.run import Context

    context = Context(recipe, folder, fabric, recipe.seed, quiet)
    for name, block in recipe.data.items():
        key = json.dumps(block.tree(), sort_keys=True, default=str)
        loaded[key] = context.data[name] = loaded.get(key) or load_data(block)
    return context


def _with_metrics(recipe: Recipe, values: Set[str] | None) -> Recipe:
    """The recipe with those of its metrics that give a wanted value: a proof does not spend its time on the others."""
    if recipe.evaluate is None or values is None:
        return recipe
    return replace(
        recipe,
        evaluate=[b for b in recipe.evaluate if values & set(find("metric", b.name).facts.get("better", values))],
    )


def _named_values(recipe: Recipe) -> set[str]:
    """The values that the claim speaks of."""
    assert recipe.claim is not None
    return {metric for text in recipe.claim.expect for metric, _ in parse_expectation(text).names}


def _check_measured(recipe: Recipe) -> None:
    """Refuse a claim about a value that no metric of the recipe gives, before anything is trained for it."""
    if recipe.evaluate is None:
        return
    given = [find("metric", block.name).facts.get("better") for block in recipe.evaluate]
    known = {key for keys in given if keys for key in keys}
    named = _named_values(recipe)
    if all(given) and (missing := sorted(named - known)):
        hint = nearest(missing[0], known)
        says = f"; did you mean '{hint}'?" if hint else f": they give {', '.join(sorted(known))}"
        raise UserError(f"{recipe.slug}: no metric under evaluate gives '{missing[0]}'{says}")


def _score(context: Context, arm: str, quiet: bool) -> dict[str, float]:
    from limbeck.run import run_stage
    from limbeck.stages.cache import cache
    from limbeck.stages.evaluate import score
    from limbeck.stages.teacher import teacher
    from limbeck.stages.train import add_arm

    teacher(context)
    if arm in context.arms:
        return score(context, context.arms[arm]).values
    for block in before_training(context.recipe):
        run_stage(context, block)
    cache(context)
    context.quiet = quiet
    label = f"{context.recipe.slug} {arm}, seed {context.seed}"
    return score(context, add_arm(context, arm, "student", label, {})).values


def before_training(recipe: Recipe) -> list[Block]:
    """The stages of a recipe that come before its training and are not every run's, as a search for the student."""
    blocks = list(recipe.stages or ())
    names = [block.name for block in blocks]
    before = blocks[: names.index("train")] if "train" in names else []
    return [block for block in before if block.name not in ("teacher", "cache")]


def seeds_of(recipe: Recipe) -> list[int]:
    """The seeds of a claim: the given ones, or that many from the recipe's seed on."""
    assert recipe.claim is not None
    seeds = recipe.claim.seeds
    return list(seeds) if not isinstance(seeds, int) else list(range(recipe.seed, recipe.seed + seeds))


def family_of(recipe: Recipe) -> str:
    """The family of a recipe: its folder below ``recipes/``, or that of its method."""
    if recipe.path is not None and recipe.path.parent.parent.name == "recipes":
        return recipe.path.parent.name
    return find("method", recipe.method.name).family


def _spread(values: Sequence[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


@dataclass
class Comparison:
    """Rows (arm, seed, metrics) and the page that shows them."""

    rows: list[dict[str, Any]]
    page: Path

    def table(self) -> str:
        """Mean and spread of the main metrics by arm, for a terminal."""
        names = list(dict.fromkeys(r["name"] for r in self.rows))
        keys = list(dict.fromkeys(k for r in self.rows for k in r["metrics"]))[:8]
        lines = ["  ".join([f"{'arm':<16}", *(f"{k:>18}" for k in keys)])]
        for name in names:
            cells = []
            for key in keys:
                spread = _spread(
                    [r["metrics"][key] for r in self.rows if r["name"] == name and key in r["metrics"]] or [0]
                )
                cells.append(f"{spread['mean']:>9.4g} ± {spread['std']:<6.2g}")
            lines.append("  ".join([f"{name:<16}", *(f"{c:>18}" for c in cells)]))
        return "\n".join(lines)


def compare(
    recipes: Sequence[str | Path | Recipe], *, seeds: int = 3, overrides: Sequence[str] = (), runs: str | Path = "runs",
    quiet: bool = False,
) -> Comparison:  # fmt: skip
    """Run several recipes, or the arms of a single one, over seeds; the page has a table and Pareto plots.

    Args:
        recipes: recipe files. A single one is compared by its claim's arms, or student against controls.
        seeds: how many seeds, from each recipe's own on.
        overrides: ``key=value`` changes to all of them.
        runs: folder for what is trained and for the page.
        quiet: no progress.
    """
    from limbeck.report.compare import write_comparison

    loaded = [r if isinstance(r, Recipe) else load_recipe(r, overrides=list(overrides)) for r in recipes]
    rows: list[dict[str, Any]] = []
    for recipe in loaded:
        arms = _compared_arms(recipe) if len(loaded) == 1 else {"student": {}}
        chosen = list(range(recipe.seed, recipe.seed + seeds))
        table = measure(recipe, arms, chosen, Path(runs), quiet=quiet).table
        for arm, metrics in table.items():
            name = arm if len(loaded) == 1 else recipe.slug
            rows += [
                {"name": name, "seed": s, "metrics": {k: v[i] for k, v in metrics.items()}, "labels": {}}
                for i, s in enumerate(chosen)
            ]
    digest = hashlib.sha256("".join(r.fingerprint() for r in loaded).encode()).hexdigest()[:8]
    page = Path(runs) / f"compare-{'-'.join(r.slug for r in loaded)[:60]}-{digest}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_comparison(rows, page)
    return Comparison(rows, page)


def _compared_arms(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    arms = dict(recipe.arms) if recipe.claim else {"student": {}, **recipe.control_arms}
    return {**{role: {} for role in recipe.teachers}, **arms}
