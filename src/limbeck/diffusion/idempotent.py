"""Idempotent generators: one function of the sample alone, which makes data of noise and leaves data as they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from limbeck.diffusion.few_step import FewStep


class Idempotent(FewStep):
    """``f(x) = D_net(x, sigma)`` with ``sigma`` fixed, applied to noise of that level, and again to noised results.

    The network never learns at what level its input is: the function is the same on pure noise, on data and on what is
    between them (arXiv 2509.21470).

    Args:
        net: a denoiser.
        levels: falling; the first is that of the noise that samples are made of and the network's own, the others are
            those of the noise that is put on a result before the function is applied again.
        sigma_min: lowest level at which the teacher is asked.
        sigma_max: highest level at which the teacher is asked.
    """

    def __init__(self, net: nn.Module, levels: Sequence[float], *, sigma_min: float, sigma_max: float) -> None:
        super().__init__(net, levels, "renoise", sigma_min=sigma_min, sigma_max=sigma_max)

    def apply_to(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The function at points [B, *shape]."""
        return self(x, label, at=x.new_full((len(x),), self.levels[0]))

    def _call(
        self, x: Tensor, at: Tensor, label: Tensor | None, to: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        return super()._call(x, at.new_full(at.shape, self.levels[0]), label, to, scale)
