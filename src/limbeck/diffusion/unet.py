"""A small U-Net for pictures, after those of EDM and DDPM: residual blocks that are modulated by the noise level."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.diffusion.networks import Backbone, Condition, zero

GROUPS = 8


class UNetBackbone(Backbone):
    """Residual blocks at falling resolutions and back, with links across; attention at the lowest, where asked for.

    Args:
        shape: of one picture, [C, H, W]; any height and width.
        width: channels at full resolution; a multiple of 8.
        levels: resolutions, each half the one above with twice the channels.
        depth: residual blocks at each, down and up alike.
        attention: whether the lowest resolution has an attention layer.
        patch: side of the squares of pixels that are folded into channels, which makes maps as much smaller.
        tokens: of a class, which cross-attention sees after the middle and wherever the resolution has doubled; with
            0 the class is part of what modulates the blocks.
        classes: see :class:`~limbeck.diffusion.networks.Condition`, like what follows.
    """

    features_at = "middle"

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        levels: int = 2,
        depth: int = 1,
        *,
        attention: bool = False,
        patch: int = 1,
        tokens: int = 0,
        classes: int | None = None,
        jumps: bool = False,
        guided: bool = False,
    ) -> None:
        super().__init__()
        emb = 4 * width
        self.condition = Condition(emb, None if tokens else classes, jumps=jumps, guided=guided)
        self.tokens = ClassTokens(classes, tokens, emb) if tokens and classes is not None else None
        self.hidden = nn.Sequential(nn.SiLU(), nn.Linear(emb, emb), nn.SiLU())
        widths = [width * 2**k for k in range(levels)]
        self.patch = patch
        folded = shape[0] * patch**2
        self.first = nn.Conv2d(folded, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        links, now = [width], width
        for level, out in enumerate(widths):
            for _ in range(depth):
                self.down.append(Block(now, out, emb))
                now = out
                links.append(now)
            if level < levels - 1:
                self.down.append(Halve(now))
                links.append(now)
        self.middle = Block(now, now, emb)
        self.attention = Attention(now) if attention else None
        self.cross = nn.ModuleList(CrossAttention(w, emb) for w in (now, *reversed(widths[1:])) if self.tokens)
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(depth + 1):
                self.up.append(Block(now + links.pop(), out, emb))
                now = out
            if level:
                self.up.append(Double(now))
        self.last = nn.Conv2d(now, folded, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, now)

    def forward(self, x: Tensor, c_noise: Tensor, **given: Tensor | None) -> Tensor:
        """``[B, *shape] -> [B, *shape]``."""
        states = None if self.tokens is None else self.tokens(given.pop("label", None), len(x))
        emb = self.hidden(self.condition(c_noise, **given))
        cross = iter(self.cross)
        h = self.first(F.pixel_unshuffle(x, self.patch))
        links = [h]
        for layer in self.down:
            h = layer(h, emb)
            links.append(h)
        h = self.middle(h, emb)
        if self.attention is not None:
            h = self.attention(h)
        h = h if states is None else next(cross)(h, states)
        for layer in self.up:
            if not isinstance(layer, Double):
                h = layer(torch.cat([h, links.pop()], dim=1), emb)
                continue
            h = layer(h, links[-1])
            h = h if states is None else next(cross)(h, states)
        return F.pixel_shuffle(self.last(F.silu(self.norm(h))), self.patch)


class Block(nn.Module):
    """Two convolutions around a modulation ``h (1 + scale) + shift``; the second starts at zero."""

    def __init__(self, inputs: int, outputs: int, emb: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(math.gcd(GROUPS, inputs), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = zero(nn.Linear(emb, 2 * outputs))
        self.norm2 = nn.GroupNorm(GROUPS, outputs)
        self.conv2 = zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """``[B, inputs, H, W] -> [B, outputs, H, W]``."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        scale, shift = self.modulation(emb)[:, :, None, None].chunk(2, dim=1)
        return self.skip(x) + self.conv2(F.silu(h * (1 + scale) + shift))


class Halve(nn.Module):
    """Half the height and width, rounded up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, C, H/2, W/2]``."""
        return self.conv(x)


class Double(nn.Module):
    """The height and width of the link that follows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """``[B, C, h, w] -> [B, C, H, W]``, the size of ``like``."""
        return self.conv(F.interpolate(x, size=like.shape[-2:], mode="nearest"))


class Attention(nn.Module):
    """Self-attention over the cells of a map, with one head; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, C, H, W]``."""
        q, k, v = (t.transpose(1, 2)[:, None] for t in self.qkv(self.norm(x).flatten(2)).chunk(3, dim=1))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.out(mixed).reshape(x.shape)


class ClassTokens(nn.Module):
    """What cross-attention sees of a class: some learnt vectors for each, and for none of them.

    Args:
        classes: how many there are.
        tokens: vectors of each.
        width: of one.
    """

    def __init__(self, classes: int, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.rows = nn.Embedding(classes + 1, tokens * width)

    def forward(self, label: Tensor | None, count: int) -> Tensor:
        """``[count, tokens, width]`` of labels int64 [count]; -1, or no label, is the class of none."""
        last = self.rows.num_embeddings - 1
        asked = torch.full((count,), last, device=self.rows.weight.device) if label is None else label % (last + 1)
        return self.rows(asked).unflatten(1, (self.tokens, -1))


class CrossAttention(nn.Module):
    """The cells of a map look at the tokens of a class, with one head; starts as the identity.

    Its layers have the names of those in diffusers, by which :mod:`limbeck.diffusion.negatives` finds them.
    """

    is_cross_attention = True
    heads = 1

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        """``[B, C, H, W]`` and tokens [B, L, context] -> ``[B, C, H, W]``."""
        q = self.to_q(self.norm(x).flatten(2).transpose(1, 2))
        mixed = F.scaled_dot_product_attention(q, self.to_k(states), self.to_v(states))
        return x + self.to_out(mixed).transpose(1, 2).reshape(x.shape)
