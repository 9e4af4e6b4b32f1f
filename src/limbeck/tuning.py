"""Methods side by side on a user's own recipe, each tuned as hard as the others, then judged on seeds of their own.

Every method gets the same number of trials. A trial chooses the method's main dial and the learning rate (Optuna), and
is trained for a quarter, a half and the whole of the recipe's length, as long as it stays among the better ones
(successive halving); one whose values the method refuses has ended early. Trials are judged on the validation split;
the winner of each method is then trained anew with other seeds and judged on the test split. Generators have no
validation split: their trials are judged by the recipe's first metric on samples of another seed, and nothing is
trained without a teacher beside them.

At equal time every method trains for as long as the recipe's own takes; see :mod:`limbeck.pacing`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from limbeck.arms import arm_recipe
from limbeck.claims import arm_context, measure
from limbeck.engine.progress import say
from limbeck.errors import UserError, needs_extra
from limbeck.pacing import pace_of, trainer
from limbeck.recipe import Recipe, load_recipe
from limbeck.registry import Param, Part, find

RUNGS = (0.25, 0.5, 1.0)
"""Shares of the recipe's length that a trial is trained for, one after the other."""
ALONE = "alone"
WIDE, NARROW = 10.0, 4.0
"""By how much a weight, and a temperature or a learning rate, may go up and down from where it starts."""
Equal = Literal["steps", "time"]
"""What all methods get as much of."""
TUNING_SEED = 1000
"""Added to the recipe's seed for trials, so that no method is judged on the seed that it was tuned on."""


@dataclass
class Tuned:
    """The best trial of a method.

    Attributes:
        method: its name; ``alone`` is the student without a teacher.
        overrides: of the recipe.
        chosen: the dials' values by name.
        value: the validation score that chose it.
        trials: how many were made, those that ended early included.
    """

    method: str
    overrides: dict[str, Any]
    chosen: dict[str, float]
    value: float
    trials: int


@dataclass
class Ranking:
    """Tuned methods in order of their score on the test split.

    Attributes:
        seconds: that each seed's training took, by method.
        steps: of each method, where all were given as much time.
    """

    metric: str
    higher: bool
    tuned: dict[str, Tuned]
    scores: dict[str, list[float]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    page: Path | None = None

    def order(self) -> list[str]:
        """Methods, best first."""
        means = {m: statistics.fmean(v) for m, v in self.scores.items()}
        return sorted(means, key=lambda m: means[m], reverse=self.higher)

    def table(self) -> list[tuple[str, ...]]:
        """Rank with its range, mean with 95 % interval, steps and seconds of a training, and the dials' values."""
        lines: list[tuple[str, ...]] = [("rank", "method", self.metric, "95 %", *self._costs(None), "tuned to")]
        for method in self.order():
            values = self.scores[method]
            mean, half = statistics.fmean(values), interval(values)
            first, last = self.ranks(method)
            tuned = ", ".join(f"{k}={v:.3g}" for k, v in self.tuned[method].chosen.items())
            rank = f"{first}" if first == last else f"{first}-{last}"
            lines.append((rank, method, f"{mean:.4g}", f"+-{half:.2g}", *self._costs(method), tuned))
        return lines

    def _costs(self, method: str | None) -> tuple[str, ...]:
        """Cells of a method, or their heads."""
        steps = () if not self.steps else ("steps" if method is None else f"{self.steps[method]:,}",)
        if not self.seconds:
            return steps
        return *steps, "seconds" if method is None else f"{statistics.fmean(self.seconds[method]):.3g}"

    def ranks(self, method: str) -> tuple[int, int]:
        """Best and worst rank that the intervals allow."""
        low, high = _bounds(self.scores[method])
        others = [_bounds(v) for m, v in self.scores.items() if m != method]
        if not self.higher:
            low, high = -high, -low
            others = [(-b, -a) for a, b in others]
        return 1 + sum(a > high for a, _ in others), 1 + sum(b >= low for _, b in others)


def compare_methods(
    recipe: Recipe | str | Path,
    methods: Sequence[str],
    *,
    trials: int = 8,
    seeds: int = 5,
    runs: str | Path = "runs",
    equal: Equal = "steps",
    quiet: bool = False,
) -> Ranking:
    """Tune every method, and the student alone, with the same budget; then judge the winners.

    Args:
        recipe: data, teacher, student and training; its own method is one among others, if it is named.
        methods: names of methods.
        trials: for each method.
        seeds: for the final comparison.
        runs: folder for what is trained, and for the page.
        equal: ``steps`` trains every method for the recipe's steps; ``time`` for as many as it makes in the time that
            the recipe's own method takes for them.
        quiet: no progress.

    Raises:
        UserError: no validation split to tune on, or a method that the recipe cannot run.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    named = list(dict.fromkeys(methods))
    if not named or trials < 1 or seeds < 2:
        raise UserError("comparing methods takes at least one method, one trial and two seeds")
    task = task_of(recipe)
    starts = {method: _start(recipe, method) for method in ([*named] if task == "generation" else [*named, ALONE])}
    folder = Path(runs)
    steps = _as_long(recipe, starts, quiet) if equal == "time" else {}
    starts = {m: _with_steps(o, steps.get(m)) for m, o in starts.items()}
    trial = _sampler if task == "generation" else validated_trial
    tuned = {m: _tune(recipe, m, o, trials, trial(recipe, m, folder), quiet) for m, o in starts.items()}
    chosen = list(range(recipe.seed, recipe.seed + seeds))
    found = measure(recipe, {m: t.overrides for m, t in tuned.items()}, chosen, folder, quiet=quiet)
    table = found.table
    metric, higher = _main_metric(table[named[0]], task)
    scores = {m: values[metric] for m, values in table.items()}
    ranking = Ranking(metric, higher, tuned, scores, seconds=found.seconds, steps=steps)
    ranking.rows = [
        {"name": m, "seed": s, "metrics": {k: v[i] for k, v in metrics.items()}, "labels": {}}
        for m, metrics in table.items()
        for i, s in enumerate(chosen)
    ]
    from limbeck.report.compare import write_comparison

    ranking.page = folder / f"methods-{recipe.slug}-{recipe.fingerprint()[:8]}.html"
    write_comparison(ranking.rows, ranking.page)
    return ranking


def _start(recipe: Recipe, method: str) -> dict[str, Any]:
    """The arm of a method before it is tuned.

    The recipe's arm of that name, which may say what student the method needs; else the recipe with another method, or
    with its own arguments where it is the recipe's.
    """
    arm = recipe.arms.get(method)
    if arm is not None and arm_recipe(recipe, arm).method.name == method:
        return dict(arm)
    if method == ALONE:
        return {"method": {"name": "supervised"}, "teacher": None, "teachers": None}
    return {} if method == recipe.method.name else {"method": {"name": method}}


def _as_long(recipe: Recipe, starts: Mapping[str, Mapping[str, Any]], quiet: bool) -> dict[str, int]:
    """The steps of each method that take as long as those of the recipe's own."""
    steps = recipe.train.steps
    if steps is None:
        raise UserError("as much time for every method is reckoned in steps: give train.steps instead of epochs")
    own = pace_of(trainer(recipe, {}, recipe.method.name), steps).seconds_of(steps)
    others = {m: o for m, o in starts.items() if o}
    found = dict.fromkeys(starts, steps) | {
        m: pace_of(trainer(recipe, o, m), steps).steps_in(own) for m, o in others.items()
    }
    if not quiet:
        says = ", ".join(f"{m} {n:,}" for m, n in found.items())
        say(f"steps in the {own:.3g} s of {steps:,} steps of {recipe.method.name}: {says}")
    return found


def _with_steps(overrides: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    """An arm that trains for so many steps; None leaves them."""
    if steps is None:
        return dict(overrides)
    return {**overrides, "train": {**overrides.get("train", {}), "steps": steps}}


# ---------------------------------------------------------------------------------------------------------------------
# Tuning one method


def dial_of(part: Part) -> Param | None:
    """The argument that matters most: the class attribute ``dial``, else the first positive number that is a float."""
    named = part.facts.get("dial")
    if named is not None:
        return part.param(named)
    return next((p for p in part.params if p.source == "float" and not p.required and p.default > 0), None)


Trial = Callable[[Mapping[str, Any], float], float]
"""From the overrides of an arm and a share of the recipe's length to a score, higher the better."""


def _tune(recipe: Recipe, method: str, overrides: Mapping[str, Any], trials: int, trained: Trial, quiet: bool) -> Tuned:
    try:
        import optuna
    except ImportError as error:
        raise needs_extra("optuna", "search") from error

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    own = arm_recipe(recipe, overrides)
    ranges = dict(_ranges(own))

    def objective(trial: optuna.Trial) -> float:
        chosen = {name: trial.suggest_float(name, low, high, log=True) for name, (_, low, high) in ranges.items()}
        value = -math.inf
        for rung, share in enumerate(RUNGS):
            try:
                value = trained(_with(overrides, chosen, method), share)
            except UserError as error:
                if trial.number == 0:  # the recipe's own values
                    raise
                raise optuna.TrialPruned(f"refused: {error}") from error
            trial.report(value, rung)
            if rung < len(RUNGS) - 1 and trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=recipe.seed, n_startup_trials=min(5, trials)),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    )
    study.enqueue_trial({name: start for name, (start, _, _) in ranges.items()})
    study.optimize(objective, n_trials=trials)
    best = study.best_trial
    if not quiet:
        says = ", ".join(f"{k} {v:.3g}" for k, v in best.params.items())
        say(f"{method}: {trials} trials, best {says or 'as it is'} (validation {best.value:.4g})")
    return Tuned(method, _with(overrides, best.params, method), dict(best.params), float(best.value or 0.0), trials)


def _ranges(recipe: Recipe) -> list[tuple[str, tuple[float, float, float]]]:
    """Start, lowest and highest value of the learning rate and of the method's dial."""
    found = []
    rate = recipe.train.optimizer.args.get("lr", _default("optimizer", recipe.train.optimizer.name, "lr"))
    if isinstance(rate, int | float) and rate > 0:
        found.append(("lr", (float(rate), rate / NARROW, rate * NARROW)))
    dial = dial_of(find("method", recipe.method.name))
    if dial is not None:
        value = recipe.method.args.get(dial.name, dial.default)
        factor = NARROW if "temperature" in dial.name else WIDE
        if isinstance(value, int | float) and value > 0:
            found.append((dial.name, (float(value), value / factor, value * factor)))
    return found


def _default(kind: str, name: str, argument: str) -> Any:
    param = find(kind, name).param(argument)
    return param.default if param is not None else None


def _with(overrides: Mapping[str, Any], chosen: Mapping[str, float], method: str) -> dict[str, Any]:
    """The arm with the dials set."""
    whole = dict(overrides)
    dials = {k: v for k, v in chosen.items() if k != "lr"}
    if dials:
        whole["method"] = {**whole.get("method", {}), **dials}
    if "lr" in chosen:
        train = whole.get("train", {})
        whole["train"] = {**train, "optimizer": {**train.get("optimizer", {}), "lr": chosen["lr"]}}
    return whole


def task_of(recipe: Recipe) -> str:
    """What the recipe's data are for; without data, generation."""
    from limbeck.data import load_data

    return next((load_data(block).spec.task for block in recipe.data.values()), "generation")


def _sampler(recipe: Recipe, method: str, runs: Path) -> Trial:
    """A function that trains an arm for a share of the recipe's length and judges its samples."""
    loaded = dict[str, Any]()

    def train(overrides: Mapping[str, Any], share: float) -> float:
        shorter = _with_steps(overrides, _shortened(arm_recipe(recipe, overrides), share).train.steps)
        values = measure(recipe, {method: shorter}, [recipe.seed + TUNING_SEED], runs, loaded=loaded).table[method]
        metric, higher = _main_metric(values, "generation")
        return values[metric][0] if higher else -values[metric][0]

    return train


def validated_trial(recipe: Recipe, method: str, runs: Path) -> Trial:
    """A function that trains an arm for a share of the recipe's length and gives its score on the validation split."""
    from limbeck.engine.devices import launch
    from limbeck.run import placement_of
    from limbeck.stages.cache import cache
    from limbeck.stages.teacher import teacher
    from limbeck.stages.train import add_arm

    fabric, loaded = launch(placement_of(recipe)), dict[str, Any]()

    def train(overrides: Mapping[str, Any], share: float) -> float:
        made = _shortened(arm_recipe(recipe, overrides), share)
        context = arm_context(made, runs / "proofs", fabric, loaded, quiet=True)
        if next(iter(context.data.values())).val is None:
            raise UserError("tuning needs a validation split, or the test split would choose: give data.val_size")
        context.seed = recipe.seed + TUNING_SEED
        teacher(context)
        cache(context)
        last = add_arm(context, method, "student", f"{method}, {share:.0%}", {}).numbers["last"]
        # Of trials that are right equally often, as small validation splits make many, the surer one.
        return last.get("val/accuracy", 0.0) - 1e-3 * last["val/nll"]

    return train


def _shortened(recipe: Recipe, share: float) -> Recipe:
    t = recipe.train
    if t.steps is not None:
        return recipe.with_overrides({"train": {"steps": max(round(t.steps * share), 1)}})
    return recipe.with_overrides({"train": {"epochs": max((t.epochs or 20) * share, 1)}})


# ---------------------------------------------------------------------------------------------------------------------
# Uncertainty


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean of several seeds, by Student's t."""
    from scipy.stats import t  # comes with scikit-learn; imported where it is used, as it takes a while

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    mean, half = statistics.fmean(values), interval(values)
    return mean - half, mean + half


def _main_metric(metrics: Mapping[str, Sequence[float]], task: str) -> tuple[str, bool]:
    from limbeck.report import labels

    found = labels.main_metric(metrics, task)
    if found is None:
        raise UserError("the recipe evaluates nothing that methods could be ranked by: give it evaluate: [accuracy]")
    return found.key, found.better != "lower"
