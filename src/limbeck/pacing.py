"""How many steps a method gets in the time that another takes: what a comparison at equal compute stands on.

A method with a critic makes several passes where another makes one, so that as many steps are not as much work. Three
short trainings say what a method spends before its first step and what each step costs, in processor seconds, which
other work on the machine hardly changes, or in seconds of the clock on an accelerator, which has no such count.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.arms import arm_recipe
from limbeck.claims import arm_context
from limbeck.errors import UserError
from limbeck.recipe import Recipe

PROBED = (0.02, 0.1)
"""Shares of the recipe's steps that are trained to measure by; the shorter one once more before them."""
FEWEST = 2
CLEAR = 0.2
"""The share of the longer training that its additional steps must take, or it is made longer still."""


@dataclass(frozen=True)
class Pace:
    """Seconds before the first step, and of each step."""

    before: float
    step: float

    def steps_in(self, seconds: float) -> int:
        """As many steps as fit, one at least."""
        return max(round((seconds - self.before) / self.step), 1)

    def seconds_of(self, steps: int) -> float:
        """What a training of so many steps takes."""
        return self.before + steps * self.step


def pace_of(spent: Callable[[int], float], steps: int) -> Pace:
    """The pace of a method from what short trainings of it spend.

    The first has to make what later ones may find (pairs that are kept, kernels that are chosen), so that it alone says
    what comes before the steps; the other two are alike but for their length.

    Args:
        spent: trains so many steps from nothing and gives the seconds.
        steps: of a whole training.

    Raises:
        UserError: a whole training takes no longer than a short one.
    """
    short, long = (max(round(steps * share), FEWEST * (k + 1)) for k, share in enumerate(PROBED))
    first, again, longer = spent(short), spent(short), spent(long)
    while longer - again < CLEAR * longer and long < steps:
        long = min(2 * long, steps)
        longer = spent(long)
    if longer <= again:
        raise UserError(f"no step's time can be told from what comes before: {steps} steps are too few to compare by")
    step = (longer - again) / (long - short)
    return Pace(max(first - short * step, 0.0), step)


def trainer(recipe: Recipe, overrides: Mapping[str, Any], name: str) -> Callable[[int], float]:
    """A function that trains an arm for so many steps, in a folder that is left behind empty, and gives the seconds.

    Args:
        recipe: what the arm is a variant of.
        overrides: of the arm.
        name: of the arm.
    """
    from limbeck.engine.devices import launch
    from limbeck.run import placement_of
    from limbeck.stages.cache import cache
    from limbeck.stages.teacher import teacher
    from limbeck.stages.train import add_arm

    fabric, loaded = launch(placement_of(recipe)), dict[str, Any]()
    clock = time.process_time if fabric.device.type == "cpu" else time.perf_counter

    def spent(steps: int) -> float:
        made = arm_recipe(recipe, overrides).with_overrides({"train": {"steps": steps, "epochs": None}})
        with tempfile.TemporaryDirectory() as folder:
            context = arm_context(made, Path(folder), fabric, loaded, quiet=True)
            teacher(context)
            cache(context)
            began = clock()
            add_arm(context, name, "student", name, {})
            return clock() - began

    return spent
