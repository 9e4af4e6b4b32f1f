"""Negative prompts of generators that are not guided: what a cross-attention finds of them is taken away (NASA)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.diffusion.paths import like
from limbeck.errors import UserError


@contextmanager
def negative_attention(network: nn.Module, states: Tensor, strength: Tensor | float) -> Iterator[None]:
    """Every cross-attention gives ``Attn(Q, K, V) - strength Attn(Q, K', V')`` to its projection, within the context.

    NASA of SNOOPI (arXiv 2412.02687): ``K'`` and ``V'`` are of the negative prompt's states. It happens among the
    features, before the layer's projection, so it is no guidance, needs no second pass of the network, and works for
    generators of one call. Large strengths destroy pictures; 0.1 to 0.5 is the paper's range.

    Args:
        network: with layers that are cross-attentions as in diffusers (``to_q``, ``to_k``, ``to_v``, ``to_out``), such
            as a ``UNet2DConditionModel``, or a denoiser around one.
        states: of the negative prompts, [B, L, D], or [1, L, D] for one that all samples share.
        strength: of the subtraction, for each sample [B] or for all; 0 for a sample without a negative prompt.

    Raises:
        UserError: the network has no such layer, or one that is built otherwise.
    """
    hooks: list[Any] = []
    try:
        for name, module in _layers(network):
            seen: dict[str, Tensor] = {}
            hooks.append(module.to_q.register_forward_hook(partial(_keep, seen)))
            if not hasattr(module, "to_k") or getattr(module, "norm_q", None) is not None:
                raise UserError(f"negative_attention cannot read the queries and keys of {name}")
            change = partial(_subtract, module, seen, states, strength)
            hooks.append(_projection(module).register_forward_pre_hook(change))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def prompt_states(network: nn.Module, label: Tensor) -> Tensor:
    """What the cross-attentions of a denoiser see of classes or prompts, int64 [B]: [B, L, D].

    Raises:
        UserError: the network sees nothing in this way.
    """
    of = getattr(network, "prompt_states", None)
    found: Tensor | None = None if of is None else of(label)
    if found is None:
        says = "give unet_denoiser 'tokens', or take the network of a pipeline that takes text"
        raise UserError(f"a {type(network).__name__} sees no class by cross-attention: {says}")
    return found


def _layers(network: nn.Module) -> list[tuple[str, Any]]:
    found = [(n, m) for n, m in network.named_modules() if getattr(m, "is_cross_attention", False)]
    if not found:
        raise UserError(f"a {type(network).__name__} has no cross-attention, by which negative prompts are left out")
    return found


def _projection(module: Any) -> nn.Module:
    out: nn.Module = module.to_out[0] if isinstance(module.to_out, nn.ModuleList) else module.to_out
    return out


def _keep(seen: dict[str, Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:
    seen["queries"] = output


def _subtract(
    attention: Any, seen: dict[str, Tensor], states: Tensor, strength: Tensor | float, module: nn.Module, inputs: Any
) -> tuple[Tensor]:
    found: Tensor = inputs[0]
    told = states.to(found).expand(len(found), -1, -1)
    q, k, v = (
        t.unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for t in (seen.pop("queries"), attention.to_k(told), attention.to_v(told))
    )
    negative = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return (found - like(strength, found) * negative,)
