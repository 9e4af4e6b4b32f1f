"""Reaching inside models by module path, without editing them: record, inject, replace.

Paths are those of ``module.named_modules()`` on the model as it was built. They keep working when the model is
wrapped for several devices or compiled, because hooks sit on the submodules themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.registry import nearest


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path, also under wrapper prefixes (``module.``, ``_orig_mod.``).

    Raises:
        UserError: there is none; names the nearest path.
    """
    named = {_plain(name): child for name, child in module.named_modules()}
    if path in named:
        return named[path]
    hint = nearest(path, named)
    says = f"; did you mean '{hint}'?" if hint else ""
    raise UserError(f"the model {type(module).__name__} has no module '{path}'{says}")


def _plain(name: str) -> str:
    prefixes = ("module", "_orig_mod", "_forward_module")
    return ".".join(piece for piece in name.split(".") if piece not in prefixes)


def channels_last(module: nn.Module) -> bool:
    """Whether the maps between a model's parts are [B, H, W, C], as timm's models say of themselves (Swin, Hiera)."""
    return any(getattr(child, "output_fmt", None) == "NHWC" for child in module.modules())


def turned(module: nn.Module) -> Callable[[nn.Module], bool]:
    """Which parts of a model give maps with channels last: of such a model all but PyTorch's own layers for maps."""
    last = channels_last(module)
    own = nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.AvgPool2d
    return lambda child: last and not isinstance(child, own)


def _moved(value: Any, *axes: int) -> Any:
    return value.permute(*axes) if isinstance(value, Tensor) and value.dim() == len(axes) else value


def first_channels(value: Any) -> Any:
    """A map [B, H, W, C] as [B, C, H, W]; anything else as it is."""
    return _moved(value, 0, 3, 1, 2)


def last_channels(value: Any) -> Any:
    """A map [B, C, H, W] as [B, H, W, C]; anything else as it is."""
    return _moved(value, 0, 2, 3, 1)


class Taps:
    """Records outputs (or inputs) of named modules at each forward. Use as a context manager or :meth:`close` it.

    Maps are recorded as [B, C, H, W], also those of a model whose own have the channels last.

    Args:
        module: the model.
        paths: module paths to record.
        of: record a module's ``output`` or its first ``input``.
        detach: cut the gradient of what is recorded.
    """

    def __init__(
        self,
        module: nn.Module,
        paths: Iterable[str],
        *,
        of: Literal["output", "input"] = "output",
        detach: bool = False,
    ) -> None:
        self.values: dict[str, Any] = {}
        self._handles = []
        turns = turned(module)
        for path in paths:
            target = submodule(module, path)
            self._handles.append(target.register_forward_hook(self._hook(path, of, detach, turns(target))))

    def _hook(self, path: str, of: str, detach: bool, turn: bool) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            value = _first(output) if of == "output" else inputs[0]
            value = first_channels(value) if turn else value
            # A clone, because a later in-place activation would change what was recorded.
            self.values[path] = value.detach().clone() if detach else value.clone()

        return record

    def pop(self) -> dict[str, Any]:
        """What was recorded since the last call, by path.

        Raises:
            UserError: a tapped module did not run.
        """
        values, self.values = self.values, {}
        return values

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Injection(Taps):
    """Replaces the output of named modules by given tensors while the context is open.

    Args:
        module: the model.
        values: what each module path gives instead of its own output: a tensor, or a function of the own output;
            maps as [B, C, H, W].
    """

    def __init__(self, module: nn.Module, values: dict[str, Tensor | Callable[[Any], Any]]) -> None:
        self.values = {}
        self._handles = []
        turns = turned(module)
        for path, value in values.items():
            target = submodule(module, path)
            self._handles.append(target.register_forward_hook(self._replace(value, turns(target))))

    @staticmethod
    def _replace(value: Tensor | Callable[[Any], Any], turn: bool) -> Callable[..., Any]:
        def given(output: Any) -> Any:
            if isinstance(value, Tensor):
                return last_channels(value) if turn else value
            return last_channels(value(first_channels(output))) if turn else value(output)

        return lambda module, inputs, output: given(output)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output
