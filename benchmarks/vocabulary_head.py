"""The vocabulary head with a divergence, forward and backward: plain, in chunks, and as the peers do it.

Every contender gets the same tensors and gives the gradients of the student's hidden states and head; before anything
is measured all must agree. Peers that are not installed are left out::

    pip install trl==1.16.0 liger-kernel==0.8.5

Memory is the high-water mark of a process of its own (a fork), above what it had with its inputs and libraries loaded.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.measure import Lap, Report, Row, forked, high_water, in_a_bare_process, now

ABOUT = "head and divergence, forward and backward, in ratios to the plain formula (float32, one thread)"
TIME_GOAL, MEMORY_GOAL, PEER_GOAL = 1.1, 1 / 8, 1.0
DIRECTIONS = ("forward", "jsd")
CHUNK = 64
"""Of Liger, whose own default of 1024 holds the whole batch at once here."""


@dataclass(frozen=True)
class Size:
    """How much is computed: tokens, vocabulary, rounds, and tokens where memory is measured."""

    vocabulary: int
    tokens: int
    rounds: int
    memory_tokens: int
    student: int = 256
    teacher: int = 512


SIZES = (Size(32_000, 512, 4, 1024), Size(128_000, 256, 2, 1024))
TINY = (Size(600, 48, 1, 64, 16, 24),)
PEERS = {
    "TRL": ("trl.experimental.gkd", "trl.trainer.distillation_trainer"),
    "Liger": ("liger_kernel.chunked_loss",),
}
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Contender = Callable[[Inputs, str], Tensor]
"""From the inputs and a direction (forward or jsd) to the mean divergence, whose backward is measured too."""


def run(*, quick: bool = False) -> Report:
    """Times in turns in this process, memory in one process for each contender."""
    report = Report("vocabulary_head", ABOUT)
    contenders = available(quick)
    missing = sorted({"trl", "liger_kernel"} - {package for package in ("trl", "liger_kernel") if find_spec(package)})
    for direction in DIRECTIONS:
        _check_same(contenders, direction)
        for size in TINY if quick else SIZES:
            report.rows += _times(contenders, size, direction)
    report.rows += _memory([name for name in contenders if name != "TRL"], TINY if quick else SIZES)
    if missing:
        report.notes.append(f"not installed, so not compared: {', '.join(missing)}")
    report.notes.append(
        "time: of the processor, contenders in turns, ratios by round; memory: the peak of a process of its own above "
        "its inputs, the weight's gradient included"
    )
    return report


# -- contenders --------------------------------------------------------------------------------------------------------


def available(own: bool = False) -> dict[str, Contender]:
    """All contenders whose packages are here, or only the library's own."""
    found: dict[str, Contender] = {"plain": plain, "limbeck": limbeck, "limbeck, per token": per_token}
    if own:
        return found
    if find_spec("trl"):
        found |= {"TRL": trl, "TRL chunked": trl_chunked}
    if find_spec("liger_kernel"):
        found["Liger chunked"] = liger
    return found


def plain(inputs: Inputs, direction: str) -> Tensor:
    """The logits of all tokens, then the divergence of each."""
    from limbeck.language.losses import token_divergence

    student, teacher = _logits(inputs)
    return token_divergence(student, teacher, direction=direction).mean()  # type: ignore[arg-type]


def limbeck(inputs: Inputs, direction: str) -> Tensor:
    """As methods use it: the weights of the tokens are known."""
    from limbeck.language.fused import Head, fused_sums

    found = fused_sums(Head(*inputs[:2]), Head(*inputs[2:]), direction=direction)  # type: ignore[arg-type]
    assert found.divergence is not None
    return found.divergence / len(inputs[0])


def per_token(inputs: Inputs, direction: str) -> Tensor:
    """A value for each token; the logits are computed again in the backward pass."""
    from limbeck.language.fused import Head, fused_divergence

    return fused_divergence(Head(*inputs[:2]), Head(*inputs[2:]), direction=direction)[0].mean()  # type: ignore[arg-type]


def trl(inputs: Inputs, direction: str) -> Tensor:
    """TRL's loss of logits."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    student, teacher = _logits(inputs)
    return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=_beta(direction), reduction="sum") / len(
        inputs[0]
    )


def trl_chunked(inputs: Inputs, direction: str) -> Tensor:
    """TRL's loss of hidden states."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss as loss

    hs, ws, ht, wt = inputs
    mask = torch.ones(1, len(hs), dtype=torch.long)
    return loss(hs[None], ht[None], ws, wt, mask, beta=_beta(direction))[0]


def liger(inputs: Inputs, direction: str) -> Tensor:
    """Liger's chunked loss in PyTorch, not compiled: its kernels in Triton need a GPU."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    hs, ws, ht, wt = inputs
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=_beta(direction), compiled=False, chunk_size=CHUNK
    )
    return loss(hs, ws, ht, wt, torch.zeros(len(hs), dtype=torch.long))


def _beta(direction: str) -> float:
    return 0.0 if direction == "forward" else 0.5


def _logits(inputs: Inputs) -> tuple[Tensor, Tensor]:
    hs, ws, ht, wt = inputs
    with torch.no_grad():
        teacher = ht @ wt.t()
    return hs @ ws.t(), teacher


def _inputs(size: Size, tokens: int) -> Inputs:
    torch.manual_seed(0)
    shapes = [
        (tokens, size.student),
        (size.vocabulary, size.student),
        (tokens, size.teacher),
        (size.vocabulary, size.teacher),
    ]
    made = [torch.randn(shape).mul_(0.08 if i % 2 else 1.0) for i, shape in enumerate(shapes)]
    return made[0].requires_grad_(), made[1].requires_grad_(), made[2], made[3]


def _step(contender: Contender, inputs: Inputs, direction: str) -> None:
    contender(inputs, direction).backward()


def _check_same(contenders: dict[str, Contender], direction: str) -> None:
    """Refuse to compare what does not compute the same."""
    inputs = _inputs(TINY[0], TINY[0].tokens)
    wanted: list[Tensor] = []
    for name, contender in contenders.items():
        inputs[0].grad = inputs[1].grad = None
        value = contender(inputs, direction)
        value.backward()
        assert inputs[0].grad is not None and inputs[1].grad is not None
        found = [value.detach(), inputs[0].grad, inputs[1].grad]
        wanted = wanted or found
        for a, b in zip(found, wanted, strict=True):
            if not torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()) + 1e-7):
                raise RuntimeError(f"{name} does not compute the {direction} divergence of the plain formula")


# -- measuring ---------------------------------------------------------------------------------------------------------


def _times(contenders: dict[str, Contender], size: Size, direction: str) -> list[Row]:
    inputs = _inputs(size, size.tokens)
    laps: dict[str, list[Lap]] = {name: [] for name in contenders}
    for _ in range(size.rounds + 1):
        for name, contender in contenders.items():
            inputs[0].grad = inputs[1].grad = None
            began = now()
            _step(contender, inputs, direction)
            laps[name].append(now() - began)
    cpu = {name: [lap.cpu for lap in found[1:]] for name, found in laps.items()}
    at = f"{direction}, V = {size.vocabulary}, {size.tokens} tokens"
    rows = [Row.of(f"{at}: plain", cpu["plain"], "s")]
    for name in cpu.keys() - {"plain"}:
        goal = TIME_GOAL if name == "limbeck" else None
        rows.append(Row.ratio(f"{at}: {name} / plain", cpu[name], cpu["plain"], goal))
    peers = cpu.keys() & {"TRL chunked", "Liger chunked"}
    rows += [Row.ratio(f"{at}: limbeck / {name}", cpu["limbeck"], cpu[name], PEER_GOAL) for name in peers]
    return rows[:1] + sorted(rows[1:], key=lambda row: row.what)


def _memory(contenders: Sequence[str], sizes: Sequence[Size]) -> list[Row]:
    jobs = [(name, d, *astuple(size)) for d in DIRECTIONS for size in sizes for name in contenders]
    peaks = in_a_bare_process("benchmarks.vocabulary_head", jobs)
    rows, plain_peak = [], 1.0
    for (name, direction, vocabulary, *_, tokens, _s, _t), peak in zip(jobs, peaks, strict=True):
        at = f"{direction}, V = {vocabulary}, {tokens} tokens: memory"
        if name == "plain":
            plain_peak = peak
            rows.append(Row(f"{at}, plain", peak, "MiB"))
            continue
        goal = MEMORY_GOAL if name == "limbeck" else None
        rows.append(Row(f"{at}, {name} / plain", peak / plain_peak, "x", goal=goal))
    return rows


def main(jobs: str) -> None:
    """What the process that measures memory does: a fork for each job, whose peak it prints as MiB."""
    torch.set_num_threads(1)
    named = json.loads(jobs)
    for start, packages in PEERS.items():
        if any(name.startswith(start) for name, *_ in named):
            for package in packages:
                import_module(package)
    print(json.dumps([forked(partial(_peak, name, direction, Size(*size))) for name, direction, *size in named]))


def _peak(name: str, direction: str, size: Size) -> float:
    contender = available()[name]
    _step(contender, _inputs(TINY[0], TINY[0].tokens), direction)  # loads what loads late
    inputs = _inputs(size, size.memory_tokens)
    before = high_water()
    _step(contender, inputs, direction)
    return max(high_water() - before, 1 / 1024)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
