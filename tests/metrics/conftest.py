"""A test split in memory, a model that answers with given logits, and a stand-in for a teacher."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.data.base import DataSpec
from limbeck.metrics.base import Evaluation
from limbeck.models.forward import Signals, forward


class Rows:
    """A source of given tensors; counts how often it is asked."""

    fingerprint = "rows"

    def __init__(self, spec: DataSpec, **columns: Tensor) -> None:
        self.spec, self.columns, self.asked = spec, columns, 0

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def batch(self, indices: Tensor, view: int = 0) -> dict[str, Any]:
        self.asked += 1
        return {**{k: v[indices] for k, v in self.columns.items()}, "id": indices, "view": view}


class Given(nn.Module):
    """Answers a row with its own input: the input is the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training, "a model must be judged in eval mode"
        self.calls += 1
        return x * self.scale


def stand_in_teacher(module: nn.Module, name: str = "teacher") -> Any:
    """The parts of a teacher that metrics may use: a name and a call."""

    class Stub(SimpleNamespace):
        def __call__(self, batch: dict[str, Any]) -> Signals:
            return forward(self.module, batch)

    return Stub(module=module.eval(), name=name, gives={"logits"})


class Fixed(nn.Module):
    """Answers with the rows of a table, in order of asking."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.at = table, 0

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table[self.at : self.at + len(x)]
        self.at += len(x)
        return rows


Judge = Callable[..., Evaluation]


@pytest.fixture
def judge() -> Judge:
    """Builds the evaluation of a model that gives these logits for these labels, beside a teacher's logits."""

    def build(logits: Tensor, labels: Tensor | None = None, teacher: Tensor | None = None, **kw: Any) -> Evaluation:
        spec = DataSpec(task="classification", shape=tuple(logits.shape[1:]), classes=logits.shape[-1])
        columns = {"input": logits} if labels is None else {"input": logits, "label": labels}
        stub = None if teacher is None else stand_in_teacher(Fixed(teacher))
        return Evaluation(Given().train(), spec, Rows(spec, **columns), None, stub, **{"batch_size": 7, **kw})

    return build


@pytest.fixture
def rows() -> type[Rows]:
    return Rows


@pytest.fixture
def teacher_of() -> Callable[..., Any]:
    return stand_in_teacher
