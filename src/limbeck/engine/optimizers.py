"""Optimizers a recipe can name: torch's own, with defaults that suit distillation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from limbeck.registry import register


def _fused(parameters: list[nn.Parameter]) -> bool:
    """One kernel for all parameters where there is one; sharded parameters have none for every optimizer."""
    plain = not any(isinstance(p, DTensor) for p in parameters)
    return plain and all(p.device.type in ("cuda", "cpu") and torch.is_floating_point(p) for p in parameters)


@register("optimizer")
def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay."""
    p = list(parameters)
    return AdamW(p, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=_fused(p))


@register("optimizer")
def adam(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam."""
    p = list(parameters)
    return Adam(p, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=_fused(p))


@register("optimizer")
def sgd(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    nesterov: bool = False,
) -> Optimizer:
    """Stochastic gradient descent; the defaults are the common CIFAR-100 distillation recipe."""
    p = list(parameters)
    made = SGD(p, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=_fused(p))
    if momentum != 0:
        made.register_step_pre_hook(_begin_late)
    return made


def _begin_late(optimizer: Optimizer, *_: object) -> None:
    """A momentum of zero for parameters whose first gradient comes late: torch's fused kernel would stop at them."""
    learning = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    late = [p for p in learning if optimizer.state[p].get("momentum_buffer") is None]
    if len(late) < len(learning):
        for p in late:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
