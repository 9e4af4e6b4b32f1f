"""Distillation with the reused teacher classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.features import Taps
from limbeck.engine.method import Batch, Clock, Parts, Term
from limbeck.errors import UserError
from limbeck.losses import mse, wide
from limbeck.models import places
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.base import Layers, Seen, Taught, example
from limbeck.vision.models.reused import ProjectedPool
from limbeck.vision.shapes import as_map, as_vector, same_cells


@register("method")
class SimKD(Taught):
    """Knowledge Distillation with the Reused Teacher Classifier (Chen et al. 2022, arXiv 2203.14001).

    ``L = beta mean (P(f_s) - f_t)^2`` between the last maps, through a projector P, and no other term: the student's
    last layer is a copy of the teacher's and does not learn. Projector and last layer are parts of the network that
    is delivered, so the student is a ``reused_classifier``. Of unlike grids the finer is averaged to the coarser,
    after the projector. A teacher without a last map gives the embedding that its last layer reads.

    Args:
        beta: weight of the features.
        ce_weight: weight of the labels; the paper has none.
    """

    live = True

    def __init__(self, *, beta: float = 1.0, ce_weight: float = 0.0, **rest: Any) -> None:
        super().__init__(ce_weight=ce_weight, **rest)
        self.beta = beta

    def setup(self, parts: Parts) -> None:
        """Give the student the teacher's last layer, and tap both sides."""
        super().setup(parts)
        batch, teacher = example(parts), self.teacher.module
        self._own = Layers(parts.student, [_projector(parts.student)], "output")
        _reuse(places.head(teacher, batch)[1], parts.student)
        self._other = Layers(teacher, *last_map(teacher, batch), detach=True)

    def see(self, batch: Batch, clock: Clock) -> Seen:
        """Run both networks and take their last features; the teacher is live, for no cache holds its insides."""
        student, teacher = forward(self.student, batch).logits, self.teacher.compute(batch).logits
        return Seen(batch, clock, student, teacher, self._own.pop(), self._other.pop())

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"simkd"}``."""
        s, t = same_cells(as_map(wide(seen.s[-1])), as_map(wide(seen.t[-1])))
        return {"simkd": Term.of(mse(s, t), weight=self.beta)}


def last_map(module: nn.Module, batch: Batch) -> tuple[list[str], str]:
    """The last map whose mean over cells is what the last layer reads, else what it reads: paths and ``of``."""
    head = places.head(module, batch)[0]
    maps = [place.path for place in places.places(module, batch) if len(place.shape) == 3]
    with Taps(module, [head], of="input") as inputs, Taps(module, maps) as outputs, places.looking(module):
        forward(module, batch)
        embedding = inputs.pop()[head]
        found = [path for path, value in outputs.pop().items() if value.shape[-1] > 1 and _means(value, embedding)]
    return ([found[-1]], "output") if found else ([head], "input")


def _means(feature: Tensor, embedding: Tensor) -> bool:
    vector = as_vector(feature)
    return vector.shape == embedding.shape and torch.allclose(vector, embedding, atol=1e-5)


def _projector(student: nn.Module) -> str:
    """Path of the student's projector.

    Raises:
        UserError: it has none.
    """
    paths = [f"{path}.projector" for path, child in student.named_modules() if isinstance(child, ProjectedPool)]
    if not paths:
        says = "student: {name: reused_classifier, net: {...}, channels: ...}"
        raise UserError(f"simkd trains a network that ends in its teacher's classifier: {says}")
    return paths[0]


def _reuse(layer: nn.Linear, student: nn.Module) -> None:
    """Copy the teacher's last layer into the student's, which from then on does not learn.

    Raises:
        UserError: their shapes differ.
    """
    own: Any = student.head
    if own.weight.shape != layer.weight.shape or (own.bias is None) != (layer.bias is None):
        shapes = f"{tuple(own.weight.shape)} of the student and {tuple(layer.weight.shape)} of the teacher"
        raise UserError(f"last layers {shapes}: set the student's channels to {layer.in_features}")
    own.load_state_dict(layer.state_dict())
    own.requires_grad_(False)
