"""Class attention transfer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.method import Batch, Parts, Term
from limbeck.errors import UserError
from limbeck.losses import wide
from limbeck.models import places
from limbeck.models.forward import forward
from limbeck.registry import register
from limbeck.vision.base import FeatureTaught, Layers, Seen, example
from limbeck.vision.losses.maps import class_attention
from limbeck.vision.shapes import as_map, as_vector


@register("method")
class CATKD(FeatureTaught):
    """Class Attention Transfer Based Knowledge Distillation (Guo et al. 2023, arXiv 2304.07777).

    ``L = CE + beta mean (M_s - M_t)^2`` with ``M`` the class activation maps: the last map seen through the weights of
    the head, a map for each class, averaged to few cells and scaled to length 1. For networks whose head reads the mean
    of the last map, so that a class's logit is the mean of its map (and a bias).

    Args:
        beta: weight of the class maps.
        size: they are averaged to ``size`` x ``size`` cells.
    """

    look = "last"

    def __init__(self, *, beta: float = 400.0, size: int = 2, **rest: Any) -> None:
        super().__init__(**rest)
        self.beta = beta
        self.size = size

    def setup(self, parts: Parts) -> None:
        """As its base; and find both heads."""
        super().setup(parts)
        batch = example(parts)
        self._own_head = _head(parts.student, self._own, batch)
        self._other_head = _head(self.teacher.module, self._other, batch)

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"cat"}``."""
        s = class_maps(seen.s[-1], self._own_head.weight)
        t = class_maps(seen.t[-1], self._other_head.weight)
        return {"cat": Term.of(class_attention(s, t, size=self.size), weight=self.beta)}


def class_maps(feature: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps, [B, C, H, W] and the head's [K, C] -> [B, K, H, W]."""
    return torch.einsum("bchw,kc->bkhw", wide(as_map(feature)), wide(weight))


def _head(module: nn.Module, layers: Layers, batch: Batch) -> nn.Linear:
    """The layer that gives the logits, if these are the means of its class maps."""
    path, head = places.head(module, batch)
    with places.looking(module):
        logits = forward(module, batch).logits
    feature = as_map(layers.pop()[-1])
    if feature.shape[1] == head.in_features:
        means = as_vector(class_maps(feature, head.weight)).detach()
        means = means if head.bias is None else means + head.bias.detach()
        if torch.allclose(means, wide(logits), rtol=1e-2, atol=1e-3):
            return head
    raise UserError(
        f"'{path}' of {type(module).__name__} does not read the mean of '{layers.paths[-1]}', so there are no class "
        "maps: name the layer that it reads, or choose another method"
    )
