"""What tests share: a small cache folder of their own, one thread, and little builders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Teachers and caches of the tests never mix with the user's."""
    os.environ["LIMBECK_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True, scope="session")
def _quick_seeds() -> None:
    """Seeding queues a call, with the stack it came from, for each kind of device that is not there: a tenth of a
    small training, and memory that is never freed."""
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        if not kind.is_available():
            kind.manual_seed_all = lambda seed: None  # type: ignore[assignment]


@pytest.fixture
def recipes() -> Path:
    """The folder of the shipped recipes."""
    return Path(__file__).parents[1] / "recipes"
