"""Teachers: frozen models asked for named signals, live or from a cache.

A teacher is never part of the student's module tree; it is in evaluation mode unless the recipe says ``batch_stats``;
its parameters take no gradient, though gradients may pass through it to its inputs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from limbeck.engine.checkpoint import tensor_hash
from limbeck.models.forward import Signals, forward


class Stored(Protocol):
    """Stored teacher outputs, as :class:`limbeck.engine.cache.TeacherCache` gives them."""

    def serve(self, batch: Mapping[str, Any]) -> Signals:
        """The signals for a batch."""
        ...


class Teacher:
    """A frozen model and what it gives.

    Args:
        module: the network (or exact law) that teaches.
        gives: names of the signals and capabilities it has (``logits``, ``denoiser``, ...).
        name: its role in the recipe.
        mode: ``eval`` (running statistics, no dropout) or ``batch_stats`` (batch normalisation by the batch).
    """

    def __init__(self, module: nn.Module, gives: set[str] | frozenset[str], name: str, mode: str = "eval") -> None:
        self.module = module.requires_grad_(False)
        self.gives = frozenset(gives)
        self.name = name
        self.mode = mode
        self.stored: Stored | None = None
        self.context: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._hash: str | None = None
        self.module.train(mode == "batch_stats")

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that a language model was stored with; None where it has none of its own."""
        return getattr(self.module, "tokenizer", None)

    @property
    def hash(self) -> str:
        """Content hash of the weights and of the layout that holds them."""
        if self._hash is None:
            # The layout matters beside the weights: it is all there is to tell two models without any apart.
            layout = re.sub(r" at 0x[0-9a-f]+", "", f"{type(self.module).__module__} {self.module!r} {self.mode}")
            content = layout + tensor_hash(self.module.state_dict())
            self._hash = hashlib.sha256(content.encode()).hexdigest()
        return self._hash

    def __call__(self, batch: Mapping[str, Any], **kwargs: Any) -> Signals:
        """The teacher's signals for a batch: from the cache if there is one, else computed without gradient."""
        if self.stored is not None and not kwargs:
            return self.stored.serve(batch)
        return self.compute(batch, **kwargs)

    @torch.no_grad()
    def compute(self, batch: Mapping[str, Any], **kwargs: Any) -> Signals:
        """The live teacher's signals, whatever is stored. ``teacher_input`` in the batch is its own view, if any."""
        if "teacher_input" in batch:
            batch = {**batch, "input": batch["teacher_input"]}
        with self.context():
            return forward(self.module, batch, **kwargs)

    def parameters(self) -> int:
        """How many parameters it has."""
        return sum(p.numel() for p in self.module.parameters())
