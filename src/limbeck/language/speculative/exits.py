"""Leaving a language model early: the output layer read after any of its layers, and a model cut off there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.forward import unwrapped

_LAYERS = ("layers", "h")
_NORMS = ("norm", "ln_f")


def body_of(model: nn.Module) -> tuple[Any, str]:
    """The body of a causal model of transformers, and the name of its list of layers.

    Raises:
        UserError: the model is laid out in another way.
    """
    plain: Any = unwrapped(model)
    body = getattr(plain, "base_model", plain)
    for name in _LAYERS:
        if isinstance(getattr(body, name, None), nn.ModuleList) and hasattr(plain, "get_output_embeddings"):
            return body, name
    raise UserError(
        f"early exits need a causal model of transformers with a list of layers, not {type(plain).__name__}"
    )


def depth_of(model: nn.Module) -> int:
    """How many layers it has."""
    body, name = body_of(model)
    return len(getattr(body, name))


def read_out(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits [..., V] from what a layer gave [..., d]: the final norm and the output layer that all exits share."""
    body, _ = body_of(model)
    norm = next(getattr(body, name) for name in _NORMS if hasattr(body, name))
    plain: Any = unwrapped(model)
    logits: Tensor = plain.get_output_embeddings()(norm(hidden))
    return logits


@contextmanager
def watched(model: nn.Module, skipped: Tensor | None = None) -> Iterator[list[Tensor]]:
    """Within the context a forward fills the list with what each layer gave [B, T, d].

    Args:
        model: a causal model of transformers.
        skipped: bool [B, L]; a layer that a row skips hands it on as it came.
    """
    body, name = body_of(model)
    found: list[Tensor] = []

    def hook(number: int) -> Any:
        def after(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            value = output[0] if isinstance(output, tuple) else output
            if skipped is not None:
                given = args[0] if args else kwargs["hidden_states"]
                value = torch.where(skipped[:, number, None, None], given, value)
            found.append(value)
            return (value, *output[1:]) if isinstance(output, tuple) else value

        return after

    layers = getattr(body, name)
    handles = [layer.register_forward_hook(hook(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def exit_at(model: nn.Module, layers: int) -> nn.Module:
    """The model that leaves after so many layers; it shares all its weights.

    Raises:
        UserError: the model has not so many.
    """
    if not 1 <= layers <= depth_of(model):
        raise UserError(f"an exit must be after layer 1 to {depth_of(model)}, not {layers}")
    early: Any = copy.copy(unwrapped(model))
    early._modules = dict(early._modules)
    body, name = body_of(model)
    short = copy.copy(body)
    short._modules = {**body._modules, name: getattr(body, name)[:layers]}
    short.config = early.config = copy.copy(early.config)
    short.config.num_hidden_layers = layers
    early._modules[early.base_model_prefix] = short
    made: nn.Module = early
    return made
