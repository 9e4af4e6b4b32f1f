"""Which smaller shapes of a decoder have about as many parameters as are allowed.

Muralidharan et al. 2024 (Minitron, arXiv 2407.14679), section 3: the shapes within 5 % of a budget are enumerated, and
each of them is cut out and retrained a little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from torch import nn

from limbeck.errors import UserError
from limbeck.language.pruning.anatomy import Shape, anatomy_of, shape_of
from limbeck.language.pruning.choice import Cut, check_size, target_shape

SIZES = ("layers", "hidden", "heads", "ffn")
"""What a shape is given by."""
Sizes = dict[str, int]


def parameters_of(model: nn.Module, shape: Shape) -> int:
    """How many parameters the model has when it is cut to a shape; weights that are shared count once.

    Raises:
        UserError: the architecture is unknown, or has a weight that is.
    """
    anatomy = anatomy_of(model)
    heads, groups = shape.heads * shape.head_dim, shape.groups * shape.head_dim
    width = {"hidden": shape.hidden, "ffn": shape.ffn, "query": heads, "key": groups, "query_key_value": 3 * heads}
    total = 0
    for name, weight in model.named_parameters():
        block, _, inner = name.removeprefix(f"{anatomy.blocks}.").partition(".")
        axes = anatomy.outer.get(name, anatomy.inner.get(inner))
        if axes is None:
            raise UserError(f"cannot cut a model with a weight '{name}'")
        if name not in anatomy.outer and int(block) >= shape.layers:
            continue  # all blocks are alike, whichever of them stay
        total += math.prod(size if over is None else width[over] for size, over in zip(weight.shape, axes, strict=True))
    return total


def shapes_within(
    model: nn.Module,
    space: Mapping[str, Sequence[int]],
    budget: float,
    within: float = 0.05,
    fixed: Sizes | None = None,
) -> list[tuple[Sizes, int]]:
    """Every combination of sizes whose number of parameters is within a share of the budget, and that number.

    Args:
        model: the decoder that they are cut out of.
        space: the sizes to combine, by ``layers``, ``hidden``, ``heads`` and ``ffn``.
        budget: parameters; at most 1, a share of the model's.
        within: how far from the budget a shape may be, as a share of it.
        fixed: the sizes that are not in the space; by default the model's own.

    Returns:
        The nearest to the budget first; of equals the one that is first in the space.

    Raises:
        UserError: the space names no size or an unknown one, one that cannot be cut out of the model, or nothing is
            near the budget.
    """
    unknown = [name for name in space if name not in SIZES]
    if unknown or not space or not all(space.values()):
        says = f"'{unknown[0]}' is no size" if unknown else "the space needs at least one size, and each a value"
        raise UserError(f"shapes: {says}; there is {', '.join(SIZES)}")
    if budget <= 0 or not 0 <= within < 1:
        raise UserError(f"shapes: the budget is above 0 and within a share below 1, got {budget:g} and {within:g}")
    whole = shape_of(model)
    for name, given in space.items():
        for value in given:
            check_size(whole, name, value)
    wanted = budget * parameters_of(model, whole) if budget <= 1 else budget
    counted = []
    for values in itertools.product(*space.values()):
        sizes = dict(zip(space, values, strict=True))
        try:
            shape = target_shape(model, _cut({**(fixed or {}), **sizes}))
        except UserError:
            continue  # each of the sizes can be cut, but the architecture ties some of them
        counted.append((sizes, parameters_of(model, shape)))
    near = [(sizes, count) for sizes, count in counted if abs(count - wanted) <= within * wanted]
    if not near:
        some = f"{min(n for _, n in counted):,} to {max(n for _, n in counted):,}" if counted else "none that can be"
        says = f"no shape of the space is within {within:.0%} of {wanted:,.0f} parameters"
        raise UserError(f"shapes: {says}: its {len(counted)} shapes have {some}")
    return sorted(near, key=lambda found: abs(found[1] - wanted))


def _cut(sizes: Mapping[str, int]) -> Cut:
    return Cut(sizes.get("layers"), sizes.get("hidden"), sizes.get("heads"), sizes.get("ffn"))
