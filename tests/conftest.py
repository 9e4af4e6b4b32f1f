"""What tests share: a small cache folder of their own, one thread, and little builders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Teachers and caches of the tests never mix with the user's."""
    os.environ["LIMBECK_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture
def recipes() -> Path:
    """The folder of the shipped recipes."""
    return Path(__file__).parents[1] / "recipes"
