"""Cutting a smaller decoder of the same class out of a larger one, so that it loads in plain transformers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.language.pruning.anatomy import Anatomy, Axes, Shape, anatomy_of, shape_of


@dataclass(frozen=True)
class Kept:
    """What stays of a decoder, each in order.

    Attributes:
        layers: numbers of the blocks.
        hidden: int64, the channels.
        groups: for each of these blocks, the heads (of a model with grouped queries: the key-value groups), int64.
        ffn: for each of these blocks, the neurons, int64.
    """

    layers: tuple[int, ...]
    hidden: Tensor
    groups: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]


def everything(shape: Shape) -> Kept:
    """All of a model: what to change with :func:`dataclasses.replace`."""
    groups, ffn = torch.arange(shape.groups), torch.arange(shape.ffn)
    layers = tuple(range(shape.layers))
    return Kept(layers, torch.arange(shape.hidden), (groups,) * shape.layers, (ffn,) * shape.layers)


@torch.no_grad()
def sliced(model: nn.Module, kept: Kept, *, rescale: bool = True) -> nn.Module:
    """A model of the same class, with its own configuration, from the weights that are kept.

    Args:
        model: a transformers decoder (see :data:`~limbeck.language.pruning.anatomy.ANATOMIES`); it stays as it is.
        kept: what stays.
        rescale: a norm over fewer channels divides by their own mean square, which is larger where channels that
            carried little are gone. With this the norms' weights and epsilon are changed by the share of channels, so
            that a model whose other channels were zero (and, for LayerNorm, whose channels had no mean) computes what
            it did before (up to epsilon in Qwen3, whose norms of queries and keys share it).

    Raises:
        UserError: the architecture is unknown, what is kept does not fit it, or its blocks depend on their number.
    """
    anatomy, shape = anatomy_of(model), shape_of(model)
    new = _new_shape(kept, shape, anatomy, model)
    made: Any = type(model)(_config(model, anatomy, kept, shape, new, rescale))
    own = model.state_dict()
    factor = (shape.hidden / new.hidden) ** 0.5 if rescale else 1.0
    weights: dict[str, Tensor] = {}
    for name in made.state_dict():
        old, axes, layer = _source(name, anatomy, kept)
        value = own[old]
        for axis, over in enumerate(axes):
            if over is not None:
                value = value.index_select(axis, _indices(over, layer, kept, shape).to(value.device))
        norm = name.rpartition(".")[0].endswith(anatomy.norms) and name.endswith("weight")
        weights[name] = value * factor if norm else value
    made.to(next(iter(own.values())).dtype).load_state_dict(weights)
    made.tie_weights()
    made.generation_config = copy.deepcopy(model.generation_config)
    if hasattr(model, "tokenizer_hash"):
        made.tokenizer_hash = model.tokenizer_hash
    module: nn.Module = made.train(model.training)
    return module


def _new_shape(kept: Kept, shape: Shape, anatomy: Anatomy, model: Any) -> Shape:
    sizes = {len(groups) for groups in kept.groups}, {len(ffn) for ffn in kept.ffn}
    if not kept.layers or not all(len(found) == 1 for found in sizes):
        raise UserError("every block must keep as many heads and neurons as the others, and there must be a block")
    groups, ffn = (found.copy().pop() for found in sizes)
    new = Shape(len(kept.layers), len(kept.hidden), groups * shape.queries, ffn, groups, shape.head_dim)
    if anatomy.joined and new.heads * new.head_dim != new.hidden:
        says = f"{type(model).__name__} is as wide as its heads together"
        raise UserError(f"{says}: {new.hidden} channels need {new.hidden / new.head_dim:g} heads, not {new.heads}")
    numbered = getattr(model.config, "scale_attn_by_inverse_layer_idx", False)
    if numbered and kept.layers != tuple(range(len(kept.layers))):
        raise UserError("this model scales attention by the number of its block, so that only last blocks can go")
    return new


def _config(model: Any, anatomy: Anatomy, kept: Kept, shape: Shape, new: Shape, rescale: bool) -> Any:
    config = copy.deepcopy(model.config)
    for word, name in anatomy.config.items():
        if word == "eps":
            setattr(config, name, getattr(config, name) * (shape.hidden / new.hidden if rescale else 1.0))
        else:
            setattr(config, name, getattr(new, word))
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept.layers]
    return config


def _source(name: str, anatomy: Anatomy, kept: Kept) -> tuple[str, Axes, int]:
    """The name that a weight had before, its axes, and the number of its block among those that are kept."""
    if name in anatomy.outer:
        return name, anatomy.outer[name], 0
    number, _, inner = name.removeprefix(f"{anatomy.blocks}.").partition(".")
    if inner not in anatomy.inner:
        raise UserError(f"cannot cut a model with a weight '{name}'")
    return f"{anatomy.blocks}.{kept.layers[int(number)]}.{inner}", anatomy.inner[inner], int(number)


def _indices(over: str, layer: int, kept: Kept, shape: Shape) -> Tensor:
    """Which entries of an axis stay."""
    if over == "hidden":
        return kept.hidden
    if over == "ffn":
        return kept.ffn[layer]
    per_group = shape.head_dim * (1 if over == "key" else shape.queries)
    places = (kept.groups[layer][:, None] * per_group + torch.arange(per_group)).flatten()
    if over != "query_key_value":
        return places
    return torch.cat([places + i * shape.heads * shape.head_dim for i in range(3)])
