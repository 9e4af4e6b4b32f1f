"""Cutting decoders: what matters in one, which blocks can go, and the smaller model of the same class."""

from limbeck.language.pruning.anatomy import ANATOMIES, Shape, blocks_of, shape_of
from limbeck.language.pruning.choice import Cut, choose, cut_out
from limbeck.language.pruning.depth import (
    angular_distances,
    block_influence,
    bypassed,
    evenly,
    loss_increase,
    most_important,
    without_span,
)
from limbeck.language.pruning.importance import Importance, importance, random_importance
from limbeck.language.pruning.shapes import parameters_of, shapes_within
from limbeck.language.pruning.slicing import Kept, everything, sliced

__all__ = [
    "ANATOMIES",
    "Cut",
    "Importance",
    "Kept",
    "Shape",
    "angular_distances",
    "block_influence",
    "blocks_of",
    "bypassed",
    "choose",
    "cut_out",
    "evenly",
    "everything",
    "importance",
    "loss_increase",
    "most_important",
    "parameters_of",
    "random_importance",
    "shape_of",
    "shapes_within",
    "sliced",
    "without_span",
]
