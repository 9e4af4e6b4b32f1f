from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import registry
from limbeck.data.base import DataSpec
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores, evaluate, evaluating, on_device
from limbeck.registry import Block


@pytest.fixture
def own_metrics() -> Iterator[None]:
    """Metrics of a user's own, registered for one test."""
    before = dict(registry._LIVE)
    yield
    registry._LIVE.clear()
    registry._LIVE.update(before)


def logits_of(n: int = 20, k: int = 4) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0))


def test_all_metrics_share_one_pass_of_the_model(judge: Any) -> None:
    logits = logits_of()
    evaluation = judge(logits, torch.arange(20) % 4, logits + 1)
    evaluate(evaluation, ["accuracy", "calibration", "agreement"])
    assert evaluation.model.calls == 3  # 20 samples, 7 a batch
    assert evaluation.source.asked == 6  # once for the model, once for the teacher


def test_samples_keep_their_order_and_the_last_batch_is_not_lost(judge: Any) -> None:
    logits = logits_of()
    evaluation = judge(logits, torch.arange(20) % 4)
    assert torch.equal(evaluation.logits, logits)
    assert torch.equal(evaluation.labels, torch.arange(20) % 4)
    assert [len(b["id"]) for b in evaluation.batches()] == [7, 7, 6]


def test_the_model_is_judged_in_eval_mode_and_gets_its_modes_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)).train()
    model[2].eval()
    evaluation = Evaluation(model, DataSpec(shape=(2,)))
    batch = {"input": torch.ones(3, 2)}
    assert torch.equal(evaluation.run(batch).logits, evaluation.run(batch).logits)
    assert [m.training for m in model] == [True, True, False] and model.training
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training


def test_teacher_outputs_can_still_enter_a_training_step(teacher_of: Callable[..., Any]) -> None:
    evaluation = Evaluation(nn.Linear(2, 2), teacher=teacher_of(nn.Linear(2, 2)))
    kept = evaluation.run_teacher({"input": torch.ones(3, 2)}).logits
    assert not kept.is_inference() and not kept.requires_grad
    weight = torch.ones(2, requires_grad=True)
    (kept * weight).sum().backward()
    assert weight.grad is not None


def test_an_empty_or_missing_test_split_is_refused(judge: Any) -> None:
    with pytest.raises(UserError, match="test split is empty"):
        evaluate(judge(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)), ["accuracy"])
    with pytest.raises(UserError, match="no test split"):
        evaluate(Evaluation(nn.Linear(2, 2), DataSpec(), None), ["accuracy"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_name_the_model(judge: Any, bad: float) -> None:
    logits = logits_of()
    logits[3, 1] = bad
    with pytest.raises(UserError, match=r"model 'Given' gives NaN or infinite logits for 1 of 7"):
        evaluate(judge(logits, torch.arange(20) % 4), ["accuracy"])
    with pytest.raises(UserError, match="model 'student' gives NaN"):
        evaluate(judge(logits, torch.arange(20) % 4, name="student"), ["accuracy"])
    with pytest.raises(UserError, match="teacher 'teacher' gives NaN"):
        evaluate(judge(logits_of(), torch.arange(20) % 4, logits), ["agreement"])


def test_outputs_that_are_no_class_logits_are_refused(judge: Any, rows: Any) -> None:
    with pytest.raises(UserError, match=r"shape \[7, 2, 3\]"):
        evaluate(judge(torch.zeros(9, 2, 3), torch.zeros(9, dtype=torch.long)), ["accuracy"])

    class Other(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"features": x}

    spec = DataSpec(shape=(2,))
    source = rows(spec, input=torch.zeros(3, 2), label=torch.zeros(3, dtype=torch.long))
    with pytest.raises(UserError, match="gives no logits to judge; it gives features"):
        evaluate(Evaluation(Other(), spec, source), ["accuracy"])


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_outside_the_models_classes_is_refused(judge: Any, label: int) -> None:
    labels = torch.arange(20) % 4
    labels[0] = label
    with pytest.raises(UserError, match="has 4 classes"):
        evaluate(judge(logits_of(), labels), ["accuracy"])


def test_labels_that_are_no_class_numbers_are_refused(judge: Any) -> None:
    with pytest.raises(UserError, match="class numbers"):
        evaluate(judge(logits_of(), logits_of()), ["accuracy"])


def test_a_metric_for_another_task_is_refused(judge: Any) -> None:
    evaluation = judge(logits_of(), torch.arange(20) % 4)
    evaluation.spec = DataSpec(task="language")
    with pytest.raises(UserError, match="'accuracy' judges classification or embedding, and this data is for language"):
        evaluate(evaluation, [Block("accuracy")])


def test_an_unknown_metric_names_the_nearest(judge: Any) -> None:
    with pytest.raises(registry.UnknownNameError, match="did you mean 'calibration'"):
        evaluate(judge(logits_of()), ["calibratoin"])


def test_one_list_serves_arms_with_and_without_a_teacher(judge: Any) -> None:
    scores = evaluate(judge(logits_of(), torch.arange(20) % 4), ["accuracy", "agreement"])
    assert "accuracy" in scores.values and "agreement" not in scores.values


def test_two_metrics_that_give_the_same_value_are_refused(judge: Any, own_metrics: None) -> None:
    @registry.register("metric", better={"accuracy": "higher"})
    def mine(evaluation: Evaluation) -> Scores:
        return Scores({"accuracy": 0.5})

    @registry.register("metric")
    def plot(evaluation: Evaluation) -> Scores:
        return Scores({}, {"confusion": []})

    evaluation = judge(logits_of(), torch.arange(20) % 4)
    with pytest.raises(UserError, match="'accuracy' and 'mine' both give 'accuracy'"):
        evaluate(evaluation, ["accuracy", "mine"])
    with pytest.raises(UserError, match=r"'accuracy' and 'plot' both give 'details.confusion'"):
        evaluate(evaluation, ["accuracy", "plot"])


def test_a_users_metric_gets_its_arguments(judge: Any, own_metrics: None) -> None:
    @registry.register("metric")
    def constant(evaluation: Evaluation, *, value: int = 1) -> Scores:
        return Scores({"constant": value})

    @registry.register("metric")
    def wrong(evaluation: Evaluation) -> float:
        return 1.0

    scores = evaluate(judge(logits_of()), [Block("constant", {"value": 3})])
    assert scores.values == {"constant": 3.0} and isinstance(scores.values["constant"], float)
    with pytest.raises(TypeError, match="'wrong' returned float"):
        evaluate(judge(logits_of()), ["wrong"])


def test_defaults_follow_the_task_and_all_is_json(judge: Any) -> None:
    scores = evaluate(judge(logits_of(), torch.arange(20) % 4, logits_of()))
    assert {"accuracy", "nll", "ece", "agreement", "parameters", "latency_ms"} <= set(scores.values)
    json.dumps([scores.values, scores.details], allow_nan=False)
    with pytest.raises(UserError, match="does not say its task"):
        evaluate(Evaluation(nn.Linear(2, 2)))


def test_nested_batches_move_as_a_whole() -> None:
    device = torch.device("meta")
    moved = on_device({"a": torch.ones(1), "b": [torch.ones(1)], "c": ({"d": torch.ones(1)},), "view": 3}, device)
    assert {moved["a"].device, moved["b"][0].device, moved["c"][0]["d"].device} == {device} and moved["view"] == 3
