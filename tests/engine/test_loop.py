"""The loop: what a step is, and what it must not depend on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from limbeck.engine import checkpoint
from limbeck.engine.best import Best
from limbeck.engine.journal import DeadTermError, NotFiniteError
from limbeck.engine.learner import LearnerSettings
from limbeck.engine.method import Batch, Clock, Method, Term, Update, frozen
from limbeck.engine.schedules import Linear
from limbeck.engine.stopping import Interrupted
from limbeck.engine.validation import Validator
from limbeck.losses import label_loss
from limbeck.models.forward import forward
from limbeck.registry import Block, build
from toolkit import set_up, toy_loop, toy_net, toy_source, toy_teacher, weights


def test_a_step_is_plain_sgd_on_the_mean_loss(tmp_path: Path) -> None:
    loop = toy_loop(tmp_path, set_up(build("method", Block("supervised")), toy_net()), steps=3, batch=16)
    reference = toy_net()
    for step in range(3):
        rows = loop.stream.rows(step)
        batch = toy_source().batch(rows)
        loss = torch.nn.functional.cross_entropy(reference(batch["input"]), batch["label"])
        grads = torch.autograd.grad(loss, list(reference.parameters()))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(reference.parameters(), grads, strict=True)):
                state = loop.__dict__.setdefault("_momentum", {})
                state[i] = g if step == 0 else 0.9 * state[i] + g
                p -= 0.1 * state[i]
    loop.fit()
    assert torch.allclose(weights(loop.learners["student"].plain), weights(reference), atol=1e-6)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_cutting_the_batch_does_not_change_the_step(tmp_path: Path, accumulate: int) -> None:
    whole = toy_loop(tmp_path / "1", steps=4).fit()
    cut = toy_loop(tmp_path / "2", steps=4, accumulate=accumulate).fit()
    for name, value in whole.student["last"].items():
        assert torch.allclose(value, cut.student["last"][name], atol=1e-6), name


class Halves(Method):
    """Two terms counted in unlike units: all samples, and those with an even id."""

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        logits = forward(self.student, batch).logits
        even = batch["id"] % 2 == 0
        yield Update(
            "student", {"all": Term.of(logits.square().sum(1)), "even": Term.of(logits[:, 0], even, unit="even")}
        )

    def count(self, batch: Batch) -> dict[str, int | torch.Tensor]:
        return {**super().count(batch), "even": (batch["id"] % 2 == 0).sum()}


def test_terms_with_unlike_counts_are_each_divided_by_their_own_global_count(tmp_path: Path) -> None:
    runs = [
        toy_loop(tmp_path / str(k), set_up(Halves(), toy_net()), steps=3, accumulate=k).fit().student["last"]
        for k in (1, 4)
    ]
    assert all(torch.allclose(runs[0][k], runs[1][k], atol=1e-6) for k in runs[0])


def test_a_unit_nobody_counts_is_refused_under_accumulation(tmp_path: Path) -> None:
    class Forgets(Halves):
        count = Method.count

    with pytest.raises(ValueError, match="even"):
        toy_loop(tmp_path, set_up(Forgets(), toy_net()), steps=1, accumulate=2).fit()


class Two(Method):
    """A critic that is updated twice before the student, which then sees the new critic."""

    def setup(self, parts) -> None:
        super().setup(parts)
        self.learners["critic"] = toy_net(3)
        self.seen: list[torch.Tensor] = []

    def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
        for _ in range(2):
            self.seen.append(weights(self.learners["critic"]))
            yield Update("critic", {"ce": label_loss(forward(self.learners["critic"], batch).logits, batch)})
        self.seen.append(weights(self.learners["critic"]))
        with frozen(self.learners["critic"]):
            value = forward(self.learners["critic"], {"input": batch["input"]}).logits
            logits = forward(self.student, batch).logits
        yield Update("student", {"match": Term.of((logits - value).square().sum(1))})


def test_an_update_is_stepped_before_the_next_one_is_asked_for(tmp_path: Path) -> None:
    method = Two()
    toy_loop(tmp_path, set_up(method, toy_net()), steps=1).fit()
    assert not torch.equal(method.seen[0], method.seen[1]) and not torch.equal(method.seen[1], method.seen[2])


def test_learners_have_optimizers_ratios_and_averages_of_their_own(tmp_path: Path) -> None:
    settings = {
        "learners": {
            "critic": LearnerSettings(optimizer=Block("adam", {"lr": 0.01}), every=2),
            "student": LearnerSettings(optimizer=Block("sgd", {"lr": 0.0}), ema=(0.5, 0.9)),
        }
    }
    loop = toy_loop(tmp_path, set_up(Two(), toy_net()), steps=4, settings=settings)
    outcome = loop.fit()
    assert loop.learners["critic"].steps == 2 * 2  # two updates at every second step
    assert set(outcome.student) == {"last", "ema_0.5", "ema_0.9"}
    start = toy_net().state_dict()
    assert all(torch.equal(outcome.student["last"][k], start[k]) for k in start)


def test_averages_follow_their_definition(tmp_path: Path) -> None:
    learner = LearnerSettings(optimizer=Block("sgd", {"lr": 0.1}), ema=(0.8,))
    expected, trail = weights(toy_net()), []
    loop = toy_loop(tmp_path, steps=5, learner=learner)
    loop.method.after_step = lambda clock: trail.append(weights(loop.learners["student"].plain))  # type: ignore[method-assign]
    outcome = loop.fit()
    for w in trail:
        expected = 0.8 * expected + 0.2 * w
    got = torch.cat([v.flatten() for v in outcome.student["ema_0.8"].values()])
    assert torch.allclose(got, expected, atol=1e-6)


def test_a_scheduled_scalar_is_written_before_each_step(tmp_path: Path) -> None:
    seen = []

    class Watches(Halves):
        alpha = 1.0

        def after_step(self, clock: Clock) -> None:
            seen.append(self.alpha)

    settings = {"schedules": {"alpha": Linear(start=0.0, end=1.0)}}
    toy_loop(tmp_path, set_up(Watches(), toy_net()), steps=4, settings=settings).fit()
    assert seen == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_term_that_explodes_stops_the_run_by_name_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, bad: float
) -> None:
    class Explodes(Halves):
        def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
            for update in super().updates(batch, clock):
                if clock.step == 12:
                    update.terms["even"].sum = update.terms["even"].sum * bad
                yield update

    loop = toy_loop(tmp_path, set_up(Explodes(), toy_net()), settings={"checkpoint_seconds": 0.0})
    with pytest.raises(NotFiniteError, match=r"term 'even' of learner 'student' became (nan|-?inf) at step 12"):
        loop.fit()
    step, state = checkpoint.latest(tmp_path / "checkpoints")
    assert step == 12
    assert all(v.isfinite().all() for v in state["learners"]["student"]["module"].values())


def test_a_term_that_is_always_zero_is_an_error_and_a_tiny_one_a_warning(tmp_path: Path) -> None:
    class Silent(Method):
        factor = 0.0

        def updates(self, batch: Batch, clock: Clock) -> Iterator[Update]:
            logits = forward(self.student, batch).logits
            yield Update("student", {"ce": label_loss(logits, batch), "dead": Term.of(self.factor * logits.square())})

    with pytest.raises(DeadTermError, match="'dead'"):
        toy_loop(tmp_path / "zero", set_up(Silent(), toy_net()), steps=100).fit()
    tiny = Silent()
    tiny.factor = 1e-5
    outcome = toy_loop(tmp_path / "tiny", set_up(tiny, toy_net()), steps=40).fit()
    assert len(outcome.warnings) == 1 and "'student: dead'" in outcome.warnings[0]


def test_every_term_is_logged_with_value_weight_and_share(tmp_path: Path) -> None:
    toy_loop(tmp_path, steps=10).fit()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [5, 10]
    first = rows[0]
    assert {"term/ce", "term/kd", "weighted/kd", "share/ce", "share/kd", "lr/student", "epoch", "seconds"} <= set(first)
    assert first["share/ce"] + first["share/kd"] == pytest.approx(1, abs=1e-5)
    assert first["weighted/kd"] == pytest.approx(0.9 * first["term/kd"], rel=1e-5)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    learner = LearnerSettings(optimizer=Block("sgd", {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}), clip=1e-3)
    loop = toy_loop(tmp_path, steps=1, learner=learner)
    loop.fit()
    assert (weights(loop.learners["student"].plain) - weights(toy_net())).norm() == pytest.approx(1e-3, rel=1e-3)


# -- interruption ------------------------------------------------------------------------------------------------------


def _stochastic() -> Method:
    """A method whose student drops units out, so that generator state matters."""
    net = torch.nn.Sequential(toy_net(), torch.nn.Dropout(0.3))
    return set_up(build("method", Block("dml", {"peers": 2})), net)


def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    learner = LearnerSettings(optimizer=Block("adamw", {"lr": 0.01}), ema=(0.9,), clip=1.0)
    torch.manual_seed(1)
    whole = toy_loop(tmp_path / "whole", _stochastic(), learner=learner).fit()
    torch.manual_seed(1)
    first = toy_loop(tmp_path / "cut", _stochastic(), learner=learner)
    first.method.after_step = lambda clock: setattr(first.asked, "code", 143 if clock.step == 7 else None)  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as stopped:
        first.fit()
    assert stopped.value.code == 143
    torch.manual_seed(777)  # a new process starts from somewhere else
    second = toy_loop(tmp_path / "cut", _stochastic(), learner=learner).fit()
    for name, state in whole.student.items():
        assert all(torch.equal(v, second.student[name][k]) for k, v in state.items()), name
    for role, state in whole.learners.items():
        assert all(torch.equal(v, second.learners[role][k]) for k, v in state.items()), role
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 20


def test_best_and_early_stopping(tmp_path: Path) -> None:
    scores = iter([0.5, 0.7, 0.6, 0.6, 0.9])

    class Scripted(Validator):
        def __call__(self, module, fabric) -> dict[str, float]:
            return {"accuracy": next(scores)}

    best = Best("accuracy", "max", patience=2)
    loop = toy_loop(tmp_path, steps=20, settings={"validate_every": 2}, validator=Scripted(toy_source()), best=best)
    outcome = loop.fit()
    assert outcome.steps == 8 and best.value == 0.7 and best.step == 4
    assert not all(torch.equal(v, outcome.student["last"][k]) for k, v in outcome.student["best"].items())


def test_the_teacher_is_untouched_and_outside_the_student(tmp_path: Path) -> None:
    teacher = toy_teacher()
    before, student = weights(teacher.module), toy_net()
    keys = list(student.state_dict())
    outcome = toy_loop(tmp_path, set_up(build("method", Block("kd")), student, {"teacher": teacher})).fit()
    assert torch.equal(before, weights(teacher.module)) and not teacher.module.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.module.parameters())
    assert list(outcome.student["last"]) == keys and type(student) is torch.nn.Sequential


def test_bf16_mixed_trains_in_float32_weights(tmp_path: Path) -> None:
    from limbeck.engine.devices import Placement, launch

    fabric = launch(Placement(accelerator="cpu", precision="bf16-mixed"))
    outcome = toy_loop(tmp_path, steps=10, fabric=fabric).fit()
    plain = toy_loop(tmp_path / "plain", steps=10).fit()
    assert all(v.dtype == torch.float32 for v in outcome.student["last"].values())
    a, b = (torch.cat([v.flatten() for v in o.student["last"].values()]) for o in (outcome, plain))
    assert not torch.equal(a, b) and torch.allclose(a, b, atol=0.05)


@pytest.mark.slow
def test_compiled_equals_eager(tmp_path: Path) -> None:
    eager = toy_loop(tmp_path / "a", steps=5).fit().student["last"]
    compiled = toy_loop(tmp_path / "b", steps=5, settings={"compile": True}).fit().student["last"]
    assert list(eager) == list(compiled)
    assert all(torch.allclose(eager[k], compiled[k], atol=1e-5) for k in eager)


def test_the_log_does_not_depend_on_how_a_batch_is_cut(tmp_path: Path) -> None:
    logged = []
    for pieces in (1, 4):
        toy_loop(tmp_path / str(pieces), steps=5, accumulate=pieces).fit()
        logged.append(list(checkpoint.read_jsonl(tmp_path / str(pieces) / "metrics.jsonl")))
    for whole, cut in zip(*logged, strict=True):
        terms = [key for key in whole if key.startswith(("term/", "weighted/"))]
        assert terms and [cut[key] for key in terms] == pytest.approx([whole[key] for key in terms], rel=1e-4)
