"""Gradients through a training: a network as a function of one vector of weights, and descent that stays in the graph.

The loss of a step is a function ``loss(weights [P], step, *inputs)``; what the descent is differentiated by are the
start, the learning rate and the ``inputs`` (images, targets). Everything else that the function holds is a constant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_

StepLoss = Callable[..., Tensor]
"""From weights [P], the number of the step and the inputs to a scalar."""


class Flat:
    """A network as a function of one vector of its weights.

    Batch norm takes its statistics from the batch in hand and keeps none, so that nothing leaks from one unroll into
    the next or from one network into another. The network that is given stays as it is.

    Args:
        network: the layers; :meth:`weights` takes the values from any network like it.

    Attributes:
        size: P, how many weights there are.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = replace_all_batch_norm_modules_(copy.deepcopy(network).train())
        self._shapes = {name: p.shape for name, p in self.network.named_parameters()}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self.size = sum(self._sizes)
        self._bound: Tensor | None = None

    def weights(self, network: nn.Module) -> Tensor:
        """The weights of a network of the same layers, [P]."""
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        """The weights [P] by name, in their shapes; views."""
        pieces = weights.split(self._sizes)
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def __call__(self, weights: Tensor, images: Tensor) -> Tensor:
        """What a network with these weights [P] gives for images [B, ...]; differentiable in both."""
        return cast("Tensor", functional_call(self.network, self.named(weights), (images,)))

    @torch.no_grad()
    def put(self, network: nn.Module, weights: Tensor) -> nn.Module:
        """Give a network of the same layers these weights [P], and return it."""
        for p, piece in zip(network.parameters(), weights.split(self._sizes), strict=True):
            p.copy_(piece.view_as(p))
        return network

    def bound(self, weights: Tensor) -> tuple[nn.Module, list[nn.Parameter]]:
        """The network with a copy of these weights [P] in its parameters, until the next call.

        Cheaper than calling with a vector where gradients of the weights alone are wanted.
        """
        parameters = list(self.network.parameters())
        if self._bound is None or self._bound.device != weights.device:
            self._bound = torch.empty_like(weights)
            for p, piece in zip(parameters, self._bound.split(self._sizes), strict=True):
                p.data = piece.view_as(p)
        self._bound.copy_(weights)
        return self.network, parameters


def unroll(
    loss: StepLoss,
    start: Tensor,
    rate: Tensor,
    steps: int,
    inputs: tuple[Tensor, ...] = (),
    *,
    momentum: float = 0.0,
    checkpoint: bool = False,
) -> list[Tensor]:
    """Gradient descent whose result can be differentiated: ``w_{k+1} = w_k - rate * v_k``, ``v_k = m v_{k-1} + g_k``.

    Args:
        loss: of a step.
        start: first weights, [P].
        rate: learning rate, a scalar tensor.
        steps: how many, N.
        inputs: what the loss depends on and the result is differentiated by.
        momentum: m; its graph is kept, too.
        checkpoint: hold no graph between the steps and make each anew when its gradient is asked for. The gradient is
            the same, the memory that of one step's graph, and the time about half as much again.

    Returns:
        the weights before and after each step, N + 1 vectors.
    """
    weights, velocity, found = start, torch.zeros_like(start), [start]
    for k in range(steps):
        if checkpoint:
            weights, velocity = _Forgetful.apply(loss, k, momentum, weights, velocity, rate, *inputs)
        else:
            weights, velocity = _step(loss, k, momentum, weights, velocity, rate, inputs)
        found.append(weights)
    return found


def gradient(loss: StepLoss, weights: Tensor, step: int, inputs: tuple[Tensor, ...] = ()) -> Tensor:
    """The gradient [P] of a step's loss at these weights [P], without a graph."""
    leaf = weights.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(loss(leaf, step, *(x.detach() for x in inputs)), leaf)[0]


def _step(
    loss: StepLoss,
    k: int,
    momentum: float,
    weights: Tensor,
    velocity: Tensor,
    rate: Tensor,
    inputs: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        point = weights if weights.requires_grad else weights.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(point, k, *inputs), point, create_graph=True)
        velocity = momentum * velocity + slope if momentum else slope
        return weights - rate * velocity, velocity


class _Forgetful(torch.autograd.Function):
    """A step without its graph, which its backward makes again."""

    @staticmethod
    def forward(
        ctx: Any, loss: StepLoss, k: int, momentum: float, weights: Tensor, velocity: Tensor, rate: Tensor, *inputs: Any
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weights, velocity, rate, *inputs)
        ctx.step = loss, k, momentum
        with torch.no_grad():
            slope = gradient(loss, weights, k, inputs)
            velocity = momentum * velocity + slope if momentum else slope
            return weights - rate * velocity, velocity.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        loss, k, momentum = ctx.step
        # Labels that are class numbers have no gradient.
        given = [x.detach().requires_grad_(x.is_floating_point()) for x in ctx.saved_tensors]
        weights, velocity, rate, *inputs = given
        made = _step(loss, k, momentum, weights, velocity, rate, tuple(inputs))
        below = iter(torch.autograd.grad(made, [x for x in given if x.requires_grad], above, allow_unused=True))
        return None, None, None, *(next(below) if x.requires_grad else None for x in given)
