"""Every contract is tried on every registered method."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from toolkit.benches import Bench, Run, bench_of, methods, trained

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put together what is tried on a method: its tests share trainings, which are kept no longer than that."""
    places = [i for i, item in enumerate(items) if item.path.is_relative_to(HERE)]
    for place, item in zip(places, sorted((items[i] for i in places), key=_method_of), strict=True):
        items[place] = item


def _method_of(item: pytest.Item) -> str:
    given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return next((given[k] for k in ("bench", "method", "name") if k in given), "")


@pytest.fixture(params=methods())
def bench(request: pytest.FixtureRequest) -> Bench:
    """A method and its small recipe."""
    return bench_of(request.param)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Bench], Run]:
    """The plain training of a bench, with an average of the weights kept; done once while the tests are at a method."""

    @lru_cache(maxsize=2)
    def run(name: str) -> Run:
        return trained(bench_of(name).varied(train={"ema": [0.9]}), tmp_path_factory.mktemp(name))

    return lambda bench: run(bench.name)
