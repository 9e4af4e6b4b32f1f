"""Features before their activation: where they are found, and what methods that compare them share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.features import submodule
from limbeck.engine.method import Batch
from limbeck.engine.projectors import Projectors
from limbeck.errors import UserError
from limbeck.models import places
from limbeck.models.forward import forward
from limbeck.registry import Block, build
from limbeck.vision.base import ProjectedTaught

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU)
PASSING = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Identity, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
"""What may stand between a stage's last activation and its end."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class BeforeActivationTaught(ProjectedTaught):
    """A student of features before the activation at the end of every stage, always through a trained connector.

    Where layers are named, their outputs are taken to be these features. Without a projector of the recipe the
    connector is a 1x1 convolution with batch norm (a linear map for vectors), for equal shapes too.
    """

    def helpers(self, s: list[Tensor], t: list[Tensor]) -> dict[str, nn.Module]:
        """The connectors."""
        maps = {}
        for i, (own, other) in enumerate(zip(s, t, strict=True)):
            block = self.projector or Block("conv" if own.dim() == 4 else "linear")
            maps[str(i)] = build("projector", block, own, other)
        return {"projectors": Projectors(maps)}

    def _layers(self, module: nn.Module, batch: Batch, named: list[str] | None) -> tuple[list[str], str]:
        if named is not None:
            return list(named), "output"
        return before(module, batch, places.stages(module, batch)), "output"


@dataclass
class _Call:
    """One module that ran: what went in, what came out, and how many leaves had run by then."""

    path: str
    module: nn.Module
    given: Any
    gave: Any
    after: int


def before(module: nn.Module, batch: Mapping[str, Any], ends: Sequence[str]) -> list[str]:
    """For the end of each stage the module whose output the stage's activation reads.

    The model is run once. From a stage's end the way leads back through pooling and dropout to the activation; where a
    stage ends without one, the activation may be the first thing that comes after it.

    Raises:
        UserError: a stage's activation is no module, or what it reads (a sum, say) is no module's output.
    """
    leaves, last = _run(module, batch)
    return [_before(leaves, last, end) for end in ends]


def _run(module: nn.Module, batch: Mapping[str, Any]) -> tuple[list[_Call], dict[str, _Call]]:
    """The calls of all leaves in their order, and the last call of every module by path."""
    leaves: list[_Call] = []
    last: dict[str, _Call] = {}

    def see(path: str) -> Any:
        def hook(child: nn.Module, inputs: Any, output: Any) -> None:
            leaf = not any(child.children())
            last[path] = _Call(path, child, inputs[0] if inputs else None, output, len(leaves) + leaf)
            if leaf:
                leaves.append(last[path])

        return hook

    handles = [child.register_forward_hook(see(path)) for path, child in module.named_modules() if path]
    try:
        with places.looking(module):
            forward(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return leaves, last


def _before(leaves: list[_Call], last: Mapping[str, _Call], end: str) -> str:
    stage = last[end]
    at = _giver(leaves, stage.gave, stage.after)
    while at is not None and isinstance(leaves[at].module, PASSING):
        at = _giver(leaves, leaves[at].given, at)
    if at is not None and isinstance(leaves[at].module, ACTIVATIONS):
        source = _giver(leaves, leaves[at].given, at)
        if source is not None:
            return leaves[source].path
    elif any(isinstance(c.module, ACTIVATIONS) and c.given is stage.gave for c in leaves[stage.after :]):
        return end if at is None else leaves[at].path
    raise UserError(
        f"no module's output was found to be what the activation at the end of '{end}' reads: name student_layers and "
        "teacher_layers before their activation"
    )


def _giver(leaves: Sequence[_Call], value: Any, until: int) -> int | None:
    """Which of the first ``until`` leaves gave a tensor, the latest one: an activation in place gives it again."""
    return next((i for i in range(until - 1, -1, -1) if leaves[i].gave is value), None)


def margins(module: nn.Module, paths: Sequence[str]) -> list[Tensor]:
    """For each batch norm the mean of its negative outputs by channel, [C] (Heo et al. 2019, arXiv 1904.01866).

    Raises:
        UserError: one of the modules is no batch norm with scale and shift.
    """
    found = []
    for path in paths:
        norm = submodule(module, path)
        if not isinstance(norm, NORMS) or not norm.affine:
            raise UserError(
                f"'{path}' is no batch norm with scale and shift, from which the margin is computed: name "
                "teacher_layers that are"
            )
        found.append(negative_mean(norm.bias.detach(), norm.weight.detach().abs()))
    return found


def negative_mean(mean: Tensor, std: Tensor) -> Tensor:
    """``E[x | x < 0]`` of normal variables, [C] and [C] -> [C]."""
    # Far from zero both the density and the probability vanish, not their ratio: hence the scaled error function.
    m, s = mean.double(), std.double().clamp(min=1e-12)
    value = m - s * math.sqrt(2 / math.pi) / torch.special.erfcx(m / s / math.sqrt(2))
    return value.clamp(max=0.0).to(mean.dtype)


def halved(count: int) -> list[float]:
    """Weights of so many layers: 1 for the deepest, half of it for each one before."""
    return [2.0 ** (i + 1 - count) for i in range(count)]
