"""Networks that see the noise level: EDM preconditioning around any backbone, and a small MLP for points."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from limbeck.diffusion.paths import like, precondition
from limbeck.models.lora import without_adapters

Activation = Literal["silu", "gelu", "relu"]
L = TypeVar("L", bound=nn.Module)
LOWEST = 0.002
"""The lowest level that a second level is told apart from: EDM's lowest."""


class Backbone(nn.Module):
    """A network under the preconditioning of :class:`EDMDenoiser`: it sees scaled samples and what they depend on.

    A subclass has ``condition``, a :class:`Condition`, and a ``forward`` of the arguments shown here.
    """

    condition: Condition
    features_at: str
    """Path of the module whose output describes the sample best."""

    def forward(self, x: Tensor, c_noise: Tensor, **given: Tensor | None) -> Tensor:
        """``[B, *shape] -> [B, *shape]``; ``given`` are arguments of :meth:`Condition.forward`."""
        raise NotImplementedError


class EDMDenoiser(nn.Module):
    """A backbone F as a denoiser: ``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`` (arXiv 2206.00364, eq. 7).

    With a ``floor`` it is a consistency function: at that level it is the identity by construction, as the solution at
    the flow's end must be (arXiv 2303.01469, appendix C). With the level ``to`` a jump goes to, it gives the point
    that the jump heads for (:func:`limbeck.diffusion.steps.jump`), which is the denoiser itself for ``to = sigma``.

    Args:
        backbone: a :class:`Backbone`.
        shape: of one sample.
        sigma_data: standard deviation of the data.
        classes: number of classes it is conditioned on; label -1, or no label, asks for the unconditional estimate.
        floor: the level at which it is the identity; 0 leaves EDM's scalings as they are.
    """

    def __init__(
        self,
        backbone: nn.Module,
        shape: tuple[int, ...],
        sigma_data: float,
        classes: int | None = None,
        *,
        floor: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.shape = shape
        self.sigma_data = sigma_data
        self.classes = classes
        self.floor = floor

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        label: Tensor | None = None,
        *,
        to: Tensor | float | None = None,
        scale: Tensor | float | None = None,
    ) -> Tensor:
        """``E[x0 | x]`` [B, *shape] for ``x = x0 + sigma eps``.

        Args:
            x: noisy samples [B, *shape].
            sigma: their level, [B] or a scalar.
            label: class, int64 [B].
            to: the level that a jump goes to, [B] or a scalar, for networks with ``jumps``.
            scale: the strength of guidance to stand for, [B] or a scalar, for networks that are ``guided``.
        """
        level = _column(sigma, x)
        c = precondition(level, self.sigma_data, self.floor)
        given = {name: None if v is None else _column(v, x) for name, v in (("to", to), ("scale", scale))}
        out = self.backbone(like(c.c_in, x) * x, c.c_noise, label=label, **given)
        return like(c.c_skip, x) * x + like(c.c_out, x) * out.to(x.dtype)

    def denoise(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """The same as calling the module (which is what to do with one that is wrapped or sharded)."""
        return self(x, sigma, label)

    def prompt_states(self, label: Tensor) -> Tensor | None:
        """The tokens [B, L, D] that stand for classes, int64 [B], if the backbone knows them by such."""
        tokens = getattr(self.backbone, "tokens", None)
        return None if tokens is None else tokens(label, len(label))

    @property
    def jumps(self) -> bool:
        """Whether it takes the level that a jump goes to."""
        return getattr(self.backbone.condition, "second", None) is not None

    @property
    def guided(self) -> bool:
        """Whether it takes a strength of guidance."""
        return getattr(self.backbone.condition, "strength", None) is not None

    @property
    def features_at(self) -> str | None:
        """Path of the module whose output describes a sample best: where a discriminator looks."""
        inside = getattr(self.backbone, "features_at", None)
        return None if inside is None else f"backbone.{inside}"

    def example_inputs(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Arguments for one call."""
        return torch.zeros(batch_size, *self.shape), torch.ones(batch_size)


def _column(values: Tensor | float, x: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=x.dtype, device=x.device).expand(x.shape[0])


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


class Condition(nn.Module):
    """What a backbone depends on beside the sample, as one vector [B, width]: a sum of embeddings.

    Those of the second level and of guidance start at zero: a network that takes them begins as one that does not.

    Args:
        width: of the vector.
        classes: for an embedding of labels, with one row more for none.
        jumps: whether there is a second level, the one that a jump goes to.
        guided: whether there is a strength of guidance.
    """

    def __init__(self, width: int, classes: int | None = None, *, jumps: bool = False, guided: bool = False) -> None:
        super().__init__()
        self.level = FourierFeatures()
        inputs = 2 * len(self.level.frequencies)
        self.embed = nn.Linear(inputs, width)
        self.label = None if classes is None else nn.Embedding(classes + 1, width)
        self.second = zero(nn.Linear(inputs, width)) if jumps else None
        self.strength = zero(nn.Linear(inputs, width)) if guided else None

    def forward(
        self, c_noise: Tensor, label: Tensor | None = None, to: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """The embedding of ``c_noise`` [B], plus those of what is given and known of."""
        h = self.embed(self.level(c_noise))
        if self.label is not None:
            null = self.label.num_embeddings - 1
            rows = torch.full_like(c_noise, null, dtype=torch.long) if label is None else label % (null + 1)
            h = h + self.label(rows)  # -1 wraps to the last row, the unconditional one
        if self.second is not None:
            there = c_noise if to is None else torch.log(to.clamp_min(LOWEST)) / 4
            h = h + self.second(self.level(there))
        if self.strength is not None:
            strength = torch.ones_like(c_noise) if scale is None else scale
            h = h + self.strength(self.level(torch.log(strength.clamp_min(LOWEST)) / 4))
        return h


def zero(layer: L) -> L:
    """The layer with its parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class MLPBackbone(Backbone):
    """Residual layers on the flattened sample, with what it depends on added to the first hidden state."""

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        depth: int,
        classes: int | None = None,
        activation: Activation = "silu",
        *,
        jumps: bool = False,
        guided: bool = False,
    ) -> None:
        super().__init__()
        self.activation = getattr(nn.functional, activation)
        size = math.prod(shape)
        self.condition = Condition(width, classes, jumps=jumps, guided=guided)
        self.first = nn.Linear(size, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, size)
        self.features_at = f"layers.{depth - 1}"

    def forward(self, x: Tensor, c_noise: Tensor, **given: Tensor | None) -> Tensor:
        """``[B, *shape] -> [B, *shape]``."""
        h = self.first(x.flatten(1)) + self.condition(c_noise, **given)
        for layer in self.layers:
            h = h + layer(self.activation(h))
        return self.last(self.activation(h)).reshape(x.shape)


def inherit(target: nn.Module, source: nn.Module) -> bool:
    """Copy the source's weights where the target has them all, in the same shapes; says whether it did.

    What the target has besides, such as the embedding of a second level or adapters, stays as it is.
    """
    own, given = without_adapters(target), without_adapters(source)
    alike = bool(given) and all(k in own and own[k].shape == v.shape for k, v in given.items())
    if alike:
        with torch.no_grad():
            for name, value in given.items():
                own[name].copy_(value)
    return alike
