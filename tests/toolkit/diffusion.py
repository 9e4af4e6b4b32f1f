"""Exact stand-ins for tests of diffusion methods: a Gaussian law, an affine generator, its fake score, its flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.mixture import GaussianMixture
from limbeck.engine.method import Clock, Method, Parts, Update
from limbeck.engine.teacher import Teacher
from limbeck.registry import Block, build, find

CLOCK = Clock(step=3, total=10, seed=1)
MEAN, STD = 1.0, 0.5
"""Of :func:`gaussian`."""


def batch(start: int = 0, stop: int = 64) -> dict[str, Any]:
    """A batch of a method that needs no data."""
    return {"id": torch.arange(start, stop), "view": 0}


def gaussian() -> GaussianMixture:
    """One Gaussian in one dimension."""
    return GaussianMixture(torch.ones(1), torch.tensor([[MEAN]]), torch.tensor([[STD**2]]))


class Affine(nn.Module):
    """The generator ``a z + b`` in one dimension, of a single step."""

    shape = (1,)

    def __init__(self, a: float = 1.0, b: float = 0.0) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([a])), nn.Parameter(torch.tensor([b]))

    def forward(self, noise: Tensor) -> Tensor:
        """Samples [B, 1]."""
        return self.a * noise + self.b


class FakeScore(nn.Module):
    """The denoiser of an affine generator's own law, in closed form; it follows the generator without a gradient."""

    shape = (1,)
    sigma_data = 1.0

    def __init__(self, student: Affine) -> None:
        super().__init__()
        self.of = (student,)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``E[x0 | x]``."""
        a, b = self.of[0].a.detach(), self.of[0].b.detach()
        return b + a**2 / (a**2 + sigma[:, None] ** 2) * (x - b)


class ExactFlow(nn.Module):
    """The flow of :func:`gaussian` as the network of a ``few_step`` student: to ``to``, or to ``floor`` without it.

    ``gain`` scales the result's distance to the mean: 1 is exact.
    """

    shape = (1,)
    classes = None
    sigma_data = STD
    jumps = True

    def __init__(self, floor: float = 0.0, gain: float = 1.0) -> None:
        super().__init__()
        self.floor = floor
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None, *, to: Tensor | None = None) -> Tensor:
        """The end of the flow at ``floor``, or the point that the jump to ``to`` heads for."""
        there = torch.full_like(sigma, self.floor) if to is None else to
        ratio = torch.sqrt((STD**2 + there**2) / (STD**2 + sigma**2))[:, None]
        arrived = MEAN + self.gain * ratio * (x - MEAN)
        if to is None:
            return arrived
        share = (there / sigma)[:, None]
        denoised = MEAN + STD**2 / (STD**2 + sigma**2)[:, None] * (x - MEAN)
        same = (share >= 1).expand_as(x)
        return torch.where(same, denoised, (arrived - share * x) / (1 - share).clamp_min(1e-12))


def student(net: Block | nn.Module | None = None, **args: Any) -> nn.Module:
    """A ``few_step`` generator, by default of a small network for points in the plane."""
    from limbeck.diffusion.few_step import FewStep, few_levels

    if isinstance(net, nn.Module):
        grid = {
            "sigma_min": 0.02,
            "sigma_max": 10.0,
            **{k: args.pop(k) for k in ("sigma_min", "sigma_max") if k in args},
        }
        return FewStep(net, few_levels(args.pop("nfe", 1), **grid), **args, **grid)
    block = net or Block("mlp_denoiser", {"width": 16, "depth": 1, "sigma_data": 1.5})
    return build("model", Block("few_step", {"net": block, "sigma_min": 0.02, "sigma_max": 10.0, **args}))


def made(name: str, teacher: nn.Module, student: nn.Module, **args: Any) -> Any:
    """The method by name, set up."""
    method: Method = find("method", name).load()(**args)
    method.setup(Parts(student=student, teachers={"teacher": Teacher(teacher, {"denoiser"}, "teacher")}))
    return method


def values(update: Update) -> dict[str, float]:
    """The sum of every term of an update."""
    return {name: float(term.sum.detach()) for name, term in update.evaluate().items()}


def descend(method: Method, steps: int, lr: float = 0.05, rows: int = 256, role: str = "student") -> None:
    """Train one learner by Adam, with a rate that falls to nothing; the other updates are left out."""
    module = method.learners[role]
    optimizer = torch.optim.Adam(module.parameters(), lr, betas=(0.0, 0.999))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for k in range(steps):
        clock = Clock(k, steps)
        for update in method.updates(batch(0, rows), clock):
            if update.role != role:
                continue
            optimizer.zero_grad()
            sum(t.weight * t.sum / t.count for t in update.evaluate().values()).backward()
            optimizer.step()
        method.after_step(clock)
        schedule.step()
