"""Low-rank adapters (LoRA, arXiv 2106.09685) on any network, by the peft library: the base is frozen, they learn."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.errors import UserError, needs_extra
from limbeck.registry import ModelBlock, build, register

ADAPTABLE = (nn.Linear, nn.Conv2d)
TRANSPOSED = "Conv1D"
"""The linear layer of GPT-2 in transformers, whose weight lies the other way round."""


class Adapted(nn.Module):
    """A network whose linear layers and convolutions have low-rank adapters, which alone take gradients.

    It is called as its base is, and says of itself what its base does (``shape``, ``classes``, ...). At first it gives
    what the base gives.

    Args:
        base: the network; its parameters are frozen in place.
        rank: of the adapters.
        alpha: they are scaled by ``alpha / rank``.
        targets: paths, or ends of paths, of the layers that have one; by default all that can, but a language model's
            last layer, which may share its weight with the first.

    Raises:
        UserError: peft is not installed, no layer is at these paths, or one shares its weight with another.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, targets: tuple[str, ...] | None = None) -> None:
        super().__init__()
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise needs_extra("peft", "lora") from error
        chosen = _chosen(base, targets)
        turned = any(type(base.get_submodule(name)).__name__ == TRANSPOSED for name in chosen)
        self.adapter = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # any scale does
            target_modules=chosen,
            fan_in_fan_out=turned,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it for each layer
            self.base: nn.Module = inject_adapter_in_model(self.adapter, base)

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

    def onto(self, network: nn.Module) -> Adapted:
        """The same adapters on a copy of another network, as of one that was distilled from the base.

        Raises:
            UserError: it has no layer of the same name and shape for each of them.
        """
        name = self._misfit(network)
        if name is not None:
            raise UserError(
                f"lora: these adapters do not fit a {type(network).__name__}: its {name} is another or none"
            )
        moved = Adapted(
            copy.deepcopy(network), self.adapter.r, self.adapter.lora_alpha, tuple(self.adapter.target_modules or ())
        )
        own = moved.base.state_dict()
        for key, value in self.base.state_dict().items():
            if ".lora_" in key:
                own[key].copy_(value)
        return moved

    def _misfit(self, network: nn.Module) -> str | None:
        """The first adapted layer that the network has not, or has in another shape."""
        theirs, own = network.state_dict(), without_adapters(self)
        for target in sorted(self.adapter.target_modules or ()):
            key = f"{target}.weight"
            if key not in theirs or theirs[key].shape != own[key].shape:
                return target
        return None

    def save_adapter(self, folder: Path) -> None:
        """Write the adapters alone, as peft reads them: ``PeftModel.from_pretrained(base, folder)``."""
        folder.mkdir(parents=True, exist_ok=True)
        found = {n: v for n, v in self.base.state_dict().items() if ".lora_" in n}
        named = {f"base_model.model.{n.replace('.default.', '.')}": v for n, v in found.items()}
        save_file({n: v.detach().cpu().contiguous() for n, v in named.items()}, folder / "adapter_model.safetensors")
        self.adapter.save_pretrained(str(folder))


def _chosen(base: nn.Module, targets: tuple[str, ...] | None) -> list[str]:
    """Paths of the layers that get an adapter."""
    can = [n for n, m in base.named_modules() if isinstance(m, ADAPTABLE) or type(m).__name__ == TRANSPOSED]
    last = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None  # type: ignore[operator]
    if targets is None:
        return _some([n for n in can if last is None or base.get_submodule(n) is not last], can, ())
    chosen = [n for n in can if any(n == t or n.endswith(f".{t}") for t in targets)]
    first = base.get_input_embeddings() if last is not None else None  # type: ignore[operator]
    if first is not None and any(base.get_submodule(n).weight is first.weight for n in chosen):
        raise UserError(
            "lora: the last layer shares its weight with the first, so it cannot have an adapter of its own"
        )
    return _some(chosen, can, targets)


def _some(chosen: list[str], can: list[str], targets: tuple[str, ...]) -> list[str]:
    if not chosen:
        raise UserError(f"lora: no linear layer or convolution is called {list(targets)}; there are {can}")
    return chosen


def _adapters(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if hasattr(m, "enable_adapters")]


def without_adapters(module: nn.Module) -> dict[str, Tensor]:
    """The state of a network by name, as if none of its layers had adapters; the tensors are the network's own."""
    if not isinstance(module, Adapted):
        return module.state_dict()
    base = {n.replace(".base_layer.", "."): v for n, v in module.base.state_dict().items()}
    return {name: value for name, value in base.items() if ".lora_" not in name}


@register("model", gives={"denoiser", "samples", "logits", "features", "hidden_states"})
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
    vocab_size: int | None = None,
    context: int | None = None,
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
        vocab_size: of the tokens, for a base that does not say.
        context: longest input in tokens, for a base that does not say.
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
        "vocab_size": vocab_size,
        "context": context,
        "teachers": teachers,
        "data": data,
    }
    return Adapted(build("model", base, offers=facts), rank, rank if alpha is None else alpha, targets)
