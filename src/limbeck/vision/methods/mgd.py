"""Masked generative distillation."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from limbeck.engine.method import Term
from limbeck.engine.projectors import ConvProjector, Projectors
from limbeck.registry import register
from limbeck.vision.base import ProjectedTaught, Seen, summed
from limbeck.vision.losses.maps import squared_error
from limbeck.vision.shapes import as_map


@register("method")
class MGD(ProjectedTaught):
    """Masked Generative Distillation (Yang et al. 2022, arXiv 2205.01529).

    ``L = CE + alpha |G(M r(s)) - t|^2``, summed over the map: from the student's last map with a random part of it set
    to zero, a small trained network ``G`` (conv3x3 - ReLU - conv3x3) makes the teacher's whole one. ``r`` is a 1x1
    convolution where the channels differ.

    Args:
        alpha: weight of the generated map.
        ratio: share of the student's map that is hidden. Both defaults are those of classification; the paper has
            2e-5 with 0.65 (detection) or 0.75 (segmentation), of cells.
        mask: what is hidden: whole ``channels`` or ``cells`` across all channels.
    """

    look = "last"

    def __init__(
        self,
        *,
        alpha: float = 7e-5,
        ratio: float = 0.15,
        mask: Literal["channels", "cells"] = "channels",
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.alpha = alpha
        self.ratio = ratio
        self.mask: Literal["channels", "cells"] = mask

    def helpers(self, s: list[Tensor], t: list[Tensor]) -> dict[str, nn.Module]:
        """The projectors, without a norm unless the recipe has others, and the generators."""
        s, t = [as_map(f) for f in s], [as_map(f) for f in t]
        if self.projector is not None:
            made = super().helpers(s, t)
        else:
            pairs = {str(i): (a, b) for i, (a, b) in enumerate(zip(s, t, strict=True)) if a.shape[1:] != b.shape[1:]}
            maps = {i: ConvProjector(a, b, norm=False) for i, (a, b) in pairs.items()}
            made = {"projectors": Projectors(maps)} if maps else {}
        return made | {"generator": Projectors({str(i): generator(f.shape[1]) for i, f in enumerate(t)})}

    def compare(self, seen: Seen) -> dict[str, Term]:
        """``{"mgd"}``: the sum over layers."""
        maps = self.projected([as_map(f) for f in seen.s])
        hidden = {str(i): f * self.kept(f, seen, i) for i, f in enumerate(maps)}
        made = self.learners["generator"](hidden).values()
        layers = zip(made, seen.t, strict=True)
        return {"mgd": Term.of(summed(squared_error(s, as_map(t)) for s, t in layers), weight=self.alpha)}

    def kept(self, feature: Tensor, seen: Seen, layer: int) -> Tensor:
        """1 where a map [B, C, H, W] is shown and 0 where it is hidden, [B, C, 1, 1] or [B, 1, H, W]."""
        _, channels, height, width = feature.shape
        shape = (channels, 1, 1) if self.mask == "channels" else (1, height, width)
        drawn = seen.clock.uniform(seen.batch["id"], shape, f"mgd.{layer}")
        return (drawn >= self.ratio).to(feature.dtype)


def generator(channels: int) -> nn.Module:
    """The network that fills in what is hidden."""
    convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
    return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1])
