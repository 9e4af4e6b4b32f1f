"""The stages of a run: what teachers have to pass, what is refused before anything is trained, who is judged how."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.data import load_data
from limbeck.engine.devices import launch
from limbeck.errors import UserError
from limbeck.metrics.base import Scores
from limbeck.preflight import preflight
from limbeck.recipe import load_recipe
from limbeck.recipe.mistakes import RecipeError
from limbeck.registry import Block, clear, register
from limbeck.run import Context, Result, placement_of, run_recipe
from limbeck.stages import evaluate
from limbeck.stages.teacher import First, describe, teacher
from limbeck.training import hooks_kept
from toolkit.runs import tiny


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """Run a tiny recipe below a new folder."""

    def go(**changes: Any) -> Result:
        return run_recipe(tiny(**{"controls": False, **changes}), runs=tmp_path / "runs")

    return go


def context_of(folder: Path, **changes: Any) -> Context:
    """A run before its first stage."""
    recipe = load_recipe(tiny(**changes))
    context = Context(recipe, folder, launch(placement_of(recipe)), 0)
    context.data = {name: load_data(block) for name, block in recipe.data.items()}
    return context


# ---------------------------------------------------------------------------------------------------------------------
# Teachers

CODE = """
from torch import nn


class Wide(nn.Module):
    def __init__(self, classes=7):
        super().__init__()
        self.body = nn.Linear(64, 6)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)))


class Strange(Wide):
    def forward(self, first, second):
        return super().forward(first)


def calls_it(student, teacher):
    return (student - teacher).square().mean(1)
"""


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models of the user's that are no classifiers of the data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("stage_models.py").write_text(CODE, encoding="utf8")
    yield
    sys.modules.pop("stage_models", None)
    clear()


def saved(folder: Path, name: str) -> Path:
    """A model of the user's, stored."""
    from limbeck.export import store
    from limbeck.models.building import build_model

    stored = build_model(Block(f"stage_models:{name}"), offers={}, seed=0)
    store.save(folder / name, stored)
    return folder / name


def test_a_teacher_tells_its_hash_its_counts_and_its_own_score(
    run: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(teacher={"name": "mlp", "hidden": 12, "train": {"steps": 30}})
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("teacher: mlp")]
    accuracy = result.metrics["teacher"]["accuracy"]
    assert "910 parameters, none trains; hash " in line
    assert (
        f"its own score: right on {accuracy:.1%} of the test samples, nll {result.metrics['teacher']['nll']:.4g}"
        in line
    )


@pytest.mark.usefixtures("strangers")
def test_a_teacher_of_other_classes_is_refused_where_logits_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(tmp_path, teacher={"path": str(saved(tmp_path, "Wide"))})
    with pytest.raises(
        UserError, match=r"teacher: stage_models:Wide\(classes=7\) has 7 classes, and the data has 10: .*kd"
    ):
        teacher(context)
    other = {"path": str(tmp_path / "Wide" / "model.safetensors"), "name": "logistic"}
    with pytest.raises(UserError, match=r"'head.bias' has shape \(7,\), the model needs \(10,\)"):
        teacher(context_of(tmp_path, teacher=other))


@pytest.mark.usefixtures("strangers")
def test_a_teacher_of_other_classes_may_teach_its_features_and_is_judged_by_its_size_alone(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    hint = {"name": "mse", "student": "stages.0", "teacher": "body", "projector": {"name": "auto"}}
    method = {"name": "compose", "terms": {"ce": {"name": "cross_entropy"}, "hint": hint}}
    result = run(
        teacher={"path": str(saved(tmp_path, "Wide"))}, method=method, evaluate=["accuracy", "agreement", "efficiency"]
    )
    assert (
        set(result.metrics["teacher"]) >= {"parameters", "latency_ms"} and "accuracy" not in result.metrics["teacher"]
    )
    assert "accuracy" in result.metrics["student"] and "agreement" not in result.metrics["student"]
    assert "7 classes, and the data has 10: it is not judged on them" in result.results["notes"][0]


@pytest.mark.usefixtures("strangers")
def test_a_teacher_that_only_its_method_can_call_is_left_to_it(tmp_path: Path) -> None:
    strange = {
        "name": "stage_models:Strange",
        "classes": 7,
        "path": str(saved(tmp_path, "Strange") / "model.safetensors"),
    }
    context = context_of(tmp_path, teacher=strange, method={"name": "supervised"})
    teacher(context)
    assert context.arms["teacher"].judged_by == () and "left to the method" in context.notes[0]
    assert evaluate.score(context, context.arms["teacher"]) == Scores({})
    with pytest.raises(UserError, match=r"cannot read the data \(input \[2, 1, 8, 8\]\): TypeError"):
        teacher(context_of(tmp_path, teacher=strange))


def test_the_quick_score_covers_the_first_rows() -> None:
    source = load_data(Block("digits", {"train_size": 30})).train
    assert source is not None
    first = First(source, 12)
    assert len(first) == 12 and len(First(source, 99)) == 30 and first.fingerprint == source.fingerprint
    rows = torch.arange(12)
    assert torch.equal(first.batch(rows)["input"], source.batch(rows)["input"])


def test_models_are_described_without_the_places_they_come_from(tmp_path: Path) -> None:
    from limbeck.export.store import Stored

    stored = Stored(nn.Linear(2, 2), Block("transformers", {"path": tmp_path / "private" / "bert-tiny"}))
    assert describe(stored) == "Linear(bert-tiny)"
    assert describe(Stored(nn.Linear(2, 2), Block("transformers"))) == "Linear"
    assert (
        describe(Stored(nn.Linear(2, 2), Block("mlp", {"hidden": 3, "bias": True, "data": object()})))
        == "mlp(hidden=3)"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Refused before anything is written


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": {"steps": 2, "deliver": "best"}}, "needs a validation split"),
        ({"train": {"steps": 2, "early_stop": {"metric": "nll"}}}, "needs a validation split"),
        (
            {"cache": {"mode": "topk"}, "method": {"name": "compose", "terms": {"kd": {"name": "soft_kl"}}}},
            "whole logits",
        ),
        (
            {"cache": {"mode": "topk"}, "method": {"name": "kd", "temperature": {"name": "linear", "end": 1.0}}},
            "fixed method.temperature",
        ),
        ({"method": {"name": "compose", "terms": {}}}, "at least one entry"),
        ({"controls": {"x": {"method": {"name": "compose", "terms": {}}}}}, "at least one entry"),
        (
            {"teacher": {"name": "mlp", "train": {"steps": 1, "early_stop": {"metric": "nll"}}}},
            "needs a validation split",
        ),
        ({"phases": [{"train": {"deliver": "best"}}]}, "needs a validation split"),
        ({"export": ["transformers"]}, "is no transformers model"),
        ({"student": {"name": "mlp", "freeze": ["no.such.*"]}}, "no parameter is called like"),
    ],
)
def test_what_would_stop_a_run_later_is_said_first(
    run: Callable[..., Result], tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        run(**changes)
    assert not (tmp_path / "runs").exists()


def test_a_student_that_is_data_has_no_best_weights(tmp_path: Path) -> None:
    blocks = {"student": {"name": "synthetic_images"}, "teacher": None, "method": {"name": "dm"}}
    train = {"steps": 2, "deliver": "best"}
    context = context_of(tmp_path, **blocks, train=train, data={"name": "digits", "val_size": 40})
    with pytest.raises(UserError, match="synthetic_images gives images"):
        preflight(context.recipe, context.data, context.fabric)


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def test_a_student_that_is_data_is_judged_by_networks_that_learn_from_it() -> None:
    blocks = {"student": {"name": "synthetic_images"}, "teacher": None, "method": {"name": "dm"}, "train": {"steps": 2}}
    chosen = evaluate.metrics_of(load_recipe(tiny(**blocks, evaluate=None)), "classification")
    assert [b.name for b in chosen] == ["fresh_networks"]
    own = evaluate.metrics_of(load_recipe(tiny(**blocks, evaluate=["efficiency"])), "classification")
    assert [b.name for b in own] == ["efficiency"]
    usual = evaluate.metrics_of(load_recipe(tiny(evaluate=None)), "classification")
    assert {"accuracy", "calibration", "efficiency"} <= {b.name for b in usual}


def test_the_teacher_of_a_student_that_is_data_is_judged_as_the_network_that_it_is(run: Callable[..., Result]) -> None:
    student = {"name": "relabelled_images", "per_class": 2, "init": "real", "epochs": 2, "flip": False}
    learner = {"name": "logistic"}
    judged = [{"name": "fresh_networks", "networks": 1, "architectures": [learner]}]
    method = {"name": "real_subset", "selection": "random"}
    teacher = {**learner, "train": {"epochs": 1}}
    result = run(student=student, method=method, teacher=teacher, train={"steps": 1}, evaluate=judged, controls=False)
    told = json.loads((result.folder / "results.json").read_text(encoding="utf8"))["arms"]
    assert "fresh_accuracy" in told["student"]["metrics"]
    assert "accuracy" in told["teacher"]["metrics"] and "fresh_accuracy" not in told["teacher"]["metrics"]


RING = {"name": "gaussian_ring"}
POINTS = {"name": "mlp_denoiser", "width": 8, "method": {"name": "edm"}, "train": {"steps": 1}}
PICTURES = {"name": "pictures", "of": {"name": "digits"}}
MEMORY = {"name": "image_memory", "count": 4}
CHAIN = {"name": "markov_chain", "tokens": 3, "length": 4}


def generating(teacher: Any, data: Any = None, evaluate: Any = None, **more: Any) -> dict[str, Any]:
    """A recipe for a generator of one call, of points or of pictures."""
    network = {"name": "mlp_denoiser", "width": 8} if data is None or data["name"] == "ring_points" else {
        "name": "unet_denoiser", "width": 8, "levels": 1
    }  # fmt: skip
    blocks: dict[str, Any] = {"student": {"name": "few_step", "net": network}, "method": {"name": "dmd"}}
    blocks |= {"teacher": teacher} if teacher else {"student": network, "method": {"name": "edm"}}
    return {"title": "generating", **blocks, **({"data": data} if data else {}), "evaluate": evaluate,
            "train": {"steps": 1, "batch_size": 4}, **more}  # fmt: skip


def chosen_for(recipe: dict[str, Any]) -> list[str]:
    loaded = load_recipe(recipe)
    data = {name: load_data(block) for name, block in loaded.data.items()}
    evaluate.check_metrics(loaded, data)
    return [b.name for b in evaluate.metrics_of(loaded, "generation", evaluate.at_hand(loaded, data))]


@pytest.mark.parametrize(
    ("recipe", "metric"),
    [
        (generating(RING), "mixture_quality"),
        (generating(MEMORY, PICTURES), "mixture_quality"),
        (generating({**POINTS, "name": "unet_denoiser"}, PICTURES), "picture_quality"),
        (generating(None, PICTURES), "picture_quality"),
        (generating(POINTS, {"name": "ring_points", "train_size": 8, "test_size": 8}), "teacher_distance"),
        (generating({**POINTS, "name": "unet_denoiser"}, {**PICTURES, "labels": False}), "teacher_distance"),
        (
            generating(CHAIN, student={"name": "discrete_sampler", "net": CHAIN}, method={"name": "lsd"}),
            "sequence_quality",
        ),
    ],
)
def test_generators_are_judged_by_what_is_at_hand(recipe: dict[str, Any], metric: str) -> None:
    assert chosen_for(recipe) == [metric]


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (generating(POINTS, PICTURES, ["mixture_quality"]), "needs an exact mixture .* the teacher is mlp_denoiser. "
                                                            "What serves here: picture_quality"),
        (generating(RING, evaluate=["picture_quality"]), "needs pictures with classes .* here: mixture_quality"),
        (generating(None, PICTURES, ["teacher_distance"]), "there is no teacher"),
        (generating(None, {"name": "ring_points", "train_size": 8, "test_size": 8}), "nothing here can judge"),
        (generating(RING, evaluate=["accuracy"]), "classification or embedding, and this data is for generation"),
    ],
)  # fmt: skip
def test_metrics_that_could_judge_nothing_are_refused_before_anything_is_trained(
    tmp_path: Path, recipe: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        run_recipe(recipe, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_without_the_stage_nothing_is_said_of_metrics() -> None:
    assert chosen_for(generating(RING, evaluate=["picture_quality"], stages=["teacher", "train"]))


CALLS: list[str] = []


@register("metric", "counted_metric", better={"counted": "higher"})
def counted_metric(evaluation: Any, *, by: float = 1.0) -> Scores:
    """Counts how often it is asked."""
    CALLS.append(evaluation.name)
    return Scores({"counted": by})


def test_an_arm_is_judged_once_for_the_same_metrics(run: Callable[..., Result]) -> None:
    CALLS.clear()
    blocks = {"evaluate": ["counted_metric"]}
    first = run(**blocks)
    run(**blocks)
    assert CALLS.count("student") == 1, "the scores are kept beside the arm"
    (first.folder / "results.json").unlink()
    assert run(**blocks).metrics["student"] == {"counted": 1.0} and CALLS.count("student") == 1
    context = context_of(first.folder, **blocks)
    other = context_of(first.folder, evaluate=[{"name": "counted_metric", "by": 2.0}])
    keys = [evaluate._key(c, _arm(c), c.recipe.evaluate) for c in (context, other)]
    assert keys[0] != keys[1]


def _arm(context: Context) -> Any:
    from limbeck.run import Arm

    return Arm("student", "student", "Student", context.recipe, context.folder)


# ---------------------------------------------------------------------------------------------------------------------
# What a method leaves behind


def test_taps_of_a_method_are_gone_when_its_training_ends() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    kept = net[0].register_forward_hook(lambda *a: None)
    with hooks_kept([net]):
        net[1].register_forward_hook(lambda *a: None)
        assert len(net[1]._forward_hooks) == 1
    assert len(net[1]._forward_hooks) == 0 and list(net[0]._forward_hooks) == [kept.id]


def test_a_teacher_has_no_taps_when_it_is_judged(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    score = evaluate.score

    def watched(context: Context, arm: Any) -> Scores:
        if arm.teacher is not None:
            seen.append(sum(len(m._forward_hooks) for m in arm.teacher.module.modules()))
        return score(context, arm)

    monkeypatch.setattr(evaluate, "score", watched)
    hint = {"name": "mse", "student": "stages.0", "teacher": "stages.0", "projector": {"name": "linear"}}
    run(method={"name": "compose", "terms": {"ce": {"name": "cross_entropy"}, "hint": hint}})
    assert seen == [0]


CHAIN = {
    "data": {"name": "digits", "train_size": 60, "test_size": 40},
    "student": {"name": "mlp", "hidden": 4},
    "method": "kd",
    "train": {"epochs": 1, "batch_size": 20},
    "controls": False,
    "evaluate": ["accuracy"],
}


def test_a_teacher_may_have_a_teacher_which_is_trained_first(tmp_path: Path) -> None:
    chain = {"name": "mlp", "hidden": 8, "method": "kd", "teacher": {"name": "mlp", "hidden": 16}}
    recipe = load_recipe({**CHAIN, "teacher": chain})
    own = recipe.of_teacher("teacher")
    assert own.method.name == "kd" and own.teachers["teacher"].block.args == {"hidden": 16}
    first = run_recipe(recipe, runs=tmp_path, quiet=True).metrics
    direct = run_recipe({**CHAIN, "teacher": {"name": "mlp", "hidden": 8}}, runs=tmp_path, quiet=True).metrics
    assert first["teacher"] != direct["teacher"], "the teacher was taught"


def test_what_teaches_a_teacher_is_part_of_its_key(tmp_path: Path) -> None:
    def hidden(width: int) -> dict[str, float]:
        chain = {"name": "mlp", "hidden": 8, "method": "kd", "teacher": {"name": "mlp", "hidden": width}}
        return run_recipe({**CHAIN, "teacher": chain}, runs=tmp_path, quiet=True).metrics["teacher"]

    assert hidden(16) == hidden(16) != hidden(12)


def test_a_teacher_may_be_trained_on_other_data(tmp_path: Path) -> None:
    parity = {"name": "mlp", "hidden": 8, "data": {"name": "digits_grouped", "train_size": 60, "test_size": 40}}
    result = run_recipe({**CHAIN, "teacher": parity, "method": "fitnets"}, runs=tmp_path, quiet=True)
    assert "accuracy" not in result.metrics["teacher"], "it tells other classes apart"
    more = {"name": "mlp", "hidden": 8, "data": {"train_size": 200}}
    result = run_recipe({**CHAIN, "teacher": more}, runs=tmp_path, quiet=True)
    assert "accuracy" in result.metrics["teacher"], "more of the same data is judged as ever"


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ({"method": {"name": "kd"}}, "teacher.method: method kd needs a teacher"),
        ({"method": {"name": "kd"}, "teacher": {"name": "mpl"}}, r"teacher.teacher.name: .*did you mean 'mlp'"),
        ({"data": {"name": "digits", "trainsize": 3}}, r"teacher.data.trainsize: .*did you mean 'train_size'"),
    ],
)
def test_mistakes_in_a_teachers_own_training_are_found_early(teacher: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe({**CHAIN, "teacher": {"name": "mlp", **teacher}})


def test_a_teacher_of_other_tokens_is_refused_where_the_method_would_give_it_the_datas(tmp_path):
    letters = tmp_path / "letters.tsv"
    letters.write_text("text\tlabel\n" + "".join(f"{w} {w}\t{w[0]}\n" for w in ("ab", "ba", "ad", "be") * 4))
    recipe = {
        "data": {"name": "labelled_text", "path": str(letters), "context": 8, "test_fraction": 0.25},
        "teacher": {
            "name": "encoder", "hidden": 8, "layers": 2, "heads": 2,
            "data": {"tokenizer": "char"}, "train": {"steps": 1},
        },
        "student": {"name": "encoder", "hidden": 8, "layers": 1, "heads": 2},
        "method": {"name": "pkd"},
        "train": {"steps": 1, "batch_size": 4},
        "controls": False,
    }  # fmt: skip
    for _ in ("trained", "found again"):
        with pytest.raises(UserError, match="reads other tokens than the data"):
            run_recipe(recipe, runs=tmp_path / "runs")
