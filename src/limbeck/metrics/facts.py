"""What is known of the registered metrics without importing them: directions, labels, and which judge a task.

A metric says these in its ``register`` call, as literals:

- ``better={"accuracy": "higher"}``: every value that it can give, and which way is better;
- ``labels={"accuracy": ("Accuracy", "%")}``: what to call a value, and its unit. The unit ``%`` means that the value
  is a share in [0, 1], to be shown times 100;
- ``task={"classification"}``: the tasks that it can judge (left out: any);
- ``default=True`` (or a set of tasks): it is used where a recipe does not say ``evaluate:``;
- ``needs={"teacher"}``: it compares with the teacher, and is left out where there is none. Other needs are a kind of
  teacher or of data: an exact ``mixture`` or ``chain`` to judge by, a ``denoiser``, or ``pictures`` with classes;
- ``unless={"mixture"}``: it is no default where there is one of these.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, cast

from limbeck import registry
from limbeck.registry import Block, Part

Direction = Literal["higher", "lower"]


def directions() -> dict[str, Direction]:
    """Which way is better, for every value that a registered metric can give.

    Raises:
        ValueError: two metrics claim opposite directions for one key.
    """
    known: dict[str, Direction] = {}
    for part in registry.parts("metric"):
        for key, better in part.facts.get("better", {}).items():
            if better not in ("higher", "lower"):
                raise ValueError(f"metric '{part.name}' says better={better!r} of '{key}'; say 'higher' or 'lower'")
            if known.setdefault(key, better) != better:
                raise ValueError(f"metric '{part.name}' says {better} is better for '{key}', another says the opposite")
    return known


def label_of(key: str) -> tuple[str, str]:
    """The label and the unit of a value; where no metric names one, the key in words and no unit."""
    for part in registry.parts("metric"):
        if key in part.facts.get("labels", {}):
            label, unit = part.facts["labels"][key]
            return label, unit
    words = key.replace("_", " ")
    return words[:1].upper() + words[1:], ""


def judges(part: Part, task: str) -> bool:
    """Whether a metric can judge a task."""
    return task in part.facts.get("task", {task})


def needs_teacher(part: Part) -> bool:
    """Whether a metric compares with the teacher."""
    return "teacher" in part.facts.get("needs", ())


def lacks(part: Part, at_hand: Collection[str]) -> set[str]:
    """The kinds of teacher or data that a metric needs and that are not at hand."""
    return set(part.facts.get("needs", ())) - {"teacher", *at_hand}


def default_metrics(task: str, *, teacher: bool = True, at_hand: Collection[str] = ()) -> list[Block]:
    """The metrics of a task where the recipe names none, sorted by name.

    Args:
        task: ``DataSpec.task``.
        teacher: whether there is a teacher to compare with.
        at_hand: the kinds of teacher and data that there are, as metrics call what they need.
    """
    return [
        Block(part.name)
        for part in registry.parts("metric")
        if _is_default(part, task, at_hand) and (teacher or not needs_teacher(part))
    ]


def _is_default(part: Part, task: str, at_hand: Collection[str]) -> bool:
    default = part.facts.get("default", False)
    chosen = default if isinstance(default, bool) else task in cast("set[str]", default)
    serves = not lacks(part, at_hand) and not set(part.facts.get("unless", ())) & set(at_hand)
    return chosen and judges(part, task) and serves
