"""What ties text to films, and a student's states to those of a teacher that has seen films."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.losses import cross_entropy, same_rows, same_shape, wide

TINY = 1e-6
"""Length under which an activation map counts as zero: a dead neuron has no direction."""
PIECE = 1024
"""How many rows are asked of the data at once when their ids are read."""


class Head(nn.Sequential):
    """Dense, GELU, layer norm, dense: states [..., own] -> [..., width], as the head of a masked language model."""

    def __init__(self, own: int, width: int) -> None:
        super().__init__(nn.Linear(own, own), nn.GELU(), nn.LayerNorm(own), nn.Linear(own, width))


class ClipEncoder(nn.Module):
    """A small encoder of films: convolutions of each frame, then a linear map of the frames' mean and of their drift.

    Args:
        channels: of a frame.
        width: channels of the first convolution; the second has twice as many.
        dim: length of a film's vector.
    """

    GRID = 4

    def __init__(self, channels: int, width: int, dim: int) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(self.GRID),
            nn.Flatten(),
        )
        self.film = nn.Linear(2 * 2 * width * self.GRID**2, dim)

    def forward(self, video: Tensor) -> Tensor:
        """[B, frames, channels, H, W] -> [B, dim]."""
        frames = self.frame(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return self.film(torch.cat([frames.mean(1), frames[:, -1] - frames[:, 0]], dim=1))


def hinge(scores: Tensor, rows: Tensor, columns: Tensor, margin: float) -> Tensor:
    """Contrastive hinge in both directions at every position, [B, B, T] -> [B, T] (Tang et al. 2021, 2107.02681).

    With ``s_ij`` the score of text i and film j at a position (or of a student's state and a teacher's), the value of
    sample i is the mean over the other films of ``max(0, m - s_ii + s_ij)`` and the mean over the other texts of
    ``max(0, m - s_ii + s_ji)``, added up. The paper adds up the negatives; the means do not depend on the batch size.

    Args:
        scores: similarities; the first axis is the text's (the student's) sample.
        rows, columns: which samples have something at the position, on either side, bool [B, T]. Others are no
            negatives, and their own values mean nothing.
        margin: m.

    Raises:
        ValueError: the shapes do not go together.
    """
    if scores.dim() != 3 or scores.shape != (len(scores), *columns.shape) or rows.shape != columns.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (scores, rows, columns))
        raise ValueError(f"a hinge takes scores [B, B, T] and two masks [B, T], not {shapes}")
    scores = wide(scores)
    own = scores.diagonal().T
    away = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)[:, :, None]
    right = (margin - own[:, None] + scores).clamp_min(0)
    left = (margin - own[None] + scores).clamp_min(0)
    return _mean(right, away & columns[None], 1) + _mean(left, away & rows[:, None], 0)


def _mean(values: Tensor, kept: Tensor, axis: int) -> Tensor:
    """The mean of what is kept, 0 where nothing is."""
    return (values * kept).sum(axis) / kept.sum(axis).clamp_min(1)


def normalised_cross_entropy(student: Tensor, teacher: Tensor, kept: Tensor, tau: float) -> Tensor:
    """Contrast within the batch at every position, [B, T, D] twice -> [B, T] (Chen et al. 2020, 2002.05709, eq. 1).

    The cross-entropy, with cosines over ``tau`` as logits, of telling the other side's vector of the same sample from
    all vectors of both sides of other samples at that position; the mean of both sides as anchors.

    Args:
        student, teacher: vectors of length 1.
        kept: which samples have something at the position, bool [B, T]; others are no negatives, and their own values
            mean nothing.
        tau: divides the cosines.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(student=student, teacher=teacher)
    same_shape(vectors=student[..., 0], kept=kept)
    both = torch.cat([wide(student), wide(teacher)]).transpose(0, 1)
    logits = both @ both.mT / tau
    count, there = len(student), torch.cat([kept, kept]).T
    place = torch.arange(2 * count, device=both.device)
    partner = (place + count) % (2 * count)
    own = F.one_hot(place, 2 * count).bool()
    ours = F.one_hot(partner, 2 * count).bool()
    logits = logits.masked_fill(own | ~(there[:, None] | ours), -torch.inf)
    values = cross_entropy(logits, partner.expand(len(logits), -1))
    return (values[:, :count] + values[:, count:]).T / 2


def neuron_selectivity(student: Tensor, teacher: Tensor, kept: Tensor, *, degree: int = 2) -> Tensor:
    """Squared maximum mean discrepancy of activation maps over positions, [B, T, Hs] and [B, T, Ht] -> [B].

    Huang and Wang 2017 (arXiv 1707.01219) for text: the map of a neuron is what it says at each position, made a
    vector of length 1; the kernel is ``(x . y)^degree``. Padding is left out of the maps. The widths may differ.

    Args:
        student, teacher: hidden states.
        kept: bool [B, T], False at padding.
        degree: of the kernel; 1 compares the mean maps alone.

    Raises:
        ValueError: unlike numbers of texts or positions.
    """
    if student.shape[:-1] != kept.shape or teacher.shape[:-1] != kept.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (student, teacher, kept))
        raise ValueError(f"states and mask must have the same texts and positions: {shapes}")
    a, b = (F.normalize(wide(x) * kept[..., None], dim=1, eps=TINY).mT for x in (student, teacher))
    ss, tt, st = ((x @ y.mT) ** degree for x, y in ((a, a), (b, b), (a, b)))
    return ss.mean((1, 2)) + tt.mean((1, 2)) - 2 * st.mean((1, 2))


def mean_state(states: Tensor, kept: Tensor) -> Tensor:
    """The mean state of each text where there is no padding, [B, T, H] and bool [B, T] -> [B, H]."""
    same_rows(states=states, kept=kept)
    return (wide(states) * kept[..., None]).sum(1) / kept.sum(1, keepdim=True).clamp_min(1)


class Memory:
    """Two banks of vectors with a row for each sample, from which a contrast has its negatives (Tian et al. 2020).

    Args:
        ids: of the samples, int64 [N].
        dim: length of the vectors.

    Raises:
        UserError: there is a single sample.
    """

    def __init__(self, ids: Tensor, dim: int) -> None:
        self.ids = ids.sort().values
        if len(ids) < 2:
            raise UserError("a contrast with a memory needs more than one sample")
        side = math.sqrt(3 / dim)
        self.banks = (2 * torch.rand(2, len(ids), dim) - 1) * side
        self.log_z: Tensor | None = None

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of samples, int64 [B]."""
        return torch.searchsorted(self.ids, ids)

    def draw(self, ids: Tensor, clock: Clock, count: int) -> Tensor:
        """A sample's row and so many others, drawn with replacement, int64 [B, 1 + count]."""
        own = self.rows(ids)[:, None]
        # A product with a number just below 1 may be rounded up.
        others = len(self.ids) - 1
        place = (clock.uniform(ids, (count,), "negatives") * others).long().clamp_max(others - 1)
        return torch.cat([own, place + (place >= own)], 1)

    def scores(self, vectors: Tensor, drawn: Tensor, tau: float) -> Tensor:
        """Products of both sides' vectors with the drawn rows of the other side's bank, over tau.

        Args:
            vectors: of student and teacher, [2, B, D].
            drawn: rows, int64 [B, 1 + K].
            tau: temperature.

        Returns:
            [2, B, 1 + K].
        """
        products = vectors @ self.banks.flip(0).transpose(1, 2)
        return products.gather(2, drawn.expand(2, -1, -1)) / tau

    def fix(self, scores: Tensor) -> None:
        """At the first step: Z of either side is N times the mean of ``exp(score)`` over these, [2, ..., 1 + K]."""
        if self.log_z is None:
            first = scores.detach().flatten(1)
            self.log_z = first.logsumexp(1) + math.log(len(self.ids) / first.shape[1])

    def contrast(self, scores: Tensor) -> Tensor:
        """``-log h(own) - sum_k log(1 - h(other_k))`` of both sides, added up: [2, B, 1 + K] -> [B].

        ``h = g / (g + K / N)`` with ``g = exp(score) / Z`` (Tian et al. 2020, arXiv 1910.10699, eq. 16 to 18).
        """
        assert self.log_z is not None
        noise = math.log((scores.shape[2] - 1) / len(self.ids))
        logit = scores - self.log_z[:, None, None] - noise
        return (F.softplus(-logit[..., 0]) + F.softplus(logit[..., 1:]).sum(-1)).sum(0)

    def move(self, ids: Tensor, vectors: Tensor, momentum: float) -> None:
        """Move the rows of samples towards vectors [2, B, D] and make them of length 1."""
        own = self.rows(ids)
        self.banks[:, own] = F.normalize(momentum * self.banks[:, own] + (1 - momentum) * vectors, dim=-1)

    def to(self, device: torch.device) -> None:
        """Move everything to a device."""
        self.ids, self.banks = self.ids.to(device), self.banks.to(device)
        self.log_z = self.log_z.to(device) if self.log_z is not None else None
