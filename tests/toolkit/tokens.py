"""A student and a teacher of language, with the tokenizer of each, and what every token method is tried on."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from limbeck.data.base import Data
from limbeck.data.text import text
from limbeck.engine.method import Batch, Clock, Method, Parts, Term
from limbeck.engine.teacher import Teacher
from limbeck.models.causal import causal_lm


@cache
def reading(tokenizer: str, context: int = 16) -> Data:
    """A little text in tokens of a kind."""
    return text(corpus="grammar", characters=4000, context=context, tokenizer=tokenizer, vocab_size=290)


def network(data: Data, seed: int, hidden: int = 16, **sizes: Any) -> Any:
    """A model with weights large enough to be sure of something, with the tokenizer that it would be stored with."""
    torch.manual_seed(seed)
    made = causal_lm(
        architecture="llama", hidden=hidden, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=48, **sizes
    )
    for p in made.parameters():
        p.data.mul_(4.0 if p.dim() > 1 else 1.0)
    made.tokenizer, made.tokenizer_hash = data.extra["tokenizer"], data.spec.tokenizer_hash
    return made


def ready(method: Method, *teachers: str, student: str = "bpe") -> Method:
    """The method set up with a student and teachers of these kinds of tokens."""
    data = reading(student)
    roles = ["teacher"] if len(teachers) == 1 else [f"teacher_{i}" for i in range(len(teachers))]
    made = {
        role: Teacher(network(reading(kind), 1 + i, 24), {"logits", "hidden_states"}, role)
        for i, (role, kind) in enumerate(zip(roles, teachers, strict=True))
    }
    torch.manual_seed(0)
    method.setup(Parts(network(data, 0), made, data.spec, {}, {"data": data.train}))
    method.before_step(Clock(0, 10))
    return method


def rows_of(kind: str = "bpe", count: int = 6) -> Batch:
    """Rows with a prompt, with none that counts, and whole ones."""
    batch = reading(kind).train.batch(torch.arange(count))
    batch["labels"][0, :5] = -100
    batch["labels"][1] = -100
    return batch


def terms_of(method: Method, batch: Batch) -> dict[str, Term]:
    """The terms of the one update of a step."""
    (update,) = method.updates(batch, Clock(0, 10))
    return update.evaluate()


def total(terms: dict[str, Term], counts: dict[str, Any]) -> Tensor:
    """The loss, each term divided by its count over the whole batch."""
    return sum((t.weight * t.sum / counts[t.unit] for t in terms.values()), torch.zeros(()))


def gradient(method: Method, batch: Batch, size: int) -> Tensor:
    """Of all that learns, with the batch cut into pieces of ``size`` rows."""
    counts = method.count(batch)
    for module in method.learners.values():
        module.zero_grad()
    tensors = {k: v for k, v in batch.items() if torch.is_tensor(v)}
    for rows in torch.arange(len(batch["id"])).split(size):
        piece = {**{k: v[rows] for k, v in tensors.items()}, "view": 0}
        total(terms_of(method, piece), counts).backward()
    found = [p.grad for m in method.learners.values() for p in m.parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in found])


def padded(batch: Batch, more: int = 5) -> Batch:
    """The same rows with padding after them."""
    made = dict(batch)
    for name, value in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
        extra = torch.full((len(batch["id"]), more), value)
        made[name] = torch.cat([batch[name], extra], 1)
    return made
