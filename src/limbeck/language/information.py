"""How much one network's states say of another's: bounds of their mutual information, with a critic that learns.

A critic scores pairs of states; :func:`interpolated_bound` turns the scores of a batch into a lower bound of the mutual
information in nats, between the low variance of InfoNCE and the low bias of NWJ (Poole et al. 2019, arXiv 1905.06922).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses import wide


def interpolated_bound(scores: Tensor, log_baseline: Tensor, alpha: float) -> Tensor:
    """A lower bound of the mutual information, one estimate for each y: [K, K] -> [K].

    ``1 + log(e^f(x_j, y_j) / (alpha m_j + (1 - alpha) b_j)) - mean over k != j of e^f(x_k, y_j) / (alpha m'_j +
    (1 - alpha) b_j)``. ``m_j`` is the mean of ``e^f(x_k, y_j)`` over all K samples: ``alpha`` 1 is InfoNCE. ``m'_j`` is
    that over the others, since the second expectation is over a y that is independent of every x. ``alpha`` 0 is the
    bound of Nguyen, Wainwright and Jordan for ``f + 1`` where b is 1, and that of Barber and Agakov made tractable
    (TUBA) for any other b. Poole et al. 2019, equation 17.

    Args:
        scores: ``f(x_k, y_j)`` in row k and column j; on the diagonal those of pairs that belong together.
        log_baseline: ``log b(y_j)`` [K].
        alpha: in [0, 1].

    Raises:
        UserError: alpha is no share, or there is no other sample.
    """
    count = len(scores)
    if not 0 <= alpha <= 1 or count < 2:
        raise UserError(f"the bound needs alpha in [0, 1] and two samples; got {alpha} and {count}")
    scores, log_baseline = wide(scores), wide(log_baseline)
    own = torch.eye(count, dtype=torch.bool, device=scores.device)
    others = scores.masked_fill(own, -math.inf).logsumexp(0) - math.log(count - 1)
    joint = scores.diagonal() - _mixed(scores.logsumexp(0) - math.log(count), log_baseline, alpha)
    return 1 + joint - (others - _mixed(others, log_baseline, alpha)).exp()


def _mixed(log_m: Tensor, log_b: Tensor, alpha: float) -> Tensor:
    """``log(alpha m + (1 - alpha) b)``; the ends are taken apart, for a logarithm of zero has no gradient."""
    if alpha == 0:
        return log_b
    if alpha == 1:
        return log_m
    return torch.logaddexp(log_m + math.log(alpha), log_b + math.log1p(-alpha))


class Critic(nn.Module):
    """A network of one hidden layer that scores every pair of a batch, and a baseline of the second of a pair.

    Args:
        first, second: widths of the two states.
        hidden: neurons.
        learned: the baseline learns; else it is 1.
    """

    def __init__(self, first: int, second: int, hidden: int, *, learned: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(first, hidden), nn.Linear(second, hidden, bias=False)
        self.out = nn.Linear(hidden, 1)
        self.baseline = nn.Sequential(nn.Linear(second, hidden), nn.ReLU(), nn.Linear(hidden, 1)) if learned else None

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """States [K, first] and [N, second] -> scores [K, N], and the logarithm of the baseline [N]."""
        # The first layer of the joined pair is a sum of a part of either: K + N products in place of K N.
        scores = self.out(F.relu(self.first(x)[:, None] + self.second(y)[None])).squeeze(-1)
        return scores, scores.new_zeros(len(y)) if self.baseline is None else self.baseline(y).squeeze(-1)


class Critics(nn.Module):
    """A critic for each of several pairs of layers, as one learner."""

    def __init__(self, critics: Sequence[Critic]) -> None:
        super().__init__()
        self.critics = nn.ModuleList(critics)

    def forward(self, x: Sequence[Tensor], y: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """What each critic makes of its pair."""
        return [critic(a, b) for critic, a, b in zip(self.critics, x, y, strict=True)]
