"""limbeck's loop beside torchdistill's distillation step: the same networks, tensors, order and optimizer.

torchdistill is not a dependency. To compare, put it into a folder of its own and name that in ``PYTHONPATH``::

    pip install --no-deps --target DIR torchdistill==1.1.5
    PYTHONPATH=DIR python -m benchmarks torchdistill_kd

It imports torchvision; where that is missing, a stand-in that is never called is made in a temporary folder.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Report, Row, race, steps_of
from benchmarks.tasks import (
    CE_WEIGHT,
    HUNDRED_MS,
    LENGTH,
    LOGS,
    LR,
    TEMPERATURE,
    TEN_MS,
    TINY,
    PlainKD,
    Task,
    check_same,
    limbeck_loop,
    watched,
)

ABOUT = "a KD step in limbeck's loop against torchdistill 1.1.5"
MISSING = "torchdistill is not installed: pip install --no-deps --target DIR torchdistill==1.1.5, then PYTHONPATH=DIR"
GOAL = 1.0
LOG_EVERY = 20
STAND_IN = {
    "__init__.py": "from . import datasets, models, transforms",
    "datasets.py": "",
    "transforms.py": "",
    "models/__init__.py": "from . import densenet, detection, resnet, segmentation",
    "models/detection.py": "",
    "models/segmentation.py": "",
    "models/densenet.py": "_DenseBlock = _Transition = None",
    "models/resnet.py": "BasicBlock = conv1x1 = None",
}


def run(*, quick: bool = False) -> Report:
    """torchdistill's hooks and loss alone, its distillation box, and limbeck, in turns."""
    report = Report("torchdistill_kd", ABOUT)
    if find_spec("torchdistill") is None:
        report.skipped = MISSING
        return report
    sizes = [(TINY, 2, 3)] if quick else [(TEN_MS, 20, LENGTH), (HUNDRED_MS, 6, LENGTH)]
    with torchvision():
        for task, rounds, length in sizes:
            report.rows += _compare(task, rounds, length)
    report.notes.append(
        "ratios are of processor time, one thread; 'the same again' is a second box: by how much its ratio is off 1, a "
        "ratio says nothing. "
        "'box and meters' is torchdistill's DistillationBox with the logging of its example scripts, against the whole "
        "of limbeck's loop; 'hooks and loss' is a hand-written loop around its parts, which logs nothing"
    )
    return report


def _compare(task: Task, rounds: int, length: int) -> list[Row]:
    steps = steps_of(rounds, length)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        check_same(task, folder / "check")
        check_same_losses(task)
        with watched() as meter:
            laps = race(
                {
                    "hooks and loss": lambda tick: Hooks(task).train(steps, tick),
                    "limbeck": lambda tick: _fit(task, folder / "run", steps, tick),
                    "box and meters": lambda tick: Box(task).train(steps, tick),
                    "the same again": lambda tick: Box(task).train(steps, tick),
                },
                rounds,
                length,
            )
    cpu = {name: [lap.cpu for lap in times] for name, times in laps.items()}
    wall = {name: [lap.wall for lap in times] for name, times in laps.items()}
    own = meter.cpu("shares", *LOGS) / steps
    step, size = [seconds - own for seconds in cpu["limbeck"]], task.name
    return [
        *(Row.of(f"{size}: {name}, per step", [1e3 * s for s in times], "ms") for name, times in cpu.items()),
        Row.ratio(f"{size}: limbeck / box and meters", cpu["limbeck"], cpu["box and meters"], GOAL),
        Row.ratio(f"{size}: limbeck without shares and logs / hooks and loss", step, cpu["hooks and loss"], GOAL),
        Row.ratio(f"{size}: limbeck / hooks and loss", cpu["limbeck"], cpu["hooks and loss"]),
        Row.ratio(f"{size}: box and meters / the same again", cpu["box and meters"], cpu["the same again"]),
        Row.ratio(f"{size}: limbeck / box and meters, wall clock", wall["limbeck"], wall["box and meters"]),
    ]


def _fit(task: Task, folder: Path, steps: int, tick: Callable[[], None]) -> None:
    limbeck_loop(task, folder, steps, tick, tensorboard=task is not TINY).fit()


class Hooks(PlainKD):
    """A hand-written loop around torchdistill's forward hooks and its KD loss."""

    def __init__(self, task: Task) -> None:
        from torchdistill.core.forward_hook import ForwardHookManager
        from torchdistill.losses.mid_level import KDLoss

        super().__init__(task)
        self.hooks = [ForwardHookManager("cpu"), ForwardHookManager("cpu")]
        for manager, network in zip(self.hooks, (self.student, self.teacher), strict=True):
            manager.add_hook(network, "head", requires_input=False, requires_output=True)
        self.criterion = KDLoss("head", "output", "head", "output", temperature=TEMPERATURE, alpha=CE_WEIGHT)

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """torchdistill's loss of a batch."""
        with torch.no_grad():
            self.teacher(images)
        self.student(images)
        return self.criterion(self.hooks[0].pop_io_dict(), self.hooks[1].pop_io_dict(), labels)

    def train(self, steps: int, tick: Callable[[], None]) -> None:
        """Make so many steps and tick after each."""
        for images, labels in self.batches(steps):
            loss = self.loss(images, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            tick()


class Box(PlainKD):
    """torchdistill's ``DistillationBox`` as its example scripts drive it: with meters, and a check of every loss."""

    def __init__(self, task: Task) -> None:
        import torchdistill.core.interfaces.forward_proc  # noqa: F401 (registers)
        from torchdistill.core.distillation import DistillationBox
        from torchdistill.misc.log import MetricLogger

        super().__init__(task)
        self.box = DistillationBox(self.teacher, self.student, {}, _config(), torch.device("cpu"), None, False, 1.0)
        self.box.teacher_model.eval()
        self.box.student_model.train()
        self.meters = MetricLogger()

    def train(self, steps: int, tick: Callable[[], None]) -> None:
        """Make so many steps and tick after each; the meters are read as often as limbeck logs."""
        for step, (images, labels) in enumerate(self.batches(steps)):
            loss = self.box.forward_process(images, labels, None)
            self.box.post_forward_process(loss)
            self.meters.update(loss=loss.item(), lr=self.box.optimizer.param_groups[0]["lr"])
            if torch.isnan(loss) or torch.isinf(loss):
                raise ArithmeticError(f"the loss became {loss}")
            if step % LOG_EVERY == 0:
                str(self.meters)
            tick()


def _config() -> dict[str, Any]:
    logits = {"module_path": ".", "module_io": "output"}
    places = {f"{who}_{k}": v for who in ("student", "teacher") for k, v in logits.items()}
    kd = {"key": "KDLoss", "kwargs": {**places, "temperature": TEMPERATURE, "alpha": CE_WEIGHT}}
    return {
        "num_epochs": 1,
        "teacher": {"sequential": [], "requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"sequential": [], "forward_proc": "forward_batch_only"},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": LR, "fused": True}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
    }


def check_same_losses(task: Task) -> None:
    """Make sure that both of torchdistill's ways do the training that the plain loop does."""
    trained = []
    for make in (PlainKD, Hooks, Box):
        loop = make(task)
        loop.train(5, lambda: None)
        trained.append(loop.student.state_dict())
    for other in trained[1:]:
        for name, value in trained[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2 * LR)


@contextmanager
def torchvision() -> Iterator[None]:
    """Within the context ``import torchvision`` finds something; torchdistill's own log is held back."""
    with tempfile.TemporaryDirectory() as place:
        if find_spec("torchvision") is None:
            for name, text in STAND_IN.items():
                file = Path(place) / "torchvision" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text + "\n", encoding="utf8")
            sys.path.insert(0, place)
        logging.getLogger("torchdistill").setLevel(logging.WARNING)
        try:
            yield
        finally:
            if place in sys.path:
                sys.path.remove(place)
                for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                    del sys.modules[name]
