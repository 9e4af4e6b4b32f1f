"""Whether a control that was learnt on the teacher still works on the student, and the other way round."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.control import denoising_loss, effect, moving_loss, train_slider
from limbeck.diffusion.few_step import FewStep
from limbeck.diffusion.metrics.laws import starts
from limbeck.diffusion.samplers import heun, karras_grid
from limbeck.engine import noise
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores, evaluating
from limbeck.registry import register


@register(
    "metric",
    task={"generation"},
    better={
        "slider_cosine": "higher",
        "slider_share": "higher",
        "slider_cosine_back": "higher",
        "slider_share_back": "higher",
        "slider_share_base": "higher",
    },
    labels={
        "slider_cosine": ("Direction of the teacher's slider on the student (cosine)", ""),
        "slider_share": ("Way that the teacher's slider moves the student's samples", "%"),
        "slider_cosine_back": ("Direction of the student's slider on the teacher (cosine)", ""),
        "slider_share_back": ("Way that the student's slider moves the teacher's samples", "%"),
        "slider_share_base": ("Way that the teacher's slider moves the teacher's samples", "%"),
    },
)
def control_transfer(
    evaluation: Evaluation,
    *,
    rank: int = 4,
    steps: int = 300,
    batch_size: int = 256,
    lr: float = 5e-3,
    length: float = 1.0,
    samples: int = 1000,
    sampler_steps: int = 18,
    sigma_min: float = 0.02,
    sigma_max: float = 20.0,
) -> Scores:
    """Train a slider on each of two networks, and put each on the other (arXiv 2503.10637, control transfer).

    A slider is a low-rank adapter that moves all samples in one direction: the teacher's learns to denoise samples that
    were moved, the student's to move what it makes of the same noise. Each is then put on the other network without any
    training, and the mean of its samples is compared with and without it.

    Args:
        evaluation: what is judged: a ``few_step`` student whose network is built as the teacher's.
        rank: of the adapters.
        steps: that each slider learns for.
        batch_size: samples in a step.
        lr: of Adam, falling as a cosine.
        length: of the move, of every coordinate; 1 is the samples' own standard deviation.
        samples: that effects are measured on.
        sampler_steps: of Heun's method, for the teacher.
        sigma_min: lowest level of the sampler.
        sigma_max: its highest level.

    Raises:
        UserError: there is no teacher, the student takes no few steps, or the networks are not built alike.
    """
    student: Any = evaluation.model
    if not isinstance(student, FewStep):
        return Scores({}, {})
    if evaluation.teacher is None:
        raise UserError("control_transfer compares a student with its teacher, and there is none")
    base: Any = evaluation.teacher.module
    start = starts(student, tuple(student.shape), samples, (evaluation.seed, "control")).to(evaluation.device)

    def sampled(network: nn.Module, z: Tensor) -> Tensor:
        levels = karras_grid(sampler_steps, sigma_min, sigma_max)
        return heun(network, z * sigma_max, levels).samples

    def by_base(network: nn.Module) -> Tensor:
        return sampled(network, start if student.draws == 1 else start[:, 0])

    def by_student(network: nn.Module) -> Tensor:
        other = copy.copy(student)
        other._modules = {**student._modules, "net": network}
        made: Tensor = other(start)
        return made

    with evaluating(student), torch.no_grad():
        ids = torch.arange(4 * samples, device=evaluation.device)
        z = noise.normal(ids, tuple(student.shape), (evaluation.seed, "slider points"))
        points = sampled(base, z)
        shift = torch.full_like(points[0], length * float(points.std()) / math.sqrt(points[0].numel()))
        train = partial(train_slider, rank=rank, steps=steps, batch_size=batch_size, lr=lr)
        forth = train(base, denoising_loss(points, shift, float(base.sigma_data), evaluation.seed))
        back = train(student.net, moving_loss(student.net, student.sigma, shift, evaluation.seed))
        plain = by_base(base)
        own = effect(plain, by_base(forth), shift)
        there = effect(by_student(student.net), by_student(forth.onto(student.net).eval()), shift)
        here = effect(plain, by_base(back.onto(base).eval()), shift)
    return Scores(
        {
            "slider_cosine": there.cosine,
            "slider_share": there.share,
            "slider_cosine_back": here.cosine,
            "slider_share_back": here.share,
            "slider_share_base": own.share,
        },
        {},
    )
