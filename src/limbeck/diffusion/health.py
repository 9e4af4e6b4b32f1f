"""Whether a generator and its critic are well: three numbers on samples that nothing learns from, and their alarms.

With samples ``x0`` of the generator, noised to ``x``, the critic's estimate ``D_f``, the teacher's ``D_r`` and the
direction ``d = D_f - D_r`` that the generator follows, all means over samples and levels:

``critic_lag`` is ``E<D_f - x0, d> / E|d|^2``. Since ``D_f`` and ``d`` are functions of ``x``, ``x0`` may be replaced by
its mean given ``x``, which is the exact denoiser ``D*`` of the generator's law: what is estimated is ``E<D_f - D*, d> /
E|d|^2``, the share of the direction that is the critic's error. It is 0 for the perfect critic. It is also ``1/2 +
(E|D_f - x0|^2 - E|D_r - x0|^2) / (2 E|d|^2)``, so that above 1/2 the teacher itself denoises the generator's samples
better than the critic does. A critic that starts as the teacher and has not learnt enough yet lies between ``D_r`` and
``D*``, and its lag is negative: the direction is right and too short.

``gap`` is ``E|d|^2 / E|x0 - D_r|^2``: for a perfect critic the part of the teacher's error on the generator's samples
that is due to their law, between 0 and 1. It goes to 0 as that law becomes the teacher's. Then the critic's error is
all that is left of the direction, and the lag of a healthy training goes to 1, so a lag says something only beside a
gap: by the inequality of Cauchy and Schwarz the critic's error ``E|D_f - D*|^2`` is at least ``lag^2 gap`` of the
teacher's, and alarms sound where that is not small.

``diversity`` is the mean squared distance of two samples of the same class over that of two samples of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from limbeck.diffusion.mixture import GaussianMixture
from limbeck.engine.health import Alarm, Series, highest, middle, pooled, since, swing
from limbeck.engine.method import Term

LATEST, PATIENCE = 5, 10
"""Measurements that a lag is pooled over, and that it has to swing through."""
LAG, ERROR = 0.5, 0.025
"""The lag from which it is bad, and what the critic's error must be of the teacher's to matter: less is the noise of a
training that has come to its end."""
CROSSINGS = 1 / 3
"""The share of measurements at which a lag has to change its sign to swing."""
COLLAPSED, BURST = 0.1, 10.0
"""Shares of the data's variety that are too little and too much."""


def matching_health(samples: Tensor, real: Tensor, fake: Tensor) -> dict[str, Term]:
    """``critic_lag`` and ``gap`` of the estimates at noised samples.

    Args:
        samples: clean samples of the generator, [B, *shape].
        real: the teacher's estimates [B, *shape] at the noised samples.
        fake: the critic's estimates [B, *shape] there.
    """
    samples, real, fake = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (samples, real, fake))
    direction = fake - real
    squares = direction.square().sum()
    return {
        "critic_lag": Term(((fake - samples) * direction).sum(), squares),
        "gap": Term(squares, (samples - real).square().sum()),
    }


def diversity(one: Tensor, other: Tensor, variance: Tensor | float) -> Term:
    """Mean squared distance of two samples of the same class over that of two samples of the data.

    Args:
        one: samples [B, *shape].
        other: others [B, *shape], independent of them but for the class.
        variance: of the data in that class, a mean over the dimensions, [B] or one for all.
    """
    apart = (one - other).to(torch.promote_types(one.dtype, torch.float32)).square().flatten(1)
    known = torch.as_tensor(variance, dtype=apart.dtype, device=apart.device).expand(len(apart))
    return Term(apart.sum(), 2 * apart.shape[1] * known.sum())


def variance_of(law: nn.Module, label: Tensor | None, sigma_data: float) -> Tensor | float:
    """Of the data, given the class, a mean over dimensions: exact where the law is, else that of all classes together.

    Args:
        law: the teacher.
        label: int64 [B], or None.
        sigma_data: standard deviation of the data, for a law that is not exact.
    """
    return law.variance(label) if isinstance(law, GaussianMixture) else sigma_data**2


# -- alarms ------------------------------------------------------------------------------------------------------------


def matching_alarms() -> list[Alarm]:
    """On the critic."""
    return [_lagging, _chasing]


def diversity_alarms(*, exact: bool) -> list[Alarm]:
    """On the samples.

    Args:
        exact: whether a diversity of 1 is the data's. Where it is not, since the variance within classes is not known,
            only a fall tells of a collapse.
    """
    return [partial(_collapsed, exact=exact), _burst]


def _lagging(health: Mapping[str, Series]) -> str | None:
    lag = health.get("critic_lag", ())
    if len(lag) < LATEST or (value := pooled(lag, LATEST)) <= LAG or not _matters(value, health, LATEST):
        return None
    return (
        f"critic_lag is {value:.2g} from step {lag[-LATEST].step} to {lag[-1].step}: what the generator follows is "
        "the critic's error; raise critic_updates, or lower the student's learning rate"
    )


def _chasing(health: Mapping[str, Series]) -> str | None:
    lag = health.get("critic_lag", ())
    if len(lag) < PATIENCE:
        return None
    size, crossings = swing(lag, PATIENCE)
    if size <= LAG or crossings < CROSSINGS or not _matters(size, health, PATIENCE):
        return None
    return (
        f"critic_lag goes up and down by {size:.2g} from step {lag[-PATIENCE].step} to {lag[-1].step}: generator and "
        "critic chase each other; lower the student's learning rate, or raise critic_updates"
    )


def _matters(lag: float, health: Mapping[str, Series], last: int) -> bool:
    """Whether the error that a lag stands for is more than noise."""
    return lag**2 * pooled(health["gap"], last) > ERROR


def _collapsed(health: Mapping[str, Series], *, exact: bool) -> str | None:
    series = health.get("diversity", ())
    top = highest(series) if series else 0.0
    least = COLLAPSED if exact else COLLAPSED * min(top, 1.0)
    was = "train longer" if top < least else "lower the student's learning rate"
    says = f"the samples are nearly all the same; {was}, or raise critic_updates"
    return _out_of_range(series, lambda value: value < least, says)


def _burst(health: Mapping[str, Series]) -> str | None:
    return _out_of_range(
        health.get("diversity", ()),
        lambda value: value > BURST,
        "the samples leave the range of the data; lower the student's learning rate",
    )


def _out_of_range(series: Series, bad: Callable[[float], bool], says: str) -> str | None:
    """What to say where the last three measurements are bad."""
    if len(series) < 3 or not bad(value := middle(series, 3)) or (first := since(series, bad)) is None:
        return None
    return f"diversity is {value:.2g} since step {first} (1 is as varied as the data): {says}"
