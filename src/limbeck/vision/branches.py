"""Branches: further ends of a network on its own trunk, and a gate over them. They are never part of the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.engine.features import Taps, submodule
from limbeck.engine.method import Batch
from limbeck.errors import UserError
from limbeck.losses import wide
from limbeck.models import places
from limbeck.models.forward import forward
from limbeck.vision.fusion import BatchNorm
from limbeck.vision.shapes import as_vector

Readout = Literal["mean", "flat", "first"]


def _first(feature: Tensor) -> Tensor:
    return feature[:, 0] if feature.dim() == 3 else feature


READOUTS: dict[Readout, Callable[[Tensor], Tensor]] = {
    "mean": as_vector,
    "flat": lambda feature: feature.flatten(1),
    "first": _first,
}
"""How a head's input [B, D] comes out of the last stage: the mean over cells, all of it, or the first token."""


@dataclass(frozen=True)
class End:
    """The end of a classifier: a stage, what its head reads of it, and the head.

    Attributes:
        stage, head: module paths.
        readout: a key of :data:`READOUTS`.
        trunk: an example of what the stage is handed.
    """

    stage: str
    head: str
    readout: Readout
    trunk: Tensor


def end_of(module: nn.Module, batch: Batch, stage: str | None = None) -> End:
    """The end of a classifier that begins with ``stage``, by default the last one; found by running it.

    Raises:
        UserError: more than a readout lies between the stage and the head, so that a copy of both is no classifier.
    """
    stage = stage or places.stages(module, batch)[-1]
    head, _ = places.head(module, batch)
    with (
        Taps(module, [stage], of="input") as trunk,
        Taps(module, [stage]) as last,
        Taps(module, [head], of="input") as e,
    ):
        with places.looking(module):
            forward(module, batch)
        feature, embedding = last.pop()[stage], e.pop()[head]
        handed = trunk.pop()[stage]
    for name, read in READOUTS.items():
        found = read(feature)
        if found.shape == embedding.shape and torch.allclose(found, embedding, atol=1e-6):
            return End(stage, head, name, handed)
    raise UserError(f"a branch from '{stage}' to '{head}' would leave out what lies between: choose another stage")


class Branches(nn.Module):
    """Copies of a network's end with weights of their own, and a gate over the network and its branches.

    Args:
        module: the network, without hooks.
        end: what is copied.
        count: how many copies.
        gated: with a gate (linear, batch normalisation, ReLU, softmax) that reads the trunk; else all weigh alike.
    """

    def __init__(self, module: nn.Module, end: End, count: int, *, gated: bool = True) -> None:
        super().__init__()
        self.readout = end.readout
        self.stages = nn.ModuleList(_fresh(submodule(module, end.stage)) for _ in range(count))
        self.heads = nn.ModuleList(_fresh(submodule(module, end.head)) for _ in range(count))
        self.gate = nn.Linear(as_vector(end.trunk).shape[1], count + 1) if gated else None
        self.norm = BatchNorm(count + 1) if gated else None

    def forward(self, trunk: Tensor) -> tuple[list[Tensor], Tensor]:
        """What the stage is handed -> logits [B, K] of each branch, and weights [B, count + 1], the network's first."""
        read = READOUTS[self.readout]
        logits = [head(read(stage(trunk))) for stage, head in zip(self.stages, self.heads, strict=True)]
        return logits, self.weigh(trunk)

    def weigh(self, trunk: Tensor) -> Tensor:
        """The weights of the network and its branches for each sample; they sum to one."""
        if self.gate is None or self.norm is None:
            count = len(self.stages) + 1
            return torch.full((len(trunk), count), 1 / count, device=trunk.device)
        scores = self.norm(self.gate(as_vector(trunk))[:, :, None, None])[:, :, 0, 0]
        return wide(scores).relu().softmax(1)


def _fresh(module: nn.Module) -> nn.Module:
    """A copy with new weights."""
    made = copy.deepcopy(module)
    for part in made.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
    return made
