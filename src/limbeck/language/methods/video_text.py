"""A masked language model that also learns which film its text belongs to: the teacher of VidLanKD."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.devices import device_of
from limbeck.engine.gather import Together
from limbeck.engine.method import Batch, Clock, Parts, Term, Update
from limbeck.engine.projectors import Projectors
from limbeck.errors import UserError
from limbeck.language.encoders import EncoderMethod, hidden_term, sizes
from limbeck.language.grounding import ClipEncoder, hinge, mean_state
from limbeck.losses import cross_entropy, wide
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class VideoText(EncoderMethod):
    """``MLM + weight sum over negatives [max(0, m - s(x,v) + s(x,v')) + max(0, m - s(x,v) + s(x',v))]``.

    Tang et al. 2021 (VidLanKD, arXiv 2107.02681, section 3.2). s is the cosine of a film's vector and, through a linear
    map, the last hidden state of each token, or their mean over the text. Negatives are the other films and texts of
    the batch, and their mean is taken. A small encoder of films learns along; it is not part of the student, which is
    a plain encoder of text.

    Args:
        mlm_weight: of the hidden words.
        video_weight: of the contrast; without it the films are not looked at.
        margin: m.
        level: contrast at each ``token``, or for the whole ``sentence``.
        dim: length of the vectors that are compared.
        width: channels of the encoder of films.
    """

    needs = {}
    live = False
    fixed = ("video_weight",)
    controls: ClassVar[Mapping[str, dict[str, Any]]] = {"text": {"method": {"video_weight": 0.0}}}

    def __init__(
        self,
        *,
        mlm_weight: float = 1.0,
        video_weight: float = 1.0,
        margin: float = 0.5,
        level: Literal["token", "sentence"] = "token",
        dim: int = 64,
        width: int = 16,
    ) -> None:
        if min(margin, dim, width, mlm_weight + video_weight) <= 0 or min(mlm_weight, video_weight) < 0:
            raise UserError("video_text: margin, dim, width and one weight must be above 0, and no weight below")
        self.mlm_weight = mlm_weight
        self.video_weight = video_weight
        self.margin = margin
        self.level = level
        self.dim = dim
        self.width = width
        self.couples_samples = video_weight != 0  # type: ignore[misc]

    def setup(self, parts: Parts) -> None:
        """Make the encoder of films and the map of the text's states.

        Raises:
            UserError: the data hides no words, or has no films where they are to be learnt from.
        """
        super().setup(parts)
        if parts.data is not None and parts.data.task != "masked_language":
            raise UserError(f"method 'video_text' fills in hidden words (data 'scenes'), not {parts.data.task}")
        if not self.video_weight:
            return
        first = next(iter(parts.streams.values())).batch(torch.arange(1))
        if "video" not in first:
            raise UserError("video_text: the data has no films: take data 'scenes' with part: videos")
        clips = ClipEncoder(first["video"].shape[2], self.width, self.dim)
        maps = {"video": clips, "text": nn.Linear(sizes(parts.student)[0], self.dim)}
        self.learners["maps"] = Projectors(maps).to(device_of(parts.student))

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        """One update of everything that learns."""
        yield Update(tuple(self.learners), self.terms(batch))

    def terms(self, batch: Batch) -> dict[str, Term]:
        """The terms ``mlm`` and ``video``; one whose weight is zero is left out."""
        student = forward(self.student, batch, output_hidden_states=bool(self.video_weight))
        terms = {}
        if self.mlm_weight:
            terms["mlm"] = hidden_term(cross_entropy(student.logits, batch["label"]), batch, self.mlm_weight)
        if self.video_weight:
            kept = batch["attention_mask"].bool()
            values = self.contrast(student.hidden_states[-1], kept, batch["video"])
            if self.level == "sentence":
                terms["video"] = Term.of(values[:, 0], weight=self.video_weight)
            else:
                terms["video"] = Term.of(values, kept, weight=self.video_weight, unit="positions")
        return terms

    def contrast(self, states: Tensor, kept: Tensor, video: Tensor) -> Tensor:
        """The hinge of each position, [B, T], or of the text, [B, 1]."""
        if self.level == "sentence":
            states, kept = mean_state(states, kept)[:, None], kept.any(1, keepdim=True)
        found = self.learners["maps"]({"text": states, "video": video})
        together = Together(len(states), states.device)
        text, films = (together.all(F.normalize(wide(found[k]), dim=-1)) for k in ("text", "video"))
        there = together.all(kept)
        scores = torch.einsum("itd,jd->ijt", text, films)
        return together.own(hinge(scores, there, torch.ones_like(there), self.margin))
