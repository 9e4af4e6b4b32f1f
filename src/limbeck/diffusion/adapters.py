"""Small residual adapters that are told the strength of guidance, on a denoising network that stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.networks import FourierFeatures, zero
from limbeck.errors import UserError


class Residual(nn.Module):
    """``h + up(silu(down(h) + embed(strength, level)))`` over the channels of h; it begins as the identity.

    Args:
        channels: of h, its second dimension.
        width: between down and up.
        given: of what it is told.
    """

    def __init__(self, channels: int, width: int, given: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, width)
        self.embed = nn.Linear(given, width)
        self.up = zero(nn.Linear(width, channels))

    def forward(self, h: Tensor, given: Tensor) -> Tensor:
        """``[B, C, ...] -> [B, C, ...]``; ``given`` is [B, given]."""
        last = h.movedim(1, -1)
        told = self.embed(given)
        inside = self.down(last) + told.reshape(len(told), *[1] * (last.dim() - 2), -1)
        return h + self.up(nn.functional.silu(inside)).movedim(-1, 1)


class GuidanceAdapted(nn.Module):
    """A conditional denoiser with adapters that make it stand for its guided self (arXiv 2503.07274).

    It is called as its base is, with a strength of guidance as well, and says of itself what its base does. At first,
    and wherever it is told no strength, it gives what the base gives.

    Args:
        base: the network; its parameters are frozen in place.
        width: of the adapters.
        targets: paths of the modules whose output [B, C, ...] is adapted; by default the members of its module lists,
            which are its blocks or hidden layers.

    Raises:
        UserError: there is no such module.
    """

    guided = True
    _told: Tensor | None
    _on: bool

    def __init__(self, base: nn.Module, width: int, targets: tuple[str, ...] | None = None) -> None:
        super().__init__()
        can = dict(base.named_modules())
        lists = [(name, m) for name, m in can.items() if isinstance(m, nn.ModuleList)]
        chosen = [f"{name}.{k}" for name, m in lists for k in range(len(m))] if targets is None else list(targets)
        if not chosen or any(name not in can for name in chosen):
            raise UserError(f"guidance_adapter: no modules at {chosen}; there are {[name for name in can if name]}")
        self.base = base.requires_grad_(False)
        self.level = FourierFeatures()
        given = 4 * len(self.level.frequencies)
        sizes = _channels(base, [can[name] for name in chosen])
        self.adapters = nn.ModuleList(Residual(size, width, given) for size in sizes)
        self._told, self._on = None, True
        for k, name in enumerate(chosen):
            can[name].register_forward_hook(partial(self._adapt, k))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":  # not there yet
                raise
            return getattr(super().__getattr__("base"), name)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        label: Tensor | None = None,
        *,
        scale: Tensor | float | None = None,
        **given: Any,
    ) -> Tensor:
        """What the base gives [B, *shape], at a strength of guidance if there is one."""
        if scale is None or not self._on:
            return self.base(x, sigma, label, **given)
        told = [torch.as_tensor(v, dtype=x.dtype, device=x.device).expand(len(x)) for v in (sigma, scale)]
        # The strength itself, and the level by its logarithm as in the base.
        self._told = torch.cat([self.level(torch.log(told[0]) / 4), self.level(told[1] / 4)], dim=1)
        try:
            return self.base(x, sigma, label, **given)
        finally:
            self._told = None

    def _adapt(self, k: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        return None if self._told is None else self.adapters[k](output, self._told)

    @property
    def features_at(self) -> str | None:
        """Where the base says its features are, as a path of this module."""
        path = getattr(self.base, "features_at", None)
        return None if path is None else f"base.{path}"

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the context the network is its base alone, whatever it is told."""
        self._on = False
        try:
            yield
        finally:
            self._on = True


@torch.no_grad()
def _channels(base: nn.Module, modules: list[nn.Module]) -> list[int]:
    """How many channels each of them gives, seen in one call."""
    seen: dict[int, int] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[id(module)] = output.shape[1]

    hooks = [module.register_forward_hook(note) for module in modules]
    base(*base.example_inputs(1))  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return [seen[id(module)] for module in modules]
