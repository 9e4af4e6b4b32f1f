"""The keys of a recipe and of its own maps, with types, defaults and what they mean (editors show these too)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import Field, model_validator

from limbeck.expectation import Expectation, parse_expectation
from limbeck.recipe.annotations import Fields, Tree
from limbeck.registry import Block, Kind, OptimizerBlock, ScheduleBlock

MetricBlock = Annotated[Block, Kind("metric")]
StageBlock = Annotated[Block, Kind("stage")]
MethodBlock = Annotated[Block, Kind("method")]

PositiveInt = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0)]
Decay = Annotated[float, Gt(0), Lt(1)]
Mode = Literal["max", "min"]

DEFAULT_EPOCHS = 20.0
DEFAULT_OPTIMIZER = Block("adamw", {"lr": 2e-3})
DEFAULT_SCHEDULE = Block("cosine")
SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[kKMGT]?i?)B")


class Paper(Fields):
    """The paper that a recipe reproduces."""

    title: str = Field(description="title of the paper")
    arxiv: str | None = Field(None, description="arXiv number in quotes, such as '1503.02531'")
    year: int | None = Field(None, description="year of publication")
    url: str | None = Field(None, description="where to find it, when it is not on arXiv")
    venue: str | None = Field(None, description="journal or conference")


class Best(Fields):
    """Which validated value is the best."""

    metric: str = Field(description="a validated value, such as accuracy or nll")
    mode: Mode = Field("max", description="whether larger or smaller is better")


class EarlyStop(Best):
    """When to stop before the end."""

    patience: PositiveInt = Field(3, description="validations without a better value before stopping")


def _listed(values: Any) -> Any:
    return values if values is None or isinstance(values, list) else [values]


class LearnerTrain(Fields):
    """How one learner trains, where it differs from the run's ``train``."""

    optimizer: OptimizerBlock | None = Field(None, description="its optimizer; keys left out are the run's")
    schedule: ScheduleBlock | None = Field(None, description="its learning-rate schedule; keys left out are the run's")
    clip: PositiveFloat | None = Field(None, description="largest norm of its gradient")
    ema: list[Decay] | Decay | None = Field(None, description="decays of moving averages of its weights")
    every: PositiveInt = Field(1, description="it takes part in every n-th step")

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "ema": _listed(data.get("ema"))}


class Train(Fields):
    """How a run trains. Exactly one of epochs and steps counts its length."""

    epochs: PositiveFloat | None = Field(None, description="passes over the data (default 20, when steps is not given)")
    steps: PositiveInt | None = Field(None, description="optimizer steps, instead of epochs")
    batch_size: PositiveInt = Field(128, description="samples per step over all devices and micro-batches")
    accumulate: PositiveInt = Field(1, description="micro-batches that a batch is cut into")
    optimizer: OptimizerBlock = Field(DEFAULT_OPTIMIZER, description="the optimizer of every learner")
    schedule: ScheduleBlock = Field(DEFAULT_SCHEDULE, description="the factor on the learning rate over the run")
    clip: PositiveFloat | None = Field(None, description="largest norm of a learner's gradient")
    ema: list[Decay] | Decay = Field([], description="decays of moving averages of the weights to keep")
    deliver: str = Field("last", description="which weights the run delivers: last, best, or ema_<decay>")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true", description="arithmetic of the forward")
    devices: PositiveInt | Literal["auto"] = Field(1, description="devices on each node")
    accelerator: Literal["auto", "cpu", "cuda"] = Field("auto", description="kind of device")
    strategy: Literal["auto", "ddp", "fsdp"] = Field("auto", description="how several devices share the work")
    nodes: PositiveInt = Field(1, description="machines")
    compile: bool = Field(False, description="compile models with torch.compile")
    validate_every: PositiveFloat = Field(1.0, description="epochs between validations")
    early_stop: EarlyStop | None = Field(None, description="stop when a validated value no longer improves")
    best: Best | None = Field(None, description="which weights are the best, for deliver: best")
    checkpoint_every: Annotated[float, Ge(0)] = Field(60.0, description="seconds between checkpoints")
    log_every: PositiveInt = Field(20, description="steps between logged values")
    workers: Annotated[int, Ge(0)] = Field(0, description="processes that load data")
    learners: dict[str, LearnerTrain] = Field({}, description="by role, what differs for a learner (a critic, say)")
    deterministic: bool = Field(True, description="use deterministic algorithms where there is a choice")

    @model_validator(mode="before")
    @classmethod
    def _derived(cls, data: dict[str, Any]) -> dict[str, Any]:
        length = {} if data.get("epochs") or data.get("steps") else {"epochs": DEFAULT_EPOCHS}
        return {**data, **length, "ema": _listed(data.get("ema", []))}

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

    mode: Literal["full", "fp16", "topk"] = Field("fp16", description="what is kept of each output")
    k: PositiveInt = Field(50, description="classes or tokens kept by mode topk, beside the tail")
    views: PositiveInt = Field(1, description="augmented views of each sample")
    budget: str = Field("4GB", description="largest size on disk, such as 2GB")
    verify: Annotated[int, Ge(0)] = Field(8, description="samples compared with the live teacher on opening")

    def faults(self) -> Iterator[tuple[str, str]]:
        """(key, message) of what is wrong across fields."""
        if not SIZE.fullmatch(self.budget):
            yield "budget", f"must be a size such as 500MB or 2GB, not {self.budget!r}"


class Claim(Fields):
    """What a recipe claims, and how it is tested."""

    says: str = Field(description="the claim in a sentence")
    arms: dict[str, Tree] = Field(
        {"student": Tree()}, description="by name, the overrides of the recipe that make an arm"
    )
    seeds: PositiveInt | list[Annotated[int, Ge(0)]] = Field(3, description="how many seeds, or which")
    expect: list[str] = Field(description="inequalities such as accuracy.student > accuracy.alone + 0.01")
    because: str | None = Field(None, description="why the claim does not hold, where that is known")

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

    name: str | None = Field(None, description="what to call it in logs")
    method: Tree | str | None = Field(None, description="the method of this phase, or what changes in the run's")
    data: Tree | str | None = Field(None, description="the data of this phase, or what changes in the run's")
    train: Tree | None = Field(None, description="what changes in the run's train")
    learners: list[str] | None = Field(None, description="roles that train; by default all of the method's")
    parameters: list[str] | None = Field(
        None, description="patterns of the student's parameters that train; default all"
    )
    start: str | None = Field(
        None, alias="from", description="an earlier phase, or a path, whose weights it starts from"
    )


class Top(Fields):
    """The keys of a recipe. Those that are ``Any`` here are blocks with keys of their own (see ``recipe_schema``)."""

    title: str | None = Field(None, description="what the recipe does, in a few words")
    paper: Paper | None = Field(None, description="the paper that it reproduces")
    extends: Any = Field(None, description="a recipe file, or a list of them, that this one changes")
    seed: Annotated[int, Ge(0)] = Field(0, description="of weights, order and noise")
    slow: bool = Field(False, description="whether its claim takes long to prove")
    data: Any = Field(None, description="a data block, or a map of named streams; absent for data-free methods")
    teacher: Any = Field(None, description="a model that teaches, with train:, path:, method:, mode: and licence:")
    teachers: Any = Field(None, description="several teachers, as a map by role or a list")
    student: Any = Field(None, description="the model that learns, with path: and freeze:")
    method: Any = Field(None, description="how the student learns")
    train: Any = Field(None, description="how long, and with which optimizer")
    phases: list[PhaseFields] | None = Field(None, description="training in several phases, in order")
    evaluate: list[MetricBlock] | None = Field(None, description="metrics; by default those of the task")
    cache: Cache | None = Field(None, description="store the teacher's outputs once")
    controls: bool | dict[str, Tree] = Field(True, description="arms trained for comparison; true takes the method's")
    claim: Claim | None = Field(None, description="what is claimed, and the inequalities that test it")
    export: list[Literal["onnx", "torch_export", "transformers"]] = Field([], description="further formats to deliver")
    stages: list[StageBlock] | None = Field(None, description="what the run does, where it is not the usual")
    notes: str | None = Field(None, description="remarks for readers")
    licence: str | None = Field(None, description="licence of what the run delivers")


class TeacherKeys(Fields):
    """What a teacher's block holds beside its model's arguments."""

    train: Tree | None = Field(None, description="what changes in the run's train for the teacher's own training")
    path: Path | None = Field(None, description="weights, or a model's folder (which then decides the name)")
    method: MethodBlock = Field(Block("supervised"), description="how the teacher itself is trained")
    mode: Literal["eval", "batch_stats"] = Field("eval", description="batch_stats: normalisation uses the batch")
    licence: str | None = Field(None, description="carried to the student's card")


class StudentKeys(Fields):
    """What a student's block holds beside its model's arguments."""

    path: Path | None = Field(None, description="weights, or a model's folder, that it starts from")
    freeze: list[str] = Field([], description="patterns of parameters that do not train")


class StreamKeys(Fields):
    """What a named stream's block holds beside its data's arguments."""

    batch_size: PositiveInt | None = Field(None, description="samples per step from this stream")
