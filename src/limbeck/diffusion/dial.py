"""What methods of the family make of their student's number of calls, in words: the run's plan says it.

A method keeps what it takes from the student under these names: ``edges`` are the levels between phases, ``experts``
the networks that are trained one after another, ``steps`` the levels of a trajectory down to 0, ``segments`` how many
each stage has, ``rounds`` and ``nfe`` how often steps are halved, and down to how many.
"""

from __future__ import annotations

from collections.abc import Sequence


def derived(method: object) -> list[str]:
    """A few words for each thing that follows from the student; after ``setup``."""
    found = []
    low, high = (getattr(method, f"sigma_{end}", None) for end in ("min", "max"))
    if low is not None and high is not None:
        found.append(f"noise from {low:.3g} to {high:.3g}")
    if edges := _several(method, "edges"):
        found.append(f"phases: {len(edges) - 1}")
    if experts := _several(method, "experts"):
        found.append(f"phases: {len(experts)}, an expert in each")
    if steps := _several(method, "steps"):
        found.append(f"laws are matched at {spoken(steps[1:])}")
    if segments := _several(method, "segments"):
        found.append(f"stages of {spoken(segments)} segments")
    rounds, nfe = getattr(method, "rounds", None), getattr(method, "nfe", None)
    if isinstance(rounds, int) and isinstance(nfe, int):
        found.append(f"rounds of {spoken([nfe * 2**k for k in reversed(range(rounds))])} steps")
    return found


def spoken(numbers: Sequence[float]) -> str:
    """Numbers of three digits, with commas between."""
    return ", ".join(f"{v:.3g}" for v in numbers)


def _several(method: object, name: str) -> tuple[float, ...]:
    value = getattr(method, name, None)
    return value if isinstance(value, tuple) else ()
