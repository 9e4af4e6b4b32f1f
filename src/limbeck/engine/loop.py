"""The loop that every gradient-trained method runs in.

It asks a method for its updates one at a time, divides the named terms by their counts over the whole global batch,
steps the learners and writes down what happened. It knows no method, no family and no data set.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.engine import checkpoint, rng
from limbeck.engine.best import Best
from limbeck.engine.counting import declared, divisors
from limbeck.engine.devices import to_device, wrapped
from limbeck.engine.health import look
from limbeck.engine.journal import MEASUREMENTS, Journal, NotFiniteError, note, number
from limbeck.engine.learner import Learner, LearnerSettings
from limbeck.engine.method import Batch, Clock, Method, Update
from limbeck.engine.progress import JsonLines, Logger, Progress, say
from limbeck.engine.schedules import Schedule
from limbeck.engine.stopping import Interrupted, StopRequest
from limbeck.engine.validation import Validator
from limbeck.registry import build


class Batches(Protocol):
    """A stream of global batches by step; see :mod:`limbeck.data.stream`."""

    steps_per_epoch: int

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """For each step the micro-batches of this process."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """How long and how a method is trained; everything here comes from the recipe's ``train`` block.

    Attributes:
        steps: global steps to train.
        learners, default: settings by role, and those of a role that is not named.
        schedules: scalars of the method by attribute path (``alpha``, ``terms.0.weight``).
        trains: the learners that step in this phase; None for all.
        log_every, validate_every: in steps.
        checkpoint_seconds: time between checkpoints.
    """

    steps: int
    learners: Mapping[str, LearnerSettings] = field(default_factory=dict)
    default: LearnerSettings = field(default_factory=LearnerSettings)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    trains: tuple[str, ...] | None = None
    log_every: int = 20
    validate_every: int | None = None
    checkpoint_seconds: float = 60.0
    compile: bool = False
    phase: int = 0
    seed: int = 0
    label: str = "train"
    quiet: bool = False


@dataclass
class Outcome:
    """What a finished training gives: weights on the CPU, and its numbers.

    Attributes:
        student: the deliverable weights by name: ``last``, ``best`` and each average (``ema_0.999``).
        learners: the final weights of every role.
    """

    student: dict[str, dict[str, Tensor]]
    learners: dict[str, dict[str, Tensor]]
    steps: int
    seconds: float
    warnings: list[str]
    last: dict[str, float]


class Loop:
    """Trains one method; everything it writes is below ``folder``, and a second call goes on where the first ended."""

    def __init__(
        self,
        method: Method,
        stream: Batches,
        settings: LoopSettings,
        folder: Path,
        fabric: Fabric,
        *,
        validator: Validator | None = None,
        best: Best | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self.method, self.stream, self.settings, self.folder, self.fabric = method, stream, settings, folder, fabric
        self.validator, self.best, self.loggers = validator, best, list(loggers)
        again = type(method).before_step is not Method.before_step
        self.learners = {
            role: Learner(role, module, settings.learners.get(role, settings.default), keeps_first=again)
            for role, module in method.learners.items()
        }
        self.journal = Journal(method.alarms())
        self.step = 0
        self.spent = 0.0
        self.last: dict[str, float] = {}
        self.asked = StopRequest()
        self._per_epoch = stream.steps_per_epoch

    def fit(self) -> Outcome:
        """Train to the end, from the latest intact checkpoint if there is one.

        Raises:
            Interrupted: the process was asked to stop.
            NotFiniteError: a term became NaN or infinite.
        """
        self._prepare()
        self._resume()
        quiet = self.settings.quiet or self.fabric.global_rank > 0
        progress = Progress(self.settings.label, self.settings.steps, start=self.step, quiet=quiet)
        try:
            with self.asked:
                self._train(progress)
            self._save()
        except NotFiniteError as error:
            kept = checkpoint.checkpoints(self.folder / "checkpoints")
            says = f"the last good checkpoint is {kept[0]}" if kept else "there is no checkpoint yet"
            raise NotFiniteError(f"{error}; {says}") from None
        finally:
            for logger in self.loggers:
                logger.close()
        progress.close(note(self.last))
        return self._outcome()

    def clock(self) -> Clock:
        """Where the run is now."""
        epoch = self.step // self._per_epoch if self._per_epoch else 0
        s = self.settings
        return Clock(self.step, s.steps, epoch, s.phase, s.seed, self._per_epoch)

    # -- stepping ------------------------------------------------------------------------------------------------------

    def _train(self, progress: Progress) -> None:
        began, saved = time.monotonic() - self.spent, time.monotonic()
        every = self.settings.validate_every
        for micro in self.stream.batches(self.step, self.settings.steps):
            clock = self.clock()
            self._set_schedules(clock)
            for role in self.method.before_step(clock):
                self.learners[role].restart()
            self._one_step([to_device(b, self.fabric.device) for b in micro], clock)
            self.method.after_step(clock)
            self.step += 1
            self.spent = time.monotonic() - began
            ends = self.step == self.settings.steps
            if ends or self.step % self.settings.log_every == 0:
                self._flush()
                progress.update(self.step, note(self.last))
            if every and (ends or self.step % every == 0) and self._validate():
                say(f"{self.settings.label}: no better for {self.best.stale if self.best else 0} validations, stopping")
                return
            if self._agreed(self.asked.code is not None):
                self._save()
                raise Interrupted(self.step, self.asked.code or 130)
            if self._agreed(time.monotonic() - saved > self.settings.checkpoint_seconds):
                self._save()
                saved = time.monotonic()

    def _one_step(self, micro: list[Batch], clock: Clock) -> None:
        """All updates of one global step: the k-th update of every micro-batch, the optimizer, then the next."""
        totals = declared(self.method, micro, self.fabric)
        generators = [iter(self.method.updates(batch, clock)) for batch in micro]
        learners: list[Learner] | None = []
        while learners is not None:
            learners = self._next_update(generators, totals, clock)
            if learners:
                self._step(learners, clock)
                # Here and not before the backward: between forward and backward a sharded module hides its parameters.
                for learner in self.learners.values():
                    learner.zero_grad()
        if self._on_turn(clock):
            self.journal.look(self.step, look(self.method, micro, clock, self.fabric))

    def _next_update(
        self, generators: list[Iterator[Update]], totals: Mapping[str, Tensor] | None, clock: Clock
    ) -> list[Learner] | None:
        """Gradients of the next update over all micro-batches; the learners to step, None when there is no update."""
        learners: list[Learner] | None = None
        for i, generator in enumerate(generators):
            # Several processes exchange gradients with the last micro-batch only, whose forward must know it too.
            with self._local() if i < len(generators) - 1 else nullcontext():
                update = next(generator, None)
                if update is None:
                    continue
                if learners is None:
                    learners = self._due(update, clock)
                if learners:
                    self._backward(update, totals, clock, len(generators))
        return learners

    def _due(self, update: Update, clock: Clock) -> list[Learner]:
        learners = [self.learners[role] for role in update.roles]
        trains = self.settings.trains is None or all(r in self.settings.trains for r in update.roles)
        return learners if trains and all(learner.due(clock) for learner in learners) else []

    @contextmanager
    def _local(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.fabric.world_size > 1:
                for learner in self.learners.values():
                    if learner.optimizer is not None:
                        stack.enter_context(self.fabric.no_backward_sync(learner.module))  # type: ignore[arg-type]
            yield

    def _backward(self, update: Update, totals: Mapping[str, Tensor] | None, clock: Clock, pieces: int) -> None:
        terms = {name: term for name, term in update.evaluate().items() if term.weight != 0}
        counts = divisors(self.method, terms, totals, self.fabric)
        # Strategies average gradients over processes; the definition is the sum over all samples by the global count.
        weighted = {n: t.sum * (t.weight * self.fabric.world_size / counts[n]) for n, t in terms.items()}
        role = "+".join(update.roles)
        if self._measures(clock):
            parameters = [p for r in update.roles for p in self.learners[r].parameters]
            self.journal.measure(self.step, role, weighted, lambda value: self._gradients(value, parameters))
        # The journal takes means, and a micro-batch has only its part of the sum.
        reached = {n: number(v) * pieces for n, v in weighted.items()}
        self.journal.add(self.step, role, {f"term/{n}": v / terms[n].weight for n, v in reached.items()})
        self.journal.add(self.step, role, {f"weighted/{n}": v for n, v in reached.items()})
        active = [v for v in weighted.values() if v.requires_grad]
        if active:
            self.fabric.backward(sum(active[1:], start=active[0]))

    def _gradients(self, value: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Gradients of one term, leaving those that are accumulating as they are."""
        if self.fabric.world_size > 1:
            found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            return [g for g in found if g is not None]
        kept = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        self.fabric.backward(value, inputs=parameters, retain_graph=True)
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p, grad in zip(parameters, kept, strict=True):
            p.grad = grad
        return gradients

    def _step(self, learners: list[Learner], clock: Clock) -> None:
        for learner in learners:
            values: dict[str, Tensor | float] = {f"lr/{learner.role}": learner.set_rate(clock, self.method.pace(clock))}
            if learner.optimizer is None:
                continue
            if learner.settings.clip is not None:
                norm = self.fabric.clip_gradients(
                    learner.module, learner.optimizer, max_norm=learner.settings.clip, error_if_nonfinite=False
                )
                if norm is not None:
                    values[f"grad_norm/{learner.role}"] = checkpoint.whole(norm.detach())
            learner.optimizer.step()
            learner.after_step()
            self.journal.add(self.step, "", values)

    # -- writing down --------------------------------------------------------------------------------------------------

    @property
    def _sharded(self) -> bool:
        return isinstance(self.fabric.strategy, ModelParallelStrategy)

    def _on_turn(self, clock: Clock) -> bool:
        """Whether it is a step at which something is measured."""
        return clock.step % max(self.settings.log_every, self.settings.steps // MEASUREMENTS, 1) == 0

    def _measures(self, clock: Clock) -> bool:
        # Several processes can look at one term's gradient alone only where it is neither sharded nor scaled.
        plain = not self._sharded and self.fabric._precision.precision == "32-true"
        return (self.fabric.world_size == 1 or plain) and self._on_turn(clock)

    def _flush(self) -> None:
        self.last.update(values := self.journal.flush())
        if values:
            self._log({"split": "train", "seconds": round(self.spent, 3), **values})

    def _log(self, row: dict[str, Any]) -> None:
        epoch = round(self.step / self._per_epoch, 4) if self._per_epoch else None
        for logger in self.loggers:
            logger.log({"step": self.step, **({"epoch": epoch} if epoch is not None else {}), **row})

    def _validate(self) -> bool:
        """Score the student and its averages; True when it is time to stop early."""
        if self.validator is None:
            return False
        self._flush()
        student = self.learners["student"]
        scores = self.validator(student.module, self.fabric)
        stop = self.best.take(scores, student.plain, self.step) if self.best else False
        for name in student.averages:
            with student.averaged(name):
                scores |= {f"{k}/{name}": v for k, v in self.validator(student.module, self.fabric).items()}
        self._log({"split": "val", **scores})
        self.last.update({f"val/{k}": v for k, v in scores.items()})
        return stop

    # -- setting up ----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        for role, learner in self.learners.items():
            learner.plain.train()
            module: Any = torch.compile(learner.plain) if self.settings.compile else learner.plain
            if learner.parameters:
                module = wrapped(module, self.fabric)
                optimizer = build("optimizer", learner.settings.optimizer, learner.parameters)
                learner.prepare(module, cast(Optimizer, self.fabric.setup_optimizers(optimizer)))
            else:
                learner.prepare(module.to(self.fabric.device), None)
            self.method.learners[role] = module
        for teacher in self.method.teachers.values():
            if self._sharded and teacher.parameters() > 0:
                teacher.module = self.fabric.setup_module(teacher.module)
            else:
                teacher.module.to(self.fabric.device)
            teacher.module.train(teacher.mode == "batch_stats")
            teacher.context = self.fabric.autocast
        for module in self.method.frozen.values():
            module.requires_grad_(False).eval().to(self.fabric.device)

    def _set_schedules(self, clock: Clock) -> None:
        for path, schedule in self.settings.schedules.items():
            target: Any = self.method
            *way, name = path.split(".")
            for piece in way:
                target = target[piece] if isinstance(target, dict) else getattr(target, piece)
            setattr(target, name, schedule.value(clock.progress, clock.step))

    def _agreed(self, wish: bool) -> bool:
        """Whether any process wishes it; several processes only ask each other when they log."""
        if self.fabric.world_size == 1:
            return wish
        if self.step % self.settings.log_every:
            return False
        votes = self.fabric.all_reduce(torch.tensor(float(wish), device=self.fabric.device), reduce_op="sum")
        return votes.item() > 0  # type: ignore[union-attr]

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that decides how the run goes on."""
        return {
            "step": self.step,
            "spent": self.spent,
            "learners": {role: learner.state() for role, learner in self.learners.items()},
            "method": self.method.state_dict(),
            "best": self.best.state() if self.best else None,
            "journal": self.journal.state(),  # raises before spoilt weights are written
            "rng": rng.state(self.fabric.device),
        }

    def _save(self) -> None:
        checkpoint.save(self.folder / "checkpoints", self.step, self.state(), writes=self.fabric.global_rank == 0)
        self.fabric.barrier()

    def _resume(self) -> None:
        found = checkpoint.latest(self.folder / "checkpoints", warn=say)
        if found is not None:
            self.step, saved = found
            self.spent = saved["spent"]
            for role, state in saved["learners"].items():
                self.learners[role].load(state)
            self.method.load_state_dict(saved["method"])
            self.journal.load(saved["journal"])
            if self.best:
                self.best.load(saved["best"])
            rng.restore(saved["rng"], self.fabric.device)
            if not self.settings.quiet and self.fabric.global_rank == 0:
                say(f"{self.settings.label}: going on from step {self.step}")
        if self.fabric.global_rank == 0:
            self.loggers.append(JsonLines(self.folder / "metrics.jsonl", self.step if found else None))

    def _outcome(self) -> Outcome:
        student = self.learners["student"]
        weights = {"last": _whole(student.plain.state_dict())}
        weights |= {name: _whole(average.values) for name, average in student.averages.items()}
        if self.best and self.best.weights:
            weights["best"] = self.best.weights
        learners = {role: _whole(learner.plain.state_dict()) for role, learner in self.learners.items()}
        return Outcome(weights, learners, self.step, self.spent, self.journal.warnings(), self.last)


def _whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: checkpoint.whole(v).detach().cpu().clone() for k, v in state.items()}
