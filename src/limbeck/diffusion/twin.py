"""Networks with a twin: the same weights under negative noise levels are another denoiser, of another law."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.networks import Condition, EDMDenoiser, zero
from limbeck.diffusion.paths import like, precondition


class TwinCondition(Condition):
    """A condition, as it is, and for twins an embedding of the level that starts at zero.

    Args:
        of: the condition that is continued, with its weights under their names.
    """

    def __init__(self, of: Condition) -> None:
        width = of.embed.out_features
        classes = None if of.label is None else of.label.num_embeddings - 1
        super().__init__(width, classes, jumps=of.second is not None, guided=of.strength is not None)
        self.load_state_dict(of.state_dict())
        self.twin = zero(nn.Linear(of.embed.in_features, width))

    def forward(
        self,
        c_noise: Tensor,
        label: Tensor | None = None,
        to: Tensor | None = None,
        scale: Tensor | None = None,
        twin: Tensor | None = None,
    ) -> Tensor:
        """The embedding [B, width]; ``twin`` [B] is 1 for twins and 0 for others."""
        h = super().forward(c_noise, label, to, scale)
        return h if twin is None else h + twin[:, None] * self.twin(self.level(c_noise))


class TwinDenoiser(EDMDenoiser):
    """A denoising network that takes negative levels too, for its twin; it begins as its own twin.

    Args:
        of: the network, whose weights it takes over under their names.
    """

    twins = True
    """Whether negative levels mean another denoiser."""

    def __init__(self, of: EDMDenoiser) -> None:
        super().__init__(of.backbone, of.shape, of.sigma_data, of.classes, floor=of.floor)
        condition: Any = of.backbone.condition
        self.backbone.condition = TwinCondition(condition)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        label: Tensor | None = None,
        *,
        to: Tensor | float | None = None,
        scale: Tensor | float | None = None,
    ) -> Tensor:
        """As of the network, at the level ``|sigma|``; where ``sigma`` is negative, its twin's. Signs of ``to`` do not
        count."""
        signed, there, strength = (
            None if v is None else torch.as_tensor(v, dtype=x.dtype, device=x.device).expand(len(x))
            for v in (sigma, to, scale)
        )
        assert signed is not None
        c = precondition(signed.abs(), self.sigma_data, self.floor)
        out = self.backbone(
            like(c.c_in, x) * x,
            c.c_noise,
            label=label,
            to=None if there is None else there.abs(),
            scale=strength,
            twin=(signed < 0).to(x.dtype),
        )
        return like(c.c_skip, x) * x + like(c.c_out, x) * out.to(x.dtype)
