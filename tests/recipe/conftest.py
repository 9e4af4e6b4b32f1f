"""Toy parts under names of their own, so that these tests do not depend on which parts the library has."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from limbeck import registry
from limbeck.recipe import Mistake, Recipe, RecipeError, load_recipe
from limbeck.registry import LossBlock, ModelBlock, register


def _register_toys() -> None:
    @register("data")
    def toy_data(*, rows: int = 10, path: Path | None = None, token: str = "") -> None:
        """Rows."""

    @register("model", gives={"logits", "features"})
    def toy_net(*, width: int, classes: int, depth: int = 2, act: Literal["relu", "gelu"] = "relu") -> None:
        """A net.

        Of any width.
        """

    @register("model", gives={"images"})
    def toy_images(*, count: int = 1) -> None:
        """Gives no logits."""

    @register("model")
    def toy_hub(*, path: str, width: int = 1) -> None:
        """Has a path of its own."""

    @register("model")
    def toy_open(**anything: Any) -> None:
        """Takes anything."""

    @register("loss")
    def toy_loss(student: Any, teacher: Any, *, sharpness: float = 1.0) -> None:
        """A loss."""

    @register("metric")
    def toy_accuracy(evaluation: Any, *, top: int = 1) -> None:
        """A metric."""

    @register("optimizer")
    def toy_sgd(parameters: Any, *, lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        """An optimizer."""

    @register("schedule")
    def toy_ramp(*, start: float = 0.0, end: float = 1.0) -> None:
        """A schedule."""

    @register("stage")
    def toy_stage(context: Any, *, rounds: int = 1) -> None:
        """A stage."""

    @register("method")
    class toy_kd:  # noqa: N801
        """Distils."""

        needs = {"teacher": {"logits"}}
        controls = {"bare": {"method": {"name": "toy_plain"}, "teacher": None}}

        def __init__(
            self,
            *,
            alpha: float = 1.0,
            temperature: float | None = 4.0,
            steps: int = 1,
            name_of: str = "x",
            flag: bool = False,
            either: int | str = 1,
            pair: tuple[int, int] = (1, 2),
            weights: dict[str, float] | None = None,
            by_class: dict[int, float] | None = None,
            losses: list[LossBlock] | None = None,
            terms: dict[str, LossBlock] | None = None,
            critic: ModelBlock | None = None,
            file: Path | None = None,
            free: Any = None,
        ) -> None: ...

    @register("method")
    class toy_plain:  # noqa: N801
        """Needs no teacher."""

    @register("method", data_free=True)
    class toy_free:  # noqa: N801
        """Needs no data."""

        def __init__(self, *, needed: int) -> None: ...

    @register("method", needs={"*": {"features"}})
    class toy_all:  # noqa: N801
        """Needs features of every teacher."""


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the toys for one test."""
    monkeypatch.setattr(registry, "_LIVE", dict(registry._LIVE))
    _register_toys()
    yield


BASE = """\
title: A toy
data: {name: toy_data}
teacher: {name: toy_net, width: 64}
student: {name: toy_net, width: 8}
method: {name: toy_kd, temperature: 2.0}
train: {epochs: 3, optimizer: {name: toy_sgd, lr: 2e-3}}
"""


@pytest.fixture
def base() -> dict[str, Any]:
    """A recipe without mistakes, as a mapping."""
    return {
        "title": "A toy",
        "data": {"name": "toy_data"},
        "teacher": {"name": "toy_net", "width": 64},
        "student": {"name": "toy_net", "width": 8},
        "method": {"name": "toy_kd", "temperature": 2.0},
        "train": {"epochs": 3, "optimizer": {"name": "toy_sgd", "lr": 2e-3}},
    }


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a recipe file into the working directory, which is empty otherwise."""
    monkeypatch.chdir(tmp_path)

    def writes(text: str | bytes = BASE, name: str = "toy.yaml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode("utf8"))
        return path

    return writes


@pytest.fixture
def load(write: Callable[..., Path]) -> Callable[..., Recipe]:
    """Load a recipe from its text."""
    return lambda text=BASE, *settings: load_recipe(write(text), settings)


@pytest.fixture
def wrong(write: Callable[..., Path]) -> Callable[..., list[Mistake]]:
    """The mistakes of a recipe, from its text or as a mapping."""

    def mistakes(source: Any = BASE, *settings: str, **more: Any) -> list[Mistake]:
        with pytest.raises(RecipeError) as caught:
            load_recipe(write(source) if isinstance(source, str | bytes) else source, settings, **more)
        return caught.value.mistakes

    return mistakes
