"""Small data, students and teachers of texts, and the sums that tests of their methods compare."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from limbeck.data.base import Data
from limbeck.data.retrieval import retrieval
from limbeck.data.text_pairs import text_pairs
from limbeck.engine.method import Method, Parts
from limbeck.engine.teacher import Teacher
from limbeck.models.embedding import cross_encoder, pair_encoder, sparse_encoder, text_encoder
from limbeck.models.forward import forward

SIZES = {"hidden": 16, "layers": 1, "heads": 2, "context": 12}
KINDS = {"text": text_encoder, "cross": cross_encoder, "sparse": sparse_encoder, "pair": pair_encoder}


@cache
def lists() -> Data:
    """Lists of a query and four documents."""
    return retrieval(corpus="catalogue", documents=20, queries=10, test_queries=5, negatives=3, context=12)


@cache
def pairs() -> Data:
    """Pairs of sentences with scores and classes."""
    return text_pairs(corpus="catalogue", train_size=20, test_size=10, context=12)


def network(data: Data, kind: str, seed: int, **options: Any) -> Any:
    """A model with random weights, larger than networks start with, so that its scores differ."""
    torch.manual_seed(seed)
    model = KINDS[kind](**SIZES, vocab_size=data.spec.vocab_size or 0, **options)
    for p in model.parameters():
        p.data.mul_(3.0 if p.dim() > 1 else 1.0)
    return model.eval()


def ready(method: Method, data: Data, student: Any, **teachers: tuple[str, Any]) -> Method:
    """A method with its parts; each teacher is what it gives and a model."""
    made = {role: Teacher(model, {gives}, role) for role, (gives, model) in teachers.items()}
    method.setup(Parts(student, made, data.spec, streams={"data": data.train}))
    return method


def batch_of(data: Data, rows: int = 6) -> dict[str, Any]:
    """The first rows; the second has no label."""
    batch = data.train.batch(torch.arange(rows))
    if "label" in batch:
        batch["label"] = torch.where(torch.arange(rows) == 1, -100, batch["label"])
    return batch


def outputs(module: Any, batch: dict[str, Any], name: str = "logits") -> torch.Tensor:
    """What a model gives, in float64 and without gradient."""
    found: torch.Tensor = forward(module, batch)[name].detach().double()
    return found


def total(terms: Any, counts: Any) -> torch.Tensor:
    """The loss that the loop makes of terms."""
    return sum((t.weight * t.sum / counts[t.unit] for t in terms.values()), torch.zeros(()))


def gradient(method: Any, batch: dict[str, Any], cuts: int) -> torch.Tensor:
    """The student's gradient over a batch that is cut into pieces."""
    counts = method.count(batch)
    method.student.zero_grad()
    tensors = {k: v for k, v in batch.items() if k != "view"}
    for rows in torch.arange(len(batch["id"])).split(cuts):
        total(method.terms({**{k: v[rows] for k, v in tensors.items()}, "view": 0}), counts).backward()
    return torch.cat([p.grad.flatten() for p in method.student.parameters() if p.grad is not None])


def assert_cut_free(method: Any, batch: dict[str, Any]) -> None:
    """The gradient does not depend on how the batch is cut, and is not nothing."""
    whole = gradient(method, batch, len(batch["id"]))
    assert whole.abs().max() > 1e-6
    for cuts in (1, 4):
        torch.testing.assert_close(gradient(method, batch, cuts), whole, rtol=1e-4, atol=1e-6)
