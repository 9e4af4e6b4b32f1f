"""A language small enough to write down every text: expectations over texts are sums."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.base import DataSpec
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.language.rollouts import Rollout
from limbeck.losses import IGNORE

V, N = 3, 3
"""Tokens of the vocabulary, and of a text after its prompt of one token."""


class TableLM(nn.Module):
    """Logits of its own for every prefix."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(scale * torch.randn(V ** (N + 2), V, generator=draws, dtype=torch.float64))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        codes, code = [], torch.zeros_like(input_ids[:, 0])
        for column in input_ids.T:
            code = code * V + column + 1
            codes.append(code)
        return self.table[torch.stack(codes, 1)]


def texts() -> Tensor:
    """Every row of the prompt 0 and a text, int64 [V^N, 1 + N]."""
    return torch.tensor([(0, *rest) for rest in itertools.product(range(V), repeat=N)])


def logprobs(model: nn.Module, rows: Tensor) -> Tensor:
    """Log-probability of each token of the texts, [R, N]."""
    return torch.log_softmax(model(rows[:, :-1]), -1).gather(-1, rows[:, 1:, None])[..., 0]


def ready(method: Any, student: nn.Module, teacher: nn.Module, **parts: Any) -> Any:
    """The method set up for these models."""
    spec = DataSpec(task="language", shape=(1 + N,), vocab_size=V)
    method.setup(Parts(student, {"teacher": Teacher(teacher, {"logits", "text"}, "teacher")}, spec, **parts))
    method.before_step(Clock(0, 10))
    return method


def given(method: Any, rows: Tensor, drawn: Tensor | None = None, number: int = 0) -> dict[str, Any]:
    """A batch whose rows are what the student wrote, with log-probabilities that they were drawn with [R, N]."""
    labels = rows.clone()
    labels[:, 0] = IGNORE
    ids = torch.arange(len(rows)) + number
    batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": labels, "id": ids, "view": 0}
    said = torch.zeros(rows.shape, dtype=torch.float64)
    said[:, 1:] = logprobs(method.student, rows).detach() if drawn is None else drawn.detach()
    method._kept[tuple(ids.tolist())] = Rollout(batch, said)
    return batch


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    """Of all parameters, in one vector."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(model.parameters(), found, strict=True)]
    )


def expected(method: Any, law: Tensor, **arguments: Any) -> Tensor:
    """The gradient of a method's loss (sum over tokens) in expectation over texts with these probabilities [V^N]."""
    total = torch.zeros(())
    for i, (row, probability) in enumerate(zip(texts().split(1), law.detach(), strict=True)):
        batch = given(method, row, number=i)
        loss = sum(t.weight * t.sum / t.count for t in method.terms(batch, **arguments).values())
        total = total + probability * gradient(loss, method.student)
    return total
