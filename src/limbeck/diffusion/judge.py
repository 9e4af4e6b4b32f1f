"""A small classifier of the data that sees what generated pictures are of; trained once, kept by what it saw."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.data.base import Source
from limbeck.engine import noise
from limbeck.engine.checkpoint import atomic
from limbeck.paths import cache_root

STEPS, BATCH, RATE = 600, 128, 2e-3
WIDTHS = (24, 48, 64)
VERSION = 1
"""Of the network and its training: a judge of another version is another judge."""


class Judge(nn.Module):
    """Convolutions to features [B, 64], and the classes' logits from them."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, *WIDTHS)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(8, w) for w in WIDTHS)
        self.head = nn.Linear(WIDTHS[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees, [B, 64]."""
        for k, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = F.relu(norm(layer(x)))
            if k < len(WIDTHS) - 1 and min(x.shape[-2:]) > 2:
                x = F.max_pool2d(x, 2)
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes]."""
        return self.head(self.features(x))


def judge_of(train: Source, classes: int) -> Judge:
    """The judge of a data set, from the cache folder or trained now (some seconds to a minute on one core)."""
    facts = repr((VERSION, STEPS, BATCH, RATE, WIDTHS, classes, train.fingerprint))
    file = cache_root() / "judges" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Judge(train.spec.shape[0], classes)
    try:
        judge.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError):
        _train(judge, train)
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic(file, lambda path: save_file(judge.state_dict(), path))
    return judge.eval().requires_grad_(False)


def _train(judge: Judge, train: Source) -> None:
    optimizer = torch.optim.AdamW(judge.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with torch.enable_grad():
        for step in range(STEPS):
            chosen = noise.uniform(torch.arange(BATCH), (1,), ("judge", step)).squeeze(1)
            batch = train.batch((chosen * len(train)).long())
            optimizer.zero_grad()
            F.cross_entropy(judge(batch["input"]), batch["label"]).backward()
            optimizer.step()
            schedule.step()
