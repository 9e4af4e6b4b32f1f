"""G-VBSM: images recovered from several networks by the statistics of their convolutions too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.condensation.recover import DecoupledMethod, real_images
from limbeck.condensation.synthetic import relabel_by
from limbeck.engine.batch_statistics import Moments, Statistics, mixed, statistics_distance
from limbeck.engine.method import Clock, Parts, Term
from limbeck.engine.noise import uniform
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.losses import wide
from limbeck.models.forward import forward
from limbeck.registry import register


@register("method")
class GVBSM(DecoupledMethod):
    """Generalized Various Backbone and Statistical Matching (Shao et al., CVPR 2024, arXiv 2311.17950).

    Each step takes one teacher at random. Beside what batch normalisation remembers, mean and variance of every
    convolution's output, per channel and per patch of cells, shall be those of the real images (the mean over their
    batches). Statistics of the set are a moving average over the steps that took the teacher; the gradient is that of
    the newest. Densification keeps the images of a class apart: with l the eigenvalues of their Gram matrix,
    ``KL(softmax(l / tau) || softmax(l))`` with no gradient through the first. Labels are the mean of all teachers'
    normalised logits.

    Args:
        backbones: how many of the teachers, the first ones, steps are taken from; 0 for all. All of them label.
        conv_weight: of the convolutions' statistics.
        density_weight: of the densification.
        tau: its temperature; above 1 the eigenvalues are drawn together.
        momentum: of the moving averages; 0 takes each step's own statistics.
        drop: share of convolutions that a step leaves out.
        patch: cells on each side of a patch; maps are enlarged to whole patches.
        batch_real: real images in a batch.
    """

    def __init__(
        self,
        *,
        backbones: int = 0,
        conv_weight: float = 0.01,
        density_weight: float = 1e-5,
        tau: float = 4.0,
        momentum: float = 0.8,
        drop: float = 0.4,
        patch: int = 4,
        batch_real: int = 64,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if backbones < 0 or tau <= 0 or not 0 <= momentum < 1 or not 0 <= drop < 1 or min(patch, batch_real) < 1:
            raise UserError(
                "g_vbsm: backbones is 0 or more, tau above 0, momentum and drop from 0 "
                "to below 1, patch and batch_real at least 1"
            )
        self.backbones = backbones
        self.conv_weight = conv_weight
        self.density_weight = density_weight
        self.tau = tau
        self.momentum = momentum
        self.drop = drop
        self.patch = patch
        self.batch_real = batch_real
        self._moving: dict[str, Tensor] = {}

    def setup(self, parts: Parts) -> None:
        """Take the statistics of the real images.

        Raises:
            UserError: as :meth:`DecoupledMethod.setup`, or a class has no training image.
        """
        super().setup(parts)
        real = real_images(parts)
        real.require(1)
        images = real.images.to(next(parts.student.parameters()).device)
        self.real = {name: real_moments(t, images, self.batch_real, self.patch) for name, t in self.teachers.items()}

    def drawn(self, clock: Clock) -> str:
        """The role of the teacher that a step takes."""
        draw = uniform(torch.zeros(1, dtype=torch.int64), (1,), (clock.seed, clock.step, "backbone"))
        pool = list(self.teachers)[: self.backbones or None]
        return pool[int(float(draw) * len(pool))]

    def terms(self, clock: Clock) -> dict[str, Term]:
        """The terms ``class``, ``bn``, ``conv`` and ``density``, added up over slots or classes."""
        images, labels = self.slots()
        seen, role = self.seen(images, clock), self.drawn(clock)
        teacher, bn, conv, ce = self.teachers[role], [], [], []
        with Statistics(teacher.module) as statistics, convolved(teacher.module) as maps, teacher.context():
            logits = forward(teacher.module, {"input": seen.flatten(0, 1)}).logits.float()
            losses = F.cross_entropy(logits, labels.repeat(len(seen)), reduction="none")
            kept = self.kept(len(maps), clock)
            rows = [r for slot in self.batches(*seen.shape[:2]) for r in slot]
            for number, part in enumerate(rows):
                ce.append(losses[part].mean())
                layers = statistics.distances(self.moved(f"{role}.{number}.bn", statistics.moments(part)))
                bn.append(self.first_layer * layers[0] + layers[1:].sum())
                found = [m for x in maps for m in map_moments(x[part], self.patch)]
                moved = self.moved(f"{role}.{number}.conv", found)
                gaps = [statistics_distance(*a, *b) for a, b in zip(moved, self.real[role], strict=True)]
                conv.append((torch.stack(gaps).view(-1, 2).sum(1) * kept.to(seen)).sum())
        return {
            "class": Term(torch.stack(ce).sum(), 1, unit="sets"),
            "bn": Term(torch.stack(bn).sum(), 1, self.bn_weight, unit="sets"),
            "conv": Term(torch.stack(conv).sum(), 1, self.conv_weight, unit="sets"),
            "density": Term(density(seen, self.tau), 1, self.density_weight, unit="sets"),
        }

    def kept(self, layers: int, clock: Clock) -> Tensor:
        """Which convolutions a step looks at, bool [layers]."""
        return uniform(torch.arange(layers), (1,), (clock.seed, clock.step, "drop"))[:, 0] >= self.drop

    def moved(self, name: str, new: Moments) -> Moments:
        """The moving average of some moments, with the gradient of the new ones."""
        flat = torch.cat([t for pair in new for t in pair])
        old = self._moving.get(name)
        now = flat.detach() if old is None else mixed([(old, old)], [(flat.detach(),) * 2], self.momentum)[0][0]
        self._moving[name] = now
        pieces = iter((now + flat - flat.detach()).split([len(t) for pair in new for t in pair]))
        return list(zip(pieces, pieces, strict=True))

    def relabel(self) -> None:
        """Store the mean of the normalised logits."""
        relabel_by(self.images, self.teachers, normalised=True)

    def state_dict(self) -> dict[str, Any]:
        """The moving averages."""
        return dict(self._moving)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._moving = dict(state)


@contextmanager
def convolved(module: nn.Module) -> Iterator[list[Tensor]]:
    """What leaves each convolution of a forward, [B, C, H, W], while the context is open."""
    maps: list[Tensor] = []
    found = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda m, i, out: maps.append(wide(out))) for m in found]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def map_moments(x: Tensor, patch: int) -> Moments:
    """Mean and biased variance of a map [B, C, H, W] per channel, [C], and per patch of cells, [patches]."""
    high, wide_ = (-(-side // patch) * patch for side in x.shape[2:])
    whole = F.interpolate(x, (high, wide_), mode="bilinear", align_corners=False)
    cut = whole.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [B, C, u, patch, v, patch]
    patches = cut.permute(2, 4, 0, 1, 3, 5).flatten(0, 1).flatten(1)
    channels = x.transpose(0, 1).flatten(1)
    return [(rows.mean(1), rows.var(1, unbiased=False)) for rows in (channels, patches)]


@torch.no_grad()
def real_moments(teacher: Teacher, images: Tensor, batch: int, patch: int) -> Moments:
    """:func:`map_moments` of each convolution in order, the mean over batches weighted by their images."""
    total: Moments = []
    for piece in images.split(batch):
        with convolved(teacher.module) as maps, teacher.context():
            forward(teacher.module, {"input": piece})
        share = len(piece) / len(images)
        found = [(share * a, share * b) for x in maps for a, b in map_moments(x, patch)]
        total = [(a + c, b + d) for (a, b), (c, d) in zip(total, found, strict=True)] if total else found
    return total


def density(images: Tensor, tau: float) -> Tensor:
    """``KL(softmax(l / tau) || softmax(l))`` of the Gram matrix's eigenvalues of each class of [S, C, ...], summed."""
    rows = wide(images).transpose(0, 1).flatten(2)
    values = torch.linalg.eigvalsh(rows @ rows.transpose(1, 2))
    wanted = (values.detach() / tau).log_softmax(1)
    return F.kl_div(values.log_softmax(1), wanted, reduction="sum", log_target=True)
