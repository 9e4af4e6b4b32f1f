"""Sequences of points out of a codebook: an exact autoregressive teacher, and generators of a whole sequence at once.

Given the tokens before it, the law of a token is a mixture of points, so that its denoiser is exact at every noise
level: ``D(x | q_<i) = sum_j w_j c_j`` with ``w = softmax_j [log p_j(q_<i) - |x - c_j|^2 / (2 sigma^2)]``.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from limbeck.diffusion.discrete import MarkovChain
from limbeck.diffusion.networks import FourierFeatures
from limbeck.diffusion.paths import precondition


class CodebookChain(nn.Module):
    """A Markov chain whose tokens are points of a codebook, as an exact autoregressive teacher.

    Args:
        codes: the codebook, [V, d].
        chain: the law of the tokens.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, chain: MarkovChain) -> None:
        super().__init__()
        self.chain = chain
        self.register_buffer("codes", codes)

    @property
    def shape(self) -> tuple[int, int]:
        """Of one sequence of points."""
        return self.chain.length, self.codes.shape[1]

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the codes, per dimension."""
        return float((self.codes - self.codes.mean(0)).square().mean().sqrt())

    def forward(self, x: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:
        """``E[q_i | x_i, q_<i]`` [B, L, d] of every noised point [B, L, d] at levels [B, L].

        Args:
            x: noised points.
            sigma: their levels.
            tokens: int64 [B, L], the sequence whose beginnings are the conditions (teacher forcing).
        """
        return self.posterior(x, sigma, self.chances(tokens)) @ self.codes

    def chances(self, tokens: Tensor) -> Tensor:
        """Logarithm of the law of every token given those before it, [B, L, V]."""
        first = self.chain.start.log().expand(len(tokens), 1, -1)
        return torch.cat([first, self.chain.steps.log()[tokens[:, :-1]]], dim=1)

    def posterior(self, x: Tensor, sigma: Tensor, chances: Tensor) -> Tensor:
        """The weights [..., V] of the codes at noised points [..., d] of levels [...]."""
        gaps = (x[..., None, :] - self.codes).square().sum(-1)
        return (chances - gaps / (2 * sigma[..., None] ** 2)).softmax(-1)

    def nearest(self, points: Tensor) -> Tensor:
        """The tokens of the codes that points [B, L, d] are nearest to, int64 [B, L]."""
        return (points[..., None, :] - self.codes).square().sum(-1).argmin(-1)

    def flow(self, noise: Tensor, steps: int = 16) -> Tensor:
        """The codes [B, L, d] that the exact flow of rectified flow takes noise to, token after token.

        ``x_s = (s / t) x_t + (1 - s / t) D`` from t = 1 to 0 for each token, which is then taken for its nearest code
        and is the condition of the next: the map of the first distilled decoding (arXiv 2412.17153).
        """
        tokens = torch.zeros(noise.shape[:2], dtype=torch.long, device=noise.device)
        times = torch.linspace(1, 0, steps + 1).tolist()
        for i in range(noise.shape[1]):
            chances, x = self.chances(tokens)[:, i], noise[:, i]
            for now, then in pairwise(times):
                gaps = (x[:, None] - (1 - now) * self.codes).square().sum(-1)
                weights = (chances - gaps / (2 * now**2)).softmax(-1)
                x = then / now * x + (1 - then / now) * (weights @ self.codes)
            tokens[:, i] = self.nearest(x[:, None])[:, 0]
        return self.codes[tokens]


def circle(tokens: int) -> Tensor:
    """Codes [V, 2] of even angles on a circle of radius 2, each far enough from the next to be told apart."""
    angle = torch.arange(tokens, dtype=torch.float64) * (2 * math.pi / tokens)
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1)


class Layers(nn.Module):
    """Residual layers from features [..., inputs] to [..., outputs]."""

    def __init__(self, inputs: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        h = self.first(x)
        for layer in self.layers:
            h = h + layer(torch.relu(h))
        return self.last(torch.relu(h))


class PrefixDenoiser(nn.Module):
    """A denoiser of every point of a sequence given those before it: the critic of ``dd2``.

    Args:
        shape: of a sequence, [L, d].
        width: of the hidden layers.
        depth: number of residual layers.
        sigma_data: standard deviation of the points.
    """

    def __init__(self, shape: tuple[int, int], width: int, depth: int, sigma_data: float) -> None:
        super().__init__()
        self.shape = shape
        self.sigma_data = sigma_data
        self.level = FourierFeatures()
        length, size = shape
        self.inner = Layers(size + 2 * len(self.level.frequencies) + length * size + length, width, depth, size)

    def forward(self, x: Tensor, sigma: Tensor, points: Tensor) -> Tensor:
        """``E[q_i | x_i, q_<i]`` [B, L, d] of noised points at levels [B, L], with ``points`` [B, L, d] before them."""
        length, _ = self.shape
        c = precondition(sigma, self.sigma_data)
        before = torch.ones(length, length, device=x.device).tril(-1)
        prefix = (points[:, None] * before[None, :, :, None]).flatten(2)
        places = torch.eye(length, device=x.device).expand(len(x), -1, -1)
        level = self.level(c.c_noise.flatten()).reshape(*sigma.shape, -1)
        out = self.inner(torch.cat([c.c_in[..., None] * x, level, prefix, places], dim=-1))
        return c.c_skip[..., None] * x + c.c_out[..., None] * out


class TokenGenerator(nn.Module):
    """A whole sequence of points from noise in one call of an MLP, and the tokens of the codes nearest to them.

    Args:
        codes: the codebook, [V, d].
        length: of a sequence.
        width: of the hidden layers.
        depth: number of residual layers.
        independent: whether a point sees its own noise alone, so that no two depend on one another.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, length: int, width: int, depth: int, *, independent: bool = False) -> None:
        super().__init__()
        self.length = length
        self.independent = independent
        size = codes.shape[1]
        inputs, outputs = (size + length, size) if independent else (length * size, length * size)
        self.inner = Layers(inputs, width, depth, outputs)
        self.register_buffer("codes", codes)

    @property
    def nfe(self) -> int:
        """Network evaluations of a sample."""
        return 1

    @property
    def shape(self) -> tuple[int, int]:
        """Of one sequence of points."""
        return self.length, self.codes.shape[1]

    def forward(self, noise: Tensor) -> Tensor:
        """Points [B, L, d] from standard normal noise [B, L, d]."""
        if not self.independent:
            return self.inner(noise.flatten(1)).reshape(noise.shape)
        places = torch.eye(self.length, device=noise.device).expand(len(noise), -1, -1)
        return self.inner(torch.cat([noise, places], dim=-1))

    def tokens_of(self, noise: Tensor) -> Tensor:
        """Tokens int64 [B, L] from standard normal noise [B, L, d]."""
        return (self(noise)[..., None, :] - self.codes).square().sum(-1).argmin(-1)

    def example_inputs(self, batch_size: int) -> tuple[Tensor]:
        """Arguments for one call."""
        return (torch.zeros(batch_size, *self.shape),)
