"""The keys of a recipe and of its own maps, with types, defaults and what they mean (editors show these too)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from limbeck.expectation import Expectation, parse_expectation
from limbeck.recipe.annotations import Bound, Fields, Tree, key
from limbeck.registry import Block, Kind, MethodBlock, OptimizerBlock, ScheduleBlock

MetricBlock = Annotated[Block, Kind("metric")]
StageBlock = Annotated[Block, Kind("stage")]

Natural = Annotated[int, Bound(at_least=0)]
PositiveInt = Annotated[int, Bound(above=0)]
PositiveFloat = Annotated[float, Bound(above=0)]
Decay = Annotated[float, Bound(above=0, below=1)]
Mode = Literal["max", "min"]

DEFAULT_EPOCHS = 20.0
DEFAULT_OPTIMIZER = Block("adamw", {"lr": 2e-3})
DEFAULT_SCHEDULE = Block("cosine")
SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[kKMGT]?i?)B")


class Paper(Fields):
    """The paper that a recipe reproduces."""

    title: str = key(says="title of the paper")
    arxiv: str | None = key(None, "arXiv number in quotes, such as '1503.02531'")
    year: int | None = key(None, "year of publication")
    url: str | None = key(None, "where to find it, when it is not on arXiv")
    venue: str | None = key(None, "journal or conference")


class Best(Fields):
    """Which validated value is the best."""

    metric: str = key(says="a validated value, such as accuracy or nll")
    mode: Mode = key("max", "whether larger or smaller is better")


class EarlyStop(Best):
    """When to stop before the end."""

    patience: PositiveInt = key(3, "validations without a better value before stopping")


class LearnerTrain(Fields):
    """How one learner trains, where it differs from the run's ``train``."""

    optimizer: OptimizerBlock | None = key(None, "its optimizer; keys left out are the run's")
    schedule: ScheduleBlock | None = key(None, "its learning-rate schedule; keys left out are the run's")
    clip: PositiveFloat | None = key(None, "largest norm of its gradient")
    ema: list[Decay] | Decay | None = key(None, "decays of moving averages of its weights")
    every: PositiveInt = key(1, "it takes part in every n-th step")

    def __post_init__(self) -> None:
        if isinstance(self.ema, float):
            object.__setattr__(self, "ema", [self.ema])


class Train(Fields):
    """How a run trains. Exactly one of epochs and steps counts its length."""

    epochs: PositiveFloat | None = key(None, "passes over the data (default 20, when steps is not given)")
    steps: PositiveInt | None = key(None, "optimizer steps, instead of epochs")
    batch_size: PositiveInt = key(128, "samples per step over all devices and micro-batches")
    accumulate: PositiveInt = key(1, "micro-batches that a batch is cut into")
    optimizer: OptimizerBlock = key(DEFAULT_OPTIMIZER, "the optimizer of every learner")
    schedule: ScheduleBlock = key(DEFAULT_SCHEDULE, "the factor on the learning rate over the run")
    clip: PositiveFloat | None = key(None, "largest norm of a learner's gradient")
    ema: list[Decay] | Decay = key([], "decays of moving averages of the weights to keep")
    deliver: str = key("last", "which weights the run delivers: last, best, or ema_<decay>")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = key("32-true", "arithmetic of the forward")
    devices: PositiveInt | Literal["auto"] = key(1, "devices on each node")
    accelerator: Literal["auto", "cpu", "cuda"] = key("auto", "kind of device")
    strategy: Literal["auto", "ddp", "fsdp"] = key("auto", "how several devices share the work")
    nodes: PositiveInt = key(1, "machines")
    compile: bool = key(False, "compile models with torch.compile")
    validate_every: PositiveFloat = key(1.0, "epochs between validations")
    early_stop: EarlyStop | None = key(None, "stop when a validated value no longer improves")
    best: Best | None = key(None, "which weights are the best, for deliver: best")
    checkpoint_every: Annotated[float, Bound(at_least=0)] = key(60.0, "seconds between checkpoints")
    log_every: PositiveInt = key(20, "steps between logged values")
    workers: Natural = key(0, "processes that load data")
    learners: dict[str, LearnerTrain] = key({}, "by role, what differs for a learner (a critic, say)")
    deterministic: bool = key(True, "use deterministic algorithms where there is a choice")

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", DEFAULT_EPOCHS)
        if isinstance(self.ema, float):
            object.__setattr__(self, "ema", [self.ema])

    def faults(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what is wrong across fields."""
        if self.epochs and self.steps:
            yield "steps", "epochs and steps are both given: keep one"
        if self.accumulate > self.batch_size:
            yield "accumulate", f"a batch of {self.batch_size} cannot be cut into {self.accumulate}"
        kept = ["last", "best", *(f"ema_{d:g}" for d in self.averages)]
        if self.deliver not in kept:
            yield "deliver", f"must be one of {', '.join(kept)}, not {self.deliver!r}"

    @property
    def averages(self) -> list[float]:
        """The decays in ``ema``."""
        return self.ema if isinstance(self.ema, list) else [self.ema]


class Cache(Fields):
    """Teacher outputs stored once and read in training."""

    mode: Literal["full", "fp16", "topk", "packed", "sampled"] = key("fp16", "what is kept of each output")
    k: PositiveInt = key(50, "classes or tokens kept by modes topk and packed, beside the tail")
    bits: PositiveInt = key(5, "of a probability in mode packed, 2 to 16")
    draws: PositiveInt = key(50, "tokens drawn by mode sampled, with replacement")
    proposal: float = key(1.0, "exponent of the distribution that mode sampled draws from; 1 is the teacher's own")
    seed: Natural = key(0, "of the draws of mode sampled")
    views: PositiveInt = key(1, "augmented views of each sample")
    budget: str = key("4GB", "largest size on disk, such as 2GB")
    verify: Natural = key(8, "samples compared with the live teacher on opening")

    def faults(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what is wrong across fields."""
        if not SIZE.fullmatch(self.budget):
            yield "budget", f"must be a size such as 500MB or 2GB, not {self.budget!r}"


class Claim(Fields):
    """What a recipe claims, and how it is tested."""

    says: str = key(says="the claim in a sentence")
    arms: dict[str, Tree] = key({"student": Tree()}, "by name, the overrides of the recipe that make an arm")
    seeds: PositiveInt | list[Natural] = key(3, "how many seeds, or which")
    expect: list[str] = key(says="inequalities such as accuracy.student > accuracy.alone + 0.01")
    because: str | None = key(None, "why the claim does not hold, where that is known")

    def faults(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what is wrong across fields."""
        if not self.expect:
            yield "expect", "must hold at least one inequality"
        if isinstance(self.seeds, list) and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            yield "seeds", "must be seeds that differ, at least one"

    @property
    def seed_list(self) -> list[int]:
        """The seeds, one by one."""
        return self.seeds if isinstance(self.seeds, list) else list(range(self.seeds))

    @property
    def expectations(self) -> list[Expectation]:
        """The inequalities, read."""
        return [parse_expectation(text) for text in self.expect]


class PhaseFields(Fields):
    """One phase of a run: what it changes in the recipe, and who trains."""

    name: str | None = key(None, "what to call it in logs")
    method: Tree | str | None = key(None, "the method of this phase, or what changes in the run's")
    data: Tree | str | None = key(None, "the data of this phase, or what changes in the run's")
    train: Tree | None = key(None, "what changes in the run's train")
    learners: list[str] | None = key(None, "roles that train; by default all of the method's")
    parameters: list[str] | None = key(None, "patterns of the student's parameters that train; default all")
    start: str | None = key(None, name="from", says="an earlier phase, or a path, whose weights it starts from")


class Top(Fields):
    """The keys of a recipe. Those that are ``Any`` here are blocks with keys of their own (see ``recipe_schema``)."""

    title: str | None = key(None, "what the recipe does, in a few words")
    paper: Paper | None = key(None, "the paper that it reproduces")
    extends: Any = key(None, "a recipe file, or a list of them, that this one changes")
    seed: Natural = key(0, "of weights, order and noise")
    slow: bool = key(False, "whether its claim takes long to prove")
    data: Any = key(None, "a data block, or a map of named streams; absent for data-free methods")
    teacher: Any = key(None, "a model that teaches, with train:, path:, method:, mode: and licence:")
    teachers: Any = key(None, "several teachers, as a map by role or a list")
    student: Any = key(None, "the model that learns, with path: and freeze:")
    method: Any = key(None, "how the student learns")
    train: Any = key(None, "how long, and with which optimizer")
    phases: list[PhaseFields] | None = key(None, "training in several phases, in order")
    evaluate: list[MetricBlock] | None = key(None, "metrics; by default those of the task")
    cache: Cache | None = key(None, "store the teacher's outputs once")
    controls: bool | dict[str, Tree] = key(True, "arms trained for comparison; true takes the method's")
    claim: Claim | None = key(None, "what is claimed, and the inequalities that test it")
    export: list[Literal["onnx", "torch_export", "transformers", "int8", "diffusers", "datasets", "image_folder"]] = (
        key([], "further formats to deliver; the last two are for sets of images")
    )
    stages: list[StageBlock] | None = key(None, "what the run does, where it is not the usual")
    notes: str | None = key(None, "remarks for readers")
    licence: str | None = key(None, "licence of what the run delivers")


class TeacherKeys(Fields):
    """What a teacher's block holds beside its model's arguments."""

    train: Tree | None = key(None, "what changes in the run's train for the teacher's own training")
    path: Path | None = key(None, "weights, or a model's folder (which then decides the name)")
    finetune: bool = key(False, "train a teacher that is loaded further, on the run's data by its train")
    method: MethodBlock = key(Block("supervised"), "how the teacher itself is trained")
    data: Any = key(None, "what the teacher itself is trained on, or what changes in the run's data")
    teacher: Any = key(None, "who teaches the teacher: a chain of models, each the teacher of the next")
    teachers: Any = key(None, "several teachers of the teacher, as a map by role or a list")
    mode: Literal["eval", "batch_stats"] = key("eval", "batch_stats: normalisation uses the batch")
    licence: str | None = key(None, "carried to the student's card")


class StudentKeys(Fields):
    """What a student's block holds beside its model's arguments."""

    path: Path | None = key(None, "weights, or a model's folder, that it starts from")
    freeze: list[str] = key([], "patterns of parameters that do not train")


class StreamKeys(Fields):
    """What a named stream's block holds beside its data's arguments."""

    batch_size: PositiveInt | None = key(None, "samples per step from this stream")
