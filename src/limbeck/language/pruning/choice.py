"""From target sizes to what stays of a decoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.language.pruning import depth as depths
from limbeck.language.pruning.anatomy import Shape, anatomy_of, shape_of
from limbeck.language.pruning.importance import Aggregate, Importance, importance, random_importance
from limbeck.language.pruning.slicing import Kept, everything, sliced

Depth = Literal["block_influence", "loss", "angular", "even"]


@dataclass(frozen=True)
class Cut:
    """What to cut: target sizes, and what they are chosen by.

    Attributes:
        layers, hidden, heads, ffn: sizes of the smaller model; None leaves them as they are. Of a model with grouped
            queries whole groups go, so ``heads`` is a multiple of the heads that share keys and values.
        by: ``activation`` or ``random``, for channels, heads and neurons.
        depth: what blocks are chosen by.
        sequence, batch: how activations are aggregated; see :func:`~limbeck.language.pruning.importance.importance`.
    """

    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    ffn: int | None = None
    by: Literal["activation", "random"] = "activation"
    depth: Depth = "block_influence"
    sequence: Aggregate = "l2"
    batch: Aggregate = "mean"


def cut_out(model: nn.Module, cut: Cut, batches: Sequence[Mapping[str, Any]], *, rescale: bool = True) -> nn.Module:
    """A smaller model of the same class, on the model's device.

    Raises:
        UserError: the architecture is unknown, or the sizes do not fit the model.
    """
    return sliced(model, choose(model, cut, batches), rescale=rescale)


def choose(model: nn.Module, cut: Cut, batches: Sequence[Mapping[str, Any]]) -> Kept:
    """What stays of a model, by its activations on calibration text.

    Raises:
        UserError: the architecture is unknown, or the sizes do not fit the model.
    """
    shape = shape_of(model)
    target = target_shape(model, cut)
    kept = everything(shape)
    layers = kept.layers if target.layers == shape.layers else _layers(model, cut.depth, target.layers, batches)
    hidden, groups, ffn = kept.hidden, kept.groups, kept.ffn
    if (target.hidden, target.groups, target.ffn) != (shape.hidden, shape.groups, shape.ffn):
        found = _scores(model, cut, batches)
        hidden = _top(found.hidden, target.hidden)
        groups = tuple(_top(scores, target.groups) for scores in found.groups)
        ffn = tuple(_top(scores, target.ffn) for scores in found.ffn)
    return Kept(layers, hidden, tuple(groups[i] for i in layers), tuple(ffn[i] for i in layers))


def target_shape(model: nn.Module, cut: Cut) -> Shape:
    """The sizes of the smaller model.

    Where the architecture ties channels and heads, one of them is derived from the other.

    Raises:
        UserError: a size is larger than the model's or smaller than 1, or they do not go together.
    """
    shape = shape_of(model)
    hidden, heads = cut.hidden, cut.heads
    if anatomy_of(model).joined:
        if heads is None and hidden is not None:
            heads = hidden // shape.head_dim
        hidden = heads * shape.head_dim if hidden is None and heads is not None else hidden
    sizes = {"layers": cut.layers, "hidden": hidden, "heads": heads, "ffn": cut.ffn}
    whole = {name: getattr(shape, name) if size is None else size for name, size in sizes.items()}
    for name, size in whole.items():
        check_size(shape, name, size)
    if anatomy_of(model).joined and whole["heads"] * shape.head_dim != whole["hidden"]:
        says = f"a {type(model).__name__} is as wide as its heads together, of {shape.head_dim} channels each"
        raise UserError(f"hidden {whole['hidden']} and heads {whole['heads']} cannot be cut: {says}")
    target = Shape(**whole, groups=whole["heads"] // shape.queries, head_dim=shape.head_dim)
    _check_config(model, target)
    return target


def check_size(shape: Shape, name: str, size: int) -> None:
    """Refuse a size that no cut of a model of this shape has.

    Raises:
        UserError: it is larger than the model's or smaller than 1, or cuts through a group of heads.
    """
    if not 1 <= size <= getattr(shape, name):
        raise UserError(f"a student with {name} {size} cannot be cut out of a teacher with {getattr(shape, name)}")
    if name == "heads" and size % shape.queries:
        says = f"the teacher's heads share keys and values by {shape.queries}, and whole groups are cut"
        raise UserError(f"heads {size} cannot be cut: {says}, so give a multiple of {shape.queries}")


def _check_config(model: Any, target: Shape) -> None:
    """Refuse sizes that transformers would refuse to save."""
    config, names = copy.deepcopy(model.config), anatomy_of(model).config
    for word, name in names.items():
        if word != "eps":
            setattr(config, name, getattr(target, word))
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: target.layers]
    validate = getattr(config, "validate", None)
    try:
        if validate is not None:
            validate()
    except Exception as error:
        says = str(error.__cause__ or error)
        raise UserError(f"a {type(model).__name__} of these sizes cannot be: {says}") from error


def _layers(model: nn.Module, by: Depth, count: int, batches: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    total = shape_of(model).layers
    match by:
        case "block_influence":
            return depths.most_important(depths.block_influence(model, batches), count)
        case "loss":
            return depths.most_important(depths.loss_increase(model, batches), count)
        case "angular":
            gone = total - count
            return depths.without_span(depths.angular_distances(model, batches, gone), total, gone)
        case "even":
            return depths.evenly(total, count)


def _scores(model: nn.Module, cut: Cut, batches: Sequence[Mapping[str, Any]]) -> Importance:
    if cut.by == "random":
        return random_importance(model)
    return importance(model, batches, sequence=cut.sequence, batch=cut.batch)


def _top(scores: Tensor, count: int) -> Tensor:
    return torch.tensor(depths.most_important(scores, count))
