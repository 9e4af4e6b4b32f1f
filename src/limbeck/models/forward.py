"""Calling any model on any batch, and naming what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
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

    Token batches go in as ``input_ids`` and ``attention_mask`` (and ``token_type_ids``, if they have them), images to
    transformers models as ``pixel_values``, everything else as the single argument ``batch["input"]``. Where the labels
    are maps [B, H, W], the logits of their pixels are [B, H, W, K], classes last as everywhere; see
    :func:`pixel_logits`.
    """
    if "input_ids" in batch:
        given = {k: batch[k] for k in ("token_type_ids",) if k in batch}
        return signals(
            module(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), **given, **kwargs)
        )
    if getattr(module, "main_input_name", None) == "pixel_values":
        found = signals(module(pixel_values=batch["input"], **kwargs))
    else:
        found = signals(module(batch["input"], **kwargs))
    labels, logits = batch.get("label"), found.get("logits")
    if isinstance(labels, Tensor) and labels.dim() == 3 and isinstance(logits, Tensor) and logits.dim() == 4:
        found["logits"] = pixel_logits(logits, (labels.shape[1], labels.shape[2]))
    return found


def pixel_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits [B, K, h, w] of a segmentation model for every pixel, [B, H, W, K]: a coarser map is interpolated."""
    if tuple(logits.shape[-2:]) != tuple(size):
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits.movedim(1, -1)


def signals(output: Any) -> Signals:
    """Name a model's output: a tensor is ``logits``; maps keep their names; a tuple's first entry is ``logits``.

    Raises:
        TypeError: the output is none of these.
    """
    if isinstance(output, Tensor):
        return Signals(logits=output)
    if isinstance(output, Mapping):
        named = {k: v for k, v in output.items() if v is not None}
        # torchvision's segmentation models call them so.
        return Signals({"logits": named["out"], **named} if "out" in named and "logits" not in named else named)
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return Signals(logits=output[0])
    raise TypeError(f"a model returned {type(output).__name__}; expected a tensor, a map of tensors or a tuple")


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside the wrappers of a strategy, of Fabric or of a compiler."""
    for name in ("_forward_module", "module", "_orig_mod"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    return module
