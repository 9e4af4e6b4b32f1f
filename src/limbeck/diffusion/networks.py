"""Networks that see the noise level: EDM preconditioning around any backbone, a small MLP, the one-step generator."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.diffusion.paths import like, precondition

Activation = Literal["silu", "gelu", "relu"]


class EDMDenoiser(nn.Module):
    """A backbone F as a denoiser: ``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`` (arXiv 2206.00364, eq. 7).

    Args:
        backbone: ``(x [B, *shape], c_noise [B], label [B] or None) -> [B, *shape]``.
        shape: of one sample.
        sigma_data: standard deviation of the data.
        classes: number of classes it is conditioned on; label -1, or no label, asks for the unconditional estimate.
    """

    def __init__(
        self, backbone: nn.Module, shape: tuple[int, ...], sigma_data: float, classes: int | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.shape = shape
        self.sigma_data = sigma_data
        self.classes = classes

    def forward(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """``E[x0 | x]`` [B, *shape] for ``x = x0 + sigma eps``, ``sigma`` [B] or a scalar."""
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[0])
        c = precondition(level, self.sigma_data)
        out = self.backbone(like(c.c_in, x) * x, c.c_noise, label)
        return like(c.c_skip, x) * x + like(c.c_out, x) * out.to(x.dtype)

    def denoise(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """The same as calling the module (which is what to do with one that is wrapped or sharded)."""
        return self(x, sigma, label)

    def example_inputs(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Arguments for one call."""
        return torch.zeros(batch_size, *self.shape), torch.ones(batch_size)


class FourierFeatures(nn.Module):
    """Cosines and sines of a scalar at ``count`` fixed frequencies, geometric from 1/4 to 8 turns per unit."""

    frequencies: Tensor

    def __init__(self, count: int = 16) -> None:
        super().__init__()
        turns = torch.exp2(torch.linspace(-2, 3, count))
        self.register_buffer("frequencies", 2 * math.pi * turns, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """``[B] -> [B, 2 count]``."""
        angle = values[:, None] * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class MLPBackbone(nn.Module):
    """Residual layers on the flattened sample, with noise level and class added to the first hidden state."""

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        depth: int,
        classes: int | None = None,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.activation = getattr(nn.functional, activation)
        size = math.prod(shape)
        self.level = FourierFeatures()
        self.embed = nn.Linear(2 * len(self.level.frequencies), width)
        self.label = None if classes is None else nn.Embedding(classes + 1, width)
        self.first = nn.Linear(size, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, size)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """``[B, *shape] -> [B, *shape]``."""
        h = self.first(x.flatten(1)) + self.embed(self.level(c_noise))
        if self.label is not None:
            null = self.label.num_embeddings - 1
            rows = torch.full_like(c_noise, null, dtype=torch.long) if label is None else label % (null + 1)
            h = h + self.label(rows)  # -1 wraps to the last row, the unconditional one
        for layer in self.layers:
            h = h + layer(self.activation(h))
        return self.last(self.activation(h)).reshape(x.shape)


class OneStep(nn.Module):
    """The one-step generator of a denoising network: ``G(z) = D_net(sigma z, sigma)`` with ``sigma`` fixed.

    Args:
        net: a denoiser with ``shape`` and, if it is conditional, ``classes``.
        sigma: the level the network takes its input to be at: the start of the teacher's sampler.
    """

    nfe = 1

    def __init__(self, net: nn.Module, sigma: float) -> None:
        super().__init__()
        self.net = net
        self.sigma = sigma

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, and of its noise."""
        return tuple(self.net.shape)  # type: ignore[arg-type]

    @property
    def classes(self) -> int | None:
        """How many classes it is conditioned on, if any."""
        return getattr(self.net, "classes", None)

    def forward(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Standard normal noise [B, *shape] to samples of the same shape."""
        return self.net(self.sigma * noise, noise.new_full(noise.shape[:1], self.sigma), label)

    def example_inputs(self, batch_size: int) -> tuple[Tensor]:
        """Arguments for one call."""
        return (torch.zeros(batch_size, *self.shape),)


def inherit(target: nn.Module, source: nn.Module) -> bool:
    """Copy the source's weights where names and shapes are the same; says whether it did."""
    own, given = target.state_dict(), source.state_dict()
    alike = own.keys() == given.keys() and all(own[k].shape == given[k].shape for k in own)
    if alike:
        target.load_state_dict(given)
    return alike
