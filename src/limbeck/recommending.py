"""Which configuration to try first on a new task, by what past runs showed.

Every finished run says what it was (its plan, defaults included, and the facts of its data) and how much of its teacher
its student kept: the *distillation ratio*, the student's score over the teacher's. A forest of regression trees learns
the one from the other and ranks configurations that have not been tried; the best of the first few is then found by
training them. So does AutoDistiller (He et al. 2021, arXiv 2109.11105, section 5), whose regressor is another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.arms import arm_recipe
from limbeck.data.base import DataSpec
from limbeck.errors import UserError
from limbeck.metrics.classification import kept_share
from limbeck.recipe import Recipe
from limbeck.report import results
from limbeck.report.units import finite

Facts = dict[str, float | str]
"""What a run was: a number or a word for each factor."""
BLOCKS = ("data", "teacher", "teachers", "student", "method", "train", "phases")
"""The parts of a recipe that can matter for its result."""
TREES = 100
DRAWS, FEW = 1000, 200
"""Configurations that the variance of all factors together is taken over, and those that one factor's mean is."""


@dataclass(frozen=True)
class Past:
    """A finished run: what it was, how its method was called and set, and the ratio that it reached."""

    name: str
    facts: Facts
    method: Mapping[str, Any]
    ratio: float


@dataclass(frozen=True)
class Choice:
    """A candidate: the overrides of the recipe that make it, the ratio foretold, and how far the trees are apart."""

    name: str
    overrides: Mapping[str, Any]
    ratio: float
    spread: float


def past_runs(folder: str | Path) -> list[Past]:
    """The runs under a folder that have a student and a teacher who were judged alike.

    Raises:
        UserError: there is none.
    """
    files = sorted(Path(folder).glob("**/results.json"))
    found = [run for run in (_past(file.parent) for file in files) if run is not None]
    if not found:
        says = f"{len(files)} have no teacher and student with one score" if files else "there is no results.json"
        raise UserError(f"no past run to learn from under {folder}: {says}; 'limbeck run' leaves one in its --runs")
    return found


def _past(folder: Path) -> Past | None:
    run = results.load(folder)
    main, student, teacher = run.main, run.student, run.teacher
    if main is None or student is None or teacher is None or main.better is None:
        return None
    own, theirs = student.value(main.key), teacher.value(main.key)
    plan, spec = run.data.get("plan"), run.mapping("spec")
    if own is None or theirs is None or not isinstance(plan, list):
        return None
    ratio = kept_share(own, theirs, higher=main.better == "higher")
    rows = [(row[0], row[1]) for row in plan if isinstance(row, list | tuple) and len(row) > 1]
    facts = facts_of(rows, spec)
    return Past(folder.name, facts, _method(rows), ratio) if math.isfinite(ratio) else None


def facts_of(plan: Sequence[tuple[str, Any]], spec: Mapping[str, Any]) -> Facts:
    """The factors of a run: the plain values of its plan by their dotted path, and what its data are."""
    found: Facts = {}
    for path, value in plan:
        if path.split(".")[0] in BLOCKS and value is not None:
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            found[path] = float(value) if plain else value if isinstance(value, str) else json.dumps(value, default=str)
    size = math.prod(spec.get("shape") or (1,))
    told = {"classes": finite(spec.get("classes")), "inputs": float(size), "vocabulary": finite(spec.get("vocab_size"))}
    found["data.task"] = str(spec.get("task") or "")
    return found | {f"data.{name}": value for name, value in told.items() if value is not None}


def _method(plan: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The method's block as the plan has it: its name and plain arguments."""
    given = {path.split(".", 1)[1]: value for path, value in plan if path.startswith("method.")}
    return {name: value for name, value in given.items() if "." not in name and value is not None}


class Forest:
    """Regression trees from factors to the distillation ratio.

    Args:
        runs: two at least, which differ.
        seed: of the trees.

    Raises:
        UserError: there is nothing to tell the runs apart by.
    """

    def __init__(self, runs: Sequence[Past], seed: int = 0) -> None:
        from sklearn.ensemble import ExtraTreesRegressor
        from sklearn.feature_extraction import DictVectorizer

        self.runs = list(runs)
        self.factors = varying([run.facts for run in runs])
        if not self.factors:
            raise UserError(f"the {len(runs)} past runs do not differ in any setting: nothing can be learnt from them")
        self._columns = DictVectorizer(sparse=False)
        inputs = self._columns.fit_transform([self._told(run.facts) for run in runs])
        self._trees = ExtraTreesRegressor(TREES, random_state=seed)
        self._trees.fit(inputs, [run.ratio for run in runs])

    def foretell(self, facts: Sequence[Facts]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation over the trees of the ratio of each configuration, [N] both."""
        inputs = self._columns.transform([self._told(f) for f in facts])
        each = np.stack([tree.predict(inputs) for tree in self._trees.estimators_])
        return each.mean(0), each.std(0)

    def importance(self, seed: int = 0) -> dict[str, float]:
        """Share of the ratio's variance that each factor explains by itself, largest first.

        The first-order terms of a functional analysis of variance (Hutter et al. 2014, "An Efficient Approach for
        Assessing Hyperparameter Importance") of what the trees foretell, where every factor has the values of the runs
        as often as they do and independently of the others. The shares add up to 1 where no factors act together.
        """
        draw = np.random.default_rng(seed)
        known = [self._told(run.facts) for run in self.runs]
        columns = {f: [run.get(f) for run in known] for f in self.factors}
        picks = {f: draw.integers(len(known), size=DRAWS) for f in self.factors}
        mixed = [_without_none({f: columns[f][picks[f][i]] for f in self.factors}) for i in range(DRAWS)]
        total = float(self._mean(mixed).var())
        shares = {f: self._main_effect(mixed, f, columns[f]) / total if total > 0 else 0.0 for f in self.factors}
        return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))

    def _main_effect(self, mixed: Sequence[Facts], factor: str, values: Sequence[Any]) -> float:
        """Variance over a factor's values of the mean over everything else."""
        there = list(dict.fromkeys(values))
        told = [_without_none({**m, factor: v}) for v in there for m in mixed[:FEW]]
        means = dict(zip(there, self._mean(told).reshape(len(there), -1).mean(1), strict=True))
        return float(np.var([means[v] for v in values]))

    def _mean(self, facts: Sequence[Facts]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self._trees.predict(self._columns.transform(facts))
        return found

    def _told(self, facts: Facts) -> Facts:
        return {factor: facts[factor] for factor in self.factors if factor in facts}


def _without_none(facts: Mapping[str, Any]) -> Facts:
    return {name: value for name, value in facts.items() if value is not None}


def varying(runs: Sequence[Facts]) -> list[str]:
    """The factors that are not the same in all runs, by name."""
    names = sorted({name for run in runs for name in run})
    return [name for name in names if len({run.get(name) for run in runs}) > 1]


def candidates(recipe: Recipe, runs: Sequence[Past]) -> dict[str, dict[str, Any]]:
    """Overrides by name: the recipe as it is, the arms of its claim, and every method of a past run as it was set.

    What the recipe cannot be, and what comes to the same as another, is left out.
    """
    tried: dict[str, dict[str, Any]] = {"as it is": {}, **{name: dict(arm) for name, arm in recipe.arms.items()}}
    for run in runs:
        dropped = dict.fromkeys(set(recipe.method.args) - set(run.method))
        tried[f"{run.method.get('name')} of {run.name}"] = {"method": {**dropped, **run.method}}
    seen: dict[str, str] = {}
    for name, overrides in tried.items():
        try:
            plan = arm_recipe(recipe, overrides).plan()
        except UserError:
            continue
        seen.setdefault(json.dumps(facts_of([row[:2] for row in plan], {}), sort_keys=True), name)
    return {name: tried[name] for name in seen.values()}


def ranked(recipe: Recipe, forest: Forest, spec: DataSpec) -> list[Choice]:
    """The candidates in order of the ratio that is foretold for them.

    Args:
        recipe: of the new task.
        forest: of past runs.
        spec: the facts of the new data.
    """
    tried = candidates(recipe, forest.runs)
    plans = [[row[:2] for row in arm_recipe(recipe, overrides).plan()] for overrides in tried.values()]
    means, spreads = forest.foretell([facts_of(plan, spec.as_dict()) for plan in plans])
    found = [
        Choice(name, overrides, float(mean), float(spread))
        for (name, overrides), mean, spread in zip(tried.items(), means, spreads, strict=True)
    ]
    return sorted(found, key=lambda choice: -choice.ratio)


def best_of(recipe: Recipe, choices: Sequence[Choice], folder: str | Path) -> list[tuple[Choice, float]]:
    """The choices trained on the recipe's task, with their scores on its validation split, best first.

    Args:
        recipe: of the new task.
        choices: the first few of those that were recommended.
        folder: for what is trained.

    Raises:
        UserError: no validation split, or a choice that cannot be run.
    """
    from limbeck.tuning import validated_trial

    scored = [(c, validated_trial(recipe, c.name, Path(folder))(c.overrides, 1.0)) for c in choices]
    return sorted(scored, key=lambda pair: -pair[1])


@dataclass(frozen=True)
class Recommended:
    """What is recommended: choices in order, their validation scores where they were trained, and what mattered."""

    choices: Sequence[Choice]
    scores: Sequence[float | None]
    importance: Mapping[str, float]
    runs: int

    def rows(self) -> list[dict[str, Any]]:
        """One map for each choice."""
        return [
            {"name": c.name, "overrides": c.overrides, "ratio": c.ratio, "spread": c.spread, "validation": score}
            for c, score in zip(self.choices, self.scores, strict=True)
        ]

    def table(self) -> list[tuple[str, ...]]:
        """Rank, configuration and the ratio foretold, with how far the trees are apart; the score where it is known."""
        trained = any(score is not None for score in self.scores)
        lines = [("rank", "configuration", "of the teacher", "+-", *(("validation",) if trained else ()))]
        for n, (c, score) in enumerate(zip(self.choices, self.scores, strict=True), start=1):
            known = (f"{score:.4g}",) if score is not None else ()
            lines.append((str(n), c.name, f"{c.ratio:.1%}", f"{c.spread:.1%}", *known))
        return lines

    def factors(self, most: int = 8) -> list[tuple[str, ...]]:
        """The factors that mattered most over the past runs, each by itself."""
        shares = list(self.importance.items())[:most]
        return [(f"factor of {self.runs} runs", "explains"), *((name, f"{share:.0%}") for name, share in shares)]


def recommended(recipe: Recipe, runs: str | Path, *, top: int = 5, train: bool = False) -> Recommended:
    """What to try first on a recipe's task.

    Args:
        recipe: of the task.
        runs: folder of past runs.
        top: how many.
        train: train these, and order them by their score on the validation split.

    Raises:
        UserError: no past runs, or too much alike; no validation split to train for.
    """
    from limbeck.data import load_data

    forest = Forest(past_runs(runs), recipe.seed)
    spec = next((load_data(block).spec for block in recipe.data.values()), DataSpec(task="generation"))
    choices = ranked(recipe, forest, spec)[:top]
    scores: list[float | None] = [None] * len(choices)
    if train:
        scored = best_of(recipe, choices, runs)
        choices, scores = [c for c, _ in scored], [score for _, score in scored]
    return Recommended(choices, scores, forest.importance(), len(forest.runs))
