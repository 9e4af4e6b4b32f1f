"""Low-rank adapters (LoRA, arXiv 2106.09685) on any network, by the peft library: the base is frozen, they learn."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from limbeck.errors import UserError, needs_extra
from limbeck.registry import ModelBlock, build, register

ADAPTABLE = (nn.Linear, nn.Conv2d)


class Adapted(nn.Module):
    """A network whose linear layers and convolutions have low-rank adapters, which alone take gradients.

    It is called as its base is, and says of itself what its base does (``shape``, ``classes``, ...). At first it gives
    what the base gives.

    Args:
        base: the network; its parameters are frozen in place.
        rank: of the adapters.
        alpha: they are scaled by ``alpha / rank``.
        targets: paths, or ends of paths, of the layers that have one; by default all that can.

    Raises:
        UserError: peft is not installed, or no layer is at these paths.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, targets: tuple[str, ...] | None = None) -> None:
        super().__init__()
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise needs_extra("peft", "lora") from error
        can = [name for name, module in base.named_modules() if isinstance(module, ADAPTABLE)]
        chosen = can if targets is None else [n for n in can if any(n == t or n.endswith(f".{t}") for t in targets)]
        if not chosen:
            raise UserError(f"lora: no linear layer or convolution is called {list(targets or ())}; there are {can}")
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen)  # type: ignore[arg-type]  # any scale does
        self.base: nn.Module = inject_adapter_in_model(config, base)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":  # not there yet
                raise
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args: Any, **given: Any) -> Any:
        """What the base gives with the adapters."""
        return self.base(*args, **given)

    @property
    def features_at(self) -> str | None:
        """Where the base says its features are, as a path of this module."""
        path = getattr(self.base, "features_at", None)
        return None if path is None else f"base.{path}"

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the context the network is its base alone."""
        layers = _adapters(self.base)
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def merged(self) -> nn.Module:
        """A copy of the base with the adapters added to its weights: as fast as the base, and with its layers."""
        whole: Any = copy.deepcopy(self.base)
        for name, layer in [(n, m) for n, m in whole.named_modules() if hasattr(m, "get_base_layer")]:
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(whole.get_submodule(parent), own, layer.get_base_layer())
        plain: nn.Module = whole.requires_grad_(True)
        return plain


def _adapters(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if hasattr(m, "enable_adapters")]


def without_adapters(module: nn.Module) -> dict[str, Tensor]:
    """The state of a network by name, as if none of its layers had adapters; the tensors are the network's own."""
    if not isinstance(module, Adapted):
        return module.state_dict()
    base = {n.replace(".base_layer.", "."): v for n, v in module.base.state_dict().items()}
    return {name: value for name, value in base.items() if ".lora_" not in name}


@register("model", gives={"denoiser", "samples", "logits", "features"})
def lora(
    *,
    base: ModelBlock,
    rank: int = 8,
    alpha: float | None = None,
    targets: tuple[str, ...] | None = None,
    shape: tuple[int, ...] | None = None,
    sigma_data: float | None = None,
    classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    teachers: Any = None,
    data: Any = None,
) -> Adapted:
    """A network of which only low-rank adapters learn (LoRA, arXiv 2106.09685), by the peft library.

    Args:
        base: the network.
        rank: of the adapters.
        alpha: they are scaled by ``alpha / rank``; by default as much as the rank.
        targets: paths, or ends of paths, of the layers that have one; by default all linear ones and convolutions.
        shape: of one sample, for a base that does not say.
        sigma_data: standard deviation of the data, for a base that does not say.
        classes: number of classes, for a base that does not say.
        in_channels: of the images, for a base that does not say.
        image_size: pixels along one side, for a base that does not say.
        teachers: the run's teachers by role, for a base that is made out of one.
        data: the built data, for a base that looks at it.
    """
    if rank < 1:
        raise UserError(f"lora: rank must be 1 or more, not {rank}")
    facts = {
        "shape": shape,
        "sigma_data": sigma_data,
        "classes": classes,
        "in_channels": in_channels,
        "image_size": image_size,
        "teachers": teachers,
        "data": data,
    }
    return Adapted(build("model", base, offers=facts), rank, rank if alpha is None else alpha, targets)
