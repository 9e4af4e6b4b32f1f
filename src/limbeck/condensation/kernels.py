"""Kernel ridge regression from a few learned images to many real ones, and the kernels of infinitely wide networks."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

EDGE = 1e-7
"""How far from -1 and 1 a cosine is kept: the angle's slope is infinite there."""


def ridge(k_ss: Tensor, k_ts: Tensor, targets: Tensor, strength: float = 1e-6) -> Tensor:
    """What kernel ridge regression predicts, ``K_ts (K_ss + lambda I)^-1 y``: [T, K].

    ``lambda`` is ``strength`` times the trace of ``K_ss``, through which no gradient goes. The system is solved in
    float64.

    Args:
        k_ss: kernel of the images that are learned from, [S, S], symmetric and not negative.
        k_ts: kernel of those that are predicted with them, [T, S].
        targets: y, [S, K].
        strength: of the regulariser.
    """
    weights = ridge_weights(k_ss, targets, strength)
    return (k_ts.double() @ weights).to(k_ts.dtype)


def ridge_weights(k_ss: Tensor, targets: Tensor, strength: float = 1e-6) -> Tensor:
    """``(K_ss + lambda I)^-1 y`` of :func:`ridge`, float64 [S, K]."""
    kernel = k_ss.double()
    bent = kernel + strength * kernel.detach().trace() * torch.eye(
        len(kernel), dtype=kernel.dtype, device=kernel.device
    )
    return torch.cholesky_solve(targets.double(), torch.linalg.cholesky(bent))


def best_targets(k_ss: Tensor, k_ts: Tensor, wanted: Tensor, strength: float = 1e-6) -> Tensor:
    """The targets y [S, K] with which :func:`ridge` comes nearest to ``wanted`` [T, K] (KIP's label solve).

    Nguyen et al. 2021 (arXiv 2011.00050), equation 8: ``y = (K_ts (K_ss + lambda I)^-1)^+ y_T``.
    """
    eye = torch.eye(len(k_ss), dtype=torch.float64, device=k_ss.device)
    map_ = k_ts.double() @ ridge_weights(k_ss, eye, strength)
    return (torch.linalg.pinv(map_) @ wanted.double()).to(wanted.dtype)


def linear_kernel(a: Tensor, b: Tensor) -> Tensor:
    """``<[phi(a), 1], [phi(b), 1]>`` of features [A, D] and [B, D] -> [A, B]."""
    return a @ b.T + 1


def mlp_kernel(
    a: Tensor, b: Tensor, *, depth: int = 1, bias: float = 0.1, kind: Literal["ntk", "nngp"] = "ntk"
) -> Tensor:
    """Kernel of an infinitely wide perceptron with ReLU between inputs [A, ...] and [B, ...] -> [A, B].

    The weights of each layer have variance 2 / inputs and the biases ``bias^2``, in the neural-tangent scaling.
    ``nngp`` is the covariance of the outputs at the start (Cho and Saul 2009; Lee et al. 2018, arXiv 1711.00165):
    ``S_0 = 2 <x, x'> / d + bias^2`` and ``S_l = 2 E[relu(u) relu(u')] + bias^2`` for ``(u, u') ~ N(0, S_{l-1})``.
    ``ntk`` is that of gradient descent (Jacot et al. 2018, arXiv 1806.07572): ``T_0 = S_0`` and
    ``T_l = S_l + T_{l-1} * 2 E[relu'(u) relu'(u')]``.

    Args:
        a, b: inputs, flattened.
        depth: hidden layers.
        bias: standard deviation of the biases.
        kind: which.
    """
    x, y = a.flatten(1), b.flatten(1)
    across = 2 * (x @ y.T) / x.shape[1] + bias**2
    own = [2 * z.square().sum(1) / z.shape[1] + bias**2 for z in (x, y)]
    tangent = across
    for _ in range(depth):
        scale = (own[0][:, None] * own[1][None, :]).sqrt()
        angle = (across / scale).clamp(-1 + EDGE, 1 - EDGE).acos()
        across = scale * (angle.sin() + (math.pi - angle) * angle.cos()) / math.pi + bias**2
        tangent = across + tangent * (math.pi - angle) / math.pi
        own = [z + bias**2 for z in own]  # 2 E[relu(u)^2] is the variance of u
    return tangent if kind == "ntk" else across


def squared_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Half the squared distance of each row, [T]."""
    return (predicted - wanted).square().sum(1) / 2
