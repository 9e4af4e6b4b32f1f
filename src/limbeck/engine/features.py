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


class Taps:
    """Records outputs (or inputs) of named modules at each forward. Use as a context manager or :meth:`close` it.

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
        for path in paths:
            target = submodule(module, path)
            self._handles.append(target.register_forward_hook(self._hook(path, of, detach)))

    def _hook(self, path: str, of: str, detach: bool) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            value = _first(output) if of == "output" else inputs[0]
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
        values: what each module path gives instead of its own output: a tensor, or a function of the own output.
    """

    def __init__(self, module: nn.Module, values: dict[str, Tensor | Callable[[Any], Any]]) -> None:
        self.values = {}
        self._handles = []
        for path, value in values.items():
            target = submodule(module, path)
            self._handles.append(target.register_forward_hook(self._replace(value)))

    @staticmethod
    def _replace(value: Tensor | Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda module, inputs, output: value if isinstance(value, Tensor) else value(output)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output
