"""Generators that draw: a latent input beside the noisy point, and the Gaussian posterior between two calls.

A network that is told nothing but the point can only name one clean sample, whatever the law of those that may stand
behind it; with a latent of its own it can draw from that law (denoising diffusion GANs, arXiv 2112.07804).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.few_step import FewStep
from limbeck.diffusion.networks import Condition, EDMDenoiser
from limbeck.diffusion.paths import like, precondition


class LatentCondition(Condition):
    """A condition, as it is, and a latent [B, size] beside the rest.

    Args:
        of: the condition that is continued, with its weights under their names.
        size: of the latent.
    """

    def __init__(self, of: Condition, size: int) -> None:
        width = of.embed.out_features
        classes = None if of.label is None else of.label.num_embeddings - 1
        super().__init__(width, classes, jumps=of.second is not None, guided=of.strength is not None)
        self.load_state_dict(of.state_dict())
        self.size = size
        self.latent = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))

    def forward(
        self,
        c_noise: Tensor,
        label: Tensor | None = None,
        to: Tensor | None = None,
        scale: Tensor | None = None,
        latent: Tensor | None = None,
    ) -> Tensor:
        """The embedding, [B, width]; without a latent, as if it were zero."""
        h = super().forward(c_noise, label, to, scale)
        if latent is None:
            latent = h.new_zeros(len(h), self.size)
        return h + self.latent(latent.flatten(1))


class LatentDenoiser(EDMDenoiser):
    """A denoising network that also takes a latent of the sample's shape.

    Args:
        of: the network, whose weights it takes over under their names.
    """

    def __init__(self, of: EDMDenoiser) -> None:
        super().__init__(of.backbone, of.shape, of.sigma_data, of.classes, floor=of.floor)
        condition: Any = of.backbone.condition
        self.backbone.condition = LatentCondition(condition, math.prod(of.shape))

    def draw(self, x: Tensor, sigma: Tensor, label: Tensor | None, latent: Tensor) -> Tensor:
        """One of the clean samples that may stand behind ``x`` [B, *shape]."""
        c = precondition(sigma, self.sigma_data, self.floor)
        out = self.backbone(like(c.c_in, x) * x, c.c_noise, label=label, latent=latent)
        return like(c.c_skip, x) * x + like(c.c_out, x) * out.to(x.dtype)

    def forward(  # type: ignore[override]
        self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None, *, latent: Tensor | None = None
    ) -> Tensor:
        """:meth:`draw` with a latent; without, what a latent of zero gives."""
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        return self.draw(x, level, label, torch.zeros_like(x) if latent is None else latent)


def posterior(x: Tensor, clean: Tensor, now: Tensor, then: Tensor, noise: Tensor) -> Tensor:
    """A draw from the law of the point at level ``then``, given that at ``now`` and the clean sample, shape of ``x``.

    ``c + (s^2 / t^2) (x - c) + s sqrt(1 - s^2 / t^2) z`` (arXiv 2006.11239, eq. 6, on the EDM path); the clean sample
    itself at level 0.
    """
    share = (then / now) ** 2
    return clean + like(share, x) * (x - clean) + like(then * torch.sqrt((1 - share).clamp_min(0)), x) * noise


class PosteriorSteps(FewStep):
    """Samples in as many calls as there are levels, with a draw from the Gaussian posterior between two.

    The noise of a sample is that of the start, that between the calls and, with a latent, one for each call.

    Args:
        net: a denoiser, or a :class:`LatentDenoiser`.
        levels: falling noise levels of the calls; the first is that of pure noise.
        sigma_min: lowest level of the grid that the levels are from.
        sigma_max: highest level of the grid that the levels are from.
    """

    def __init__(
        self, net: nn.Module, levels: Sequence[float], *, sigma_min: float = 0.002, sigma_max: float | None = None
    ) -> None:
        super().__init__(net, levels, "renoise", sigma_min=sigma_min, sigma_max=sigma_max)
        self.latent = isinstance(net, LatentDenoiser)

    @property
    def draws(self) -> int:
        """How many independent draws of noise a sample takes."""
        return self.nfe * (1 + self.latent)

    def forward(  # type: ignore[override]
        self,
        noise: Tensor,
        label: Tensor | None = None,
        *,
        at: Tensor | None = None,
        steps: int | None = None,
        latent: Tensor | None = None,
    ) -> Tensor:
        """Samples [B, *shape] from standard normal noise [B, *noise_shape].

        Args:
            noise: or, with ``at``, points [B, *shape] at these levels.
            label: class, int64 [B].
            at: levels [B] to call the network at, once.
            steps: the estimate after so many calls, of which only the last passes a gradient; by default after all.
            latent: of that one call, [B, *shape].
        """
        if at is not None:
            return self._estimate(noise, at, label, latent)
        return self._walk(noise, label, self.nfe if steps is None else steps)[-1][1]

    def visits(self, noise: Tensor, label: Tensor | None = None) -> list[tuple[float, Tensor]]:
        """Every level on the way of a sample and the point there [B, *shape], the sample itself at level 0 last."""
        return self._walk(noise, label, self.nfe)

    def _walk(self, noise: Tensor, label: Tensor | None, stop: int) -> list[tuple[float, Tensor]]:
        """The points of the first ``stop`` calls and the last one's estimate, the only one that takes a gradient."""
        draws = noise[:, None] if self.draws == 1 else noise
        own = [draws[:, self.nfe + k] if self.latent else None for k in range(stop)]
        x = draws[:, 0] * self.levels[0]
        levels = [x.new_full((x.shape[0],), level) for level in self.levels]
        seen = [(self.levels[0], x)]
        with torch.no_grad():
            for k in range(stop - 1):
                clean = self._estimate(x, levels[k], label, own[k])
                x = posterior(x, clean, levels[k], levels[k + 1], draws[:, k + 1])
                seen.append((self.levels[k + 1], x))
        return [*seen, (0.0, self._estimate(x, levels[stop - 1], label, own[stop - 1]))]

    def _estimate(self, x: Tensor, at: Tensor, label: Tensor | None, latent: Tensor | None) -> Tensor:
        return self.net(x, at, label, **({} if latent is None else {"latent": latent}))
