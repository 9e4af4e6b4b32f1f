"""Every contract is tried on every registered method."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from toolkit.benches import Bench, Run, bench_of, methods, trained


@pytest.fixture(params=methods())
def bench(request: pytest.FixtureRequest) -> Bench:
    """A method and its small recipe."""
    return bench_of(request.param)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Bench], Run]:
    """The plain training of a bench, with an average of the weights kept; done once for each method."""
    kept: dict[str, Run] = {}

    def run(bench: Bench) -> Run:
        if bench.name not in kept:
            kept[bench.name] = trained(bench.varied(train={"ema": [0.9]}), tmp_path_factory.mktemp(bench.name))
        return kept[bench.name]

    return run
