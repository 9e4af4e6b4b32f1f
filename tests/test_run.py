"""Runs: what is found again, what is done anew, and what several processes do together."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck import processes
from limbeck.arms import arm_recipe, phase_recipes
from limbeck.codehash import object_code
from limbeck.engine.checkpoint import read_jsonl
from limbeck.errors import UserError
from limbeck.recipe import load_recipe
from limbeck.registry import clear
from limbeck.run import Result, run_recipe
from toolkit.runs import STAGES, tiny


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a tiny recipe without controls in a new working directory."""
    monkeypatch.chdir(tmp_path)

    def go(*, fresh: bool = False, seed: int | None = None, quiet: bool = True, **changes: Any) -> Result:
        return run_recipe(tiny(**{"controls": False, **changes}), quiet=quiet, fresh=fresh, seed=seed)

    return go


def trainings(result: Result, arm: str = "student") -> set[str]:
    """The artifacts of an arm: one for each time that it was trained."""
    return {path.name for path in (result.folder / "artifacts").glob(f"{arm}-*")}


def test_a_run_is_described_in_its_directory(run: Callable[..., Result]) -> None:
    result = run(stages=None, evaluate=["accuracy"])
    assert result.folder.name.startswith("tiny-")
    assert {p.name for p in result.folder.iterdir()} == {
        "artifacts", "manifest.json", "recipe.yaml", "report.html", "results.json", "student",
    }  # fmt: skip
    manifest = json.loads((result.folder / "manifest.json").read_text(encoding="utf8"))
    assert manifest["packages"]["torch"] and manifest["machine"]["threads"] and manifest["finished"]
    assert manifest["recipe"]["hash"].startswith(result.folder.name.removeprefix("tiny-"))
    again = load_recipe(result.folder / "recipe.yaml")
    assert again.fingerprint() == manifest["recipe"]["hash"], "what was run is there to be run again"


def test_a_finished_run_is_not_gone_through_again(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(stages=None, evaluate=["accuracy"])

    def never(*arguments: Any) -> None:
        raise AssertionError("a stage ran")

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.run.run_stage", never)
        assert run(stages=None, evaluate=["accuracy"]).results == first.results
        with pytest.raises(AssertionError):
            run(stages=None, evaluate=["accuracy"], seed=1)
        first.report.unlink()
        with pytest.raises(AssertionError):
            run(stages=None, evaluate=["accuracy"])
    assert run(stages=None, evaluate=["accuracy"]).report.is_file()
    assert len(trainings(first)) == 1


def test_changed_data_is_never_answered_with_old_results(run: Callable[..., Result]) -> None:
    def table(shift: int) -> str:
        return "\n".join(["a,b,y", *(f"{i % 7},{i % 5},{'uv'[(i + shift) // 3 % 2]}" for i in range(60))])

    Path("t.csv").write_text(table(0), encoding="utf8")
    data = {"name": "csv", "path": "t.csv", "target": "y"}
    first = run(data=data, stages=None, evaluate=["accuracy"])
    Path("t.csv").write_text(table(1), encoding="utf8")
    second = run(data=data, stages=None, evaluate=["accuracy"])
    assert second.folder == first.folder and len(trainings(first)) == 2
    assert second.results["arms"]["student"]["artifact"] != first.results["arms"]["student"]["artifact"]


CODE = """
from limbeck import Method, Update, forward
from limbeck.losses import label_loss


class Scaled(Method):
    needs = {}

    def __init__(self, *, scale: float = 1.0):
        self.scale = scale

    def updates(self, batch, clock):
        yield Update("student", {"ce": label_loss(forward(self.student, batch).logits * self.scale * FACTOR, batch)})
"""


@pytest.fixture
def scaled(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Write the user's method anew, with another factor in its code."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(factor: int) -> None:
        Path("scaled_method.py").write_text(CODE.replace("FACTOR", str(factor)), encoding="utf8")
        sys.modules.pop("scaled_method", None)
        clear()

    yield write
    sys.modules.pop("scaled_method", None)
    clear()


def test_a_changed_method_is_trained_anew(run: Callable[..., Result], scaled: Callable[[int], None]) -> None:
    scaled(1)
    blocks: dict[str, Any] = {"teacher": None, "method": {"name": "scaled_method:Scaled"}, "evaluate": ["accuracy"]}
    first = run(**blocks)
    assert trainings(run(**blocks)) == trainings(first) and len(trainings(first)) == 1
    scaled(9)
    second = run(**blocks)
    assert second.folder == first.folder and len(trainings(first)) == 2


def test_fresh_moves_the_run_aside_and_never_deletes(run: Callable[..., Result]) -> None:
    first = run()
    (first.folder / "note").write_text("mine", encoding="utf8")
    assert run(fresh=True).folder == first.folder
    (old,) = first.folder.parent.glob("*.old-*")
    assert (old / "note").exists() and (old / "results.json").exists()


def test_stages_of_ones_own(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    trained = run(stages=["teacher", "train"])
    assert trained.results["arms"]["student"]["metrics"] == {} and trained.summary().endswith("see the report")
    assert not (trained.folder / "results.json").exists()
    with pytest.raises(UserError, match="put it after the stage 'train'"):
        run(stages=["teacher", "export"])


def test_a_run_directory_that_cannot_be_made_is_one_line(run: Callable[..., Result]) -> None:
    Path("runs").write_text("a file", encoding="utf8")
    with pytest.raises(UserError, match="cannot make the run directory"):
        run()


def test_quiet_says_nothing(run: Callable[..., Result], capsys: pytest.CaptureFixture[str]) -> None:
    run(seed=11)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_seeds_change_the_student_and_keep_the_teacher(run: Callable[..., Result]) -> None:
    runs = [run(seed=s) for s in (0, 1)]
    assert runs[0].folder != runs[1].folder
    weights = [r.student.state_dict() for r in runs]
    assert not all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    assert runs[0].metrics["teacher"] == runs[1].metrics["teacher"]


def test_a_teacher_is_trained_once(run: Callable[..., Result], capsys: pytest.CaptureFixture[str]) -> None:
    teacher = {"name": "mlp", "hidden": 9, "train": {"steps": 3}}
    run(teacher=teacher, quiet=False)
    assert "teacher: trains" in capsys.readouterr().err
    run(teacher=teacher, student={"name": "mlp", "hidden": 3}, quiet=False)
    assert "teacher: trains" not in capsys.readouterr().err
    run(teacher={**teacher, "train": {"steps": 2}}, quiet=False)
    assert "teacher: trains" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Variants of a recipe


def test_an_arm_of_another_method_keeps_the_phases_but_not_what_they_say_of_the_method() -> None:
    features = {"name": "mse", "student": "stages.0", "teacher": "stages.0", "projector": {"name": "linear"}}
    recipe = load_recipe(
        tiny(
            method={"name": "compose", "terms": {"hint": features}},
            train={"steps": 4, "learners": {"projectors": {"clip": 1.0}}},
            phases=[
                {"name": "fit", "learners": ["projectors"]},
                {"name": "hints", "from": "fit", "train": {"steps": 2}, "learners": ["student", "projectors"]},
                {"name": "all", "method": {"terms": {"hint": {"weight": 0.5}}}},
            ],
        )
    )
    alone = arm_recipe(recipe, recipe.control_arms["alone"])
    assert [(p.title, p.recipe.train.steps, p.learners, p.start) for p in phase_recipes(alone)] == [
        ("hints", 2, None, None), ("all", 4, None, None),
    ]  # fmt: skip
    assert alone.method.name == "supervised" and not alone.teachers and not alone.train.learners
    warmer = arm_recipe(recipe, {"method": {"terms": {"hint": {"weight": 2.0}}}})
    assert len(warmer.phases) == 3 and warmer.train.learners, "the same method keeps everything"


def test_an_arm_of_another_method_keeps_a_phase_that_learns_from_labels() -> None:
    phases = [
        {"name": "first"},
        {"name": "tune", "method": "supervised"},
        {"name": "last", "method": {"temperature": 2.0}},
    ]
    recipe = load_recipe(tiny(method={"name": "kd"}, train={"steps": 4}, phases=phases))
    other = arm_recipe(recipe, {"method": {"name": "dkd"}})
    assert [p.recipe.method.name for p in phase_recipes(other)] == ["dkd", "supervised", "dkd"]


def test_an_arm_of_another_method_that_loses_a_learner_s_words_says_so(
    run: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    hint = {"name": "mse", "student": "stages.0", "teacher": "stages.0", "projector": {"name": "linear"}}
    other = {"method": {"name": "dkd"}}
    same_role = {"method": {"name": "fitnets"}}
    projectors = {"learners": {"projectors": {"clip": 1.0}}}
    arms = {
        "other": other,
        "silent": same_role,
        "spoken": {**same_role, "train": projectors},
        "meant": {**same_role, "train": {"learners": None}},
    }
    run(
        method={"name": "compose", "terms": {"hint": hint}},
        train={"steps": 2, "batch_size": 16, **projectors},
        controls=arms,
        quiet=False,
    )
    said = [line for line in capsys.readouterr().err.splitlines() if "is left out" in line]
    assert len(said) == 1 and said[0].startswith("silent: train.learners.projectors of the recipe is left out")


def test_controls_are_trained_on_the_data_and_by_the_teacher_that_they_name(run: Callable[..., Result]) -> None:
    fewer = {"data": {"train_size": 32}, "train": {"steps": None, "epochs": 1}}
    other = {"teacher": {"hidden": 5}}
    result = run(controls={"fewer": fewer, "other": other}, train={"epochs": 1, "batch_size": 16})
    steps = {name: arm["steps"] for name, arm in result.results["arms"].items() if name != "teacher"}
    assert steps == {"student": 5, "fewer": 2, "other": 5}
    logs = [result.results["arms"][a]["log"] for a in ("student", "other")]
    first = [next(iter(read_jsonl(result.folder / log)))["term/kd"] for log in logs]
    assert first[0] != first[1], "another teacher says other things"


def test_roles_that_a_method_does_not_have_are_refused(run: Callable[..., Result]) -> None:
    with pytest.raises(UserError, match=r"train.learners: method kd has no learner 'critic'; it has student"):
        run(train={"steps": 2, "batch_size": 16, "learners": {"critic": {"clip": 1.0}}})
    with pytest.raises(UserError, match="phases: learners: method kd has no learner 'studnet'; did you mean 'student'"):
        run(phases=[{"learners": ["studnet"]}])


def test_the_hash_of_code_sees_what_is_done_and_not_where_it_stands() -> None:
    def compiled(text: str) -> bytes:
        space: dict[str, Any] = {}
        exec(text, space)
        return object_code(space["F"])

    one = "class F:\n    def go(self, x):\n        return [y + 1 for y in x]\n"
    assert compiled(one) == compiled("\n\n" + one)
    assert compiled(one) != compiled(one.replace("1", "2"))
    assert compiled(one) != compiled(one.replace("y + 1", "y.real + 1"))


# ---------------------------------------------------------------------------------------------------------------------
# Several processes

WORKER = """
import os, signal, sys, time
from limbeck.processes import say_last
rank = os.environ["RANK"]
assert (os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("2", rank)
"""


def start(tmp_path: Path, code: str) -> int:
    (tmp_path / "worker.py").write_text(WORKER + code, encoding="utf8")
    return processes.start(2, [str(tmp_path / "worker.py")])


def test_last_words_of_all_processes_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, "say_last('limbeck: no such file'); sys.exit(2)") == 2
    assert capsys.readouterr().err == "limbeck: no such file\n"
    assert start(tmp_path, "pass") == 0 and capsys.readouterr().err == ""


def test_one_that_fails_alone_ends_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.1)
    assert start(tmp_path, "if rank == '0': time.sleep(60)\nsay_last('limbeck: disk full'); sys.exit(2)") == 2
    assert capsys.readouterr().err == "limbeck: disk full\n"


def test_a_signal_reaches_every_process_once(tmp_path: Path) -> None:
    code = f"""
got = []
signal.signal(signal.SIGINT, lambda *a: got.append(1))
open({str(tmp_path)!r} + "/ready" + rank, "w").close()
if rank == "0":
    while not os.path.exists({str(tmp_path)!r} + "/ready1"):
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGINT)
while not got:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(130 if len(got) == 1 else 1)
"""
    assert start(tmp_path, code) == 130


def test_several_nodes_are_not_started_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="torchrun --nnodes=2"):
        processes.relaunch(load_recipe(tiny(train={"steps": 1, "nodes": 2})), [])
    assert processes.relaunch(load_recipe(tiny()), []) is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes.relaunch(load_recipe(tiny(train={"steps": 1, "devices": 2})), []) is None


class Fabric:
    """One rank of two, the other being simulated by what it broadcasts."""

    world_size = 2

    def __init__(self, rank: int, heard: Any = None) -> None:
        self.global_rank, self.heard, self.told = rank, heard, None

    def broadcast(self, value: Any) -> Any:
        self.told = value
        return value if self.global_rank == 0 else self.heard


def test_an_error_of_the_first_process_is_raised_in_all() -> None:
    def fails() -> None:
        raise UserError("the teacher was replaced")

    first = Fabric(0)
    with pytest.raises(UserError, match="was replaced"):
        processes.once(first, fails)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="was replaced"):
        processes.once(Fabric(1, first.told), lambda: pytest.fail("only the first works"))  # type: ignore[arg-type]
    processes.once(Fabric(1), lambda: pytest.fail("only the first works"))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_over_two_processes_is_whole_and_its_errors_are_one_line(tmp_path: Path, strategy: str) -> None:
    import subprocess

    import yaml

    train = {"steps": 4, "batch_size": 16, "devices": 2, "strategy": strategy}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny(train=train)), encoding="utf8")
    command = [sys.executable, "-m", "limbeck.cli", "run", "recipe.yaml", "--quiet", "--json"]

    def go(*more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    done = go()
    assert done.returncode == 0, done.stderr
    arms = json.loads(done.stdout)["results"]["arms"]
    single = run_recipe(tiny(), quiet=True, runs=tmp_path / "single")
    for name, arm in arms.items():
        assert arm["metrics"]["nll"] == pytest.approx(single.metrics[name]["nll"], rel=1e-3), name
    wrong = go("--set", "evaluate=[{name: calibration, bins: 0}]")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    own = [line for line in wrong.stderr.splitlines() if not line.startswith("[W")]  # torch may warn of the network
    assert own == ["limbeck: calibration needs at least one bin, not bins: 0"]


def test_the_stages_of_the_tests_are_those_of_a_run() -> None:
    from limbeck.run import DEFAULT_STAGES

    assert [*STAGES, "report"] == list(DEFAULT_STAGES)
