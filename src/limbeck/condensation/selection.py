"""Choosing or making a few images of one class without gradients: the baselines that condensation must beat.

Pure functions on the features of one class, [N, D]; they return row numbers, int64 [count], except
:func:`k_means_centres`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def herding(features: Tensor, count: int) -> Tensor:
    """Rows whose running mean stays nearest to the mean of all, greedily (Welling 2009; Rebuffi et al. 2017, iCaRL).

    Step k adds the unused row that minimises ``|| mean - (sum of chosen + row) / k ||``.

    Raises:
        ValueError: fewer rows than ``count``.
    """
    _enough(features, count)
    mean, total = features.mean(0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen: list[Tensor] = []
    for k in range(1, count + 1):
        distance = (mean - (total + features) / k).square().sum(1)
        best = distance.where(free, torch.inf).argmin()
        free[best] = False
        total = total + features[best]
        chosen.append(best)
    return torch.stack(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """Greedy farthest-first rows, started from the one nearest to the mean (Sener and Savarese 2018, arXiv 1708.00489).

    Raises:
        ValueError: fewer rows than ``count``.
    """
    _enough(features, count)
    chosen = [(features - features.mean(0)).square().sum(1).argmin()]
    distance = torch.full_like(features[:, 0], torch.inf)
    for _ in range(count - 1):
        distance = torch.minimum(distance, (features - features[chosen[-1]]).square().sum(1))
        distance[chosen[-1]] = -torch.inf
        chosen.append(distance.argmax())
    return torch.stack(chosen)


def k_means(features: Tensor, count: int, seed: int = 0) -> Tensor:
    """The rows nearest to the centres of ``count`` k-means clusters, each row once.

    Raises:
        ValueError: fewer rows than ``count``.
    """
    centres = k_means_centres(features.double(), count, seed)
    distance = torch.cdist(centres, features.detach().double()).cpu()
    chosen: list[int] = []
    for row in distance:
        row[chosen] = torch.inf
        chosen.append(int(row.argmin()))
    return torch.tensor(chosen, device=features.device)


def k_means_centres(features: Tensor, count: int, seed: int = 0) -> Tensor:
    """The centres of ``count`` k-means clusters [count, D], which are no rows but means of such.

    Raises:
        ValueError: fewer rows than ``count``.
    """
    from sklearn.cluster import KMeans

    _enough(features, count)
    points = features.detach().cpu().double()
    centres = KMeans(count, n_init=4, random_state=seed).fit(points.numpy()).cluster_centers_
    return torch.as_tensor(centres).to(features)


def _enough(features: Tensor, count: int) -> None:
    if len(features) < count:
        raise ValueError(f"{count} rows asked of {len(features)}")
