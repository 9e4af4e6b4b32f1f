"""Calling any model on any batch, and naming what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Signals(dict[str, Any]):
    """What a model gave for a batch, by name and as attributes (``signals.logits``)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no signal '{name}' here; there is {', '.join(sorted(self)) or 'nothing'}") from None


def forward(module: nn.Module, batch: Mapping[str, Any], **kwargs: Any) -> Signals:
    """Run a module on a batch: plain PyTorch, timm or transformers.

    Token batches go in as ``input_ids`` and ``attention_mask``, images to transformers models as ``pixel_values``,
    everything else as the single argument ``batch["input"]``.
    """
    if "input_ids" in batch:
        mask = batch.get("attention_mask")
        return signals(module(input_ids=batch["input_ids"], attention_mask=mask, **kwargs))
    if getattr(module, "main_input_name", None) == "pixel_values":
        return signals(module(pixel_values=batch["input"], **kwargs))
    return signals(module(batch["input"], **kwargs))


def signals(output: Any) -> Signals:
    """Name a model's output: a tensor is ``logits``; maps keep their names; a tuple's first entry is ``logits``.

    Raises:
        TypeError: the output is none of these.
    """
    if isinstance(output, Tensor):
        return Signals(logits=output)
    if isinstance(output, Mapping):
        return Signals({k: v for k, v in output.items() if v is not None})
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return Signals(logits=output[0])
    raise TypeError(f"a model returned {type(output).__name__}; expected a tensor, a map of tensors or a tuple")
