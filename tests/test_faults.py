"""What happens when something goes wrong in the middle: real processes, real signals, a real full disk.

Only the wall clock decides when a process dies, so each test kills at a moment that it sees in the run directory, and
what is asserted holds whatever the moment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.cli import main
from limbeck.engine import checkpoint
from toolkit.accidents import Command, started

RECIPE = """\
title: Accidents
data: {name: digits, train_size: 64, test_size: 40}
teacher: {name: mlp, hidden: 16, train: {steps: 400}}
student: {name: mlp, hidden: 8}
method: {name: dkd}
train:
  {steps: 500, batch_size: 16, ema: [0.9], checkpoint_every: 0.05, validate_every: 50, optimizer: {lr: 2.0e-3}}
evaluate: [accuracy]
controls: false
"""
GOES_ON = "the same command goes on from there"


class Place:
    """A folder in which the command is started again and again: its runs, and the library's own folder."""

    def __init__(self, folder: Path, home: Path | None = None, recipe: str = RECIPE) -> None:
        self.folder, self.home = folder, folder.parent / f"{folder.name}-home"
        folder.mkdir()
        (folder / "recipe.yaml").write_text(recipe, encoding="utf8")
        if home is not None:
            shutil.copytree(home, self.home)

    def start(self, *more: str) -> AbstractContextManager[Command]:
        """The same command as always."""
        environment = {"LIMBECK_HOME": str(self.home)}
        return started(self.folder, "run", "recipe.yaml", "--quiet", *more, environment=environment)

    def run(self, *more: str) -> Command:
        """To its end."""
        with self.start(*more) as command:
            command.wait()
        return command

    def interrupt(self, number: signal.Signals, pattern: str, count: int = 1) -> Command:
        """Until so many files of a pattern are there that were not before; then the signal."""
        before = set(self.files(pattern))
        with self.start() as command:
            command.send(number, lambda: len(set(self.files(pattern)) - before) >= count)
        return command

    def files(self, pattern: str) -> list[Path]:
        """Files of a pattern, below the runs and the library's folder."""
        return sorted([*self.folder.glob(f"runs/{pattern}"), *self.home.glob(pattern)])

    @property
    def student(self) -> dict[str, torch.Tensor]:
        """The delivered weights."""
        (path,) = self.folder.glob("runs/*/student/model.safetensors")
        return load_file(path)

    @property
    def log(self) -> list[dict[str, float]]:
        """The student's metrics without the times."""
        (path,) = self.folder.glob("runs/*/artifacts/student-*/metrics.jsonl")
        rows = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


TEACHER = "teachers/*/checkpoints/step-*.safetensors"
STUDENT = "*/artifacts/student-*/checkpoints/step-*.safetensors"
SCORES = "*/artifacts/*/scores-*.json"
TRAINED = "*/artifacts/student-*/done.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that nothing happened to."""
    place = Place(tmp_path_factory.mktemp("whole") / "run")
    done = place.run()
    assert done.code == 0, done.err
    return place


def assert_same(one: Place, other: Place) -> None:
    """Same student, to the last bit, and the same story of how it got there."""
    a, b = one.student, other.student
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
    assert one.log == other.log


def test_killed_again_and_again_it_ends_as_if_nothing_had_happened(whole: Place, tmp_path: Path) -> None:
    place = Place(tmp_path / "run")
    for pattern in (TEACHER, STUDENT, STUDENT):
        assert place.interrupt(signal.SIGKILL, pattern).code == -signal.SIGKILL
        assert not place.files(TRAINED), "it was killed too late to tell anything"
    half_written = place.files(STUDENT)[0].parent / ".step-00000001.safetensors.1.part"
    half_written.write_bytes(b"x")
    assert place.interrupt(signal.SIGKILL, TRAINED).code == -signal.SIGKILL
    done = place.run()
    assert done.code == 0, done.err
    assert_same(whole, place)
    assert not half_written.exists(), "every killed process would leave a checkpoint's bytes behind"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_it_says_how_to_go_on(whole: Place, tmp_path: Path, number: signal.Signals, code: int) -> None:
    place = Place(tmp_path / "run", whole.home)
    stopped = place.interrupt(number, STUDENT)
    assert stopped.code == code
    (line,) = stopped.lines
    assert line.startswith("limbeck: stopped at step ") and line.endswith(GOES_ON)
    step = int(line.split("step ")[1].split(";")[0])
    newest, _ = checkpoint.latest(place.files(STUDENT)[-1].parent) or (0, None)
    assert newest == step, "the checkpoint is of another step than it says"
    done = place.run()
    assert done.code == 0 and not done.lines, done.err
    assert_same(whole, place)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_where_nothing_trains_it_stops_at_once(
    whole: Place, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The student is trained: all that is left is judging it and writing the report."""
    place = Place(tmp_path / "run", whole.home)
    shutil.copytree(whole.folder / "runs", place.folder / "runs")
    for done in [*place.folder.glob("runs/*/[!a]*"), *place.files(SCORES)]:
        shutil.rmtree(done) if done.is_dir() else done.unlink()
    stopped = place.interrupt(number, "*/manifest.json")
    assert stopped.code == code, stopped.err
    (line,) = stopped.lines
    assert line.startswith("limbeck: stopped at once") and line.endswith(GOES_ON)
    assert not list(place.folder.glob("runs/*/report.html"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(whole: Place, tmp_path: Path) -> None:
    place = Place(tmp_path / "run", whole.home)
    place.interrupt(signal.SIGKILL, STUDENT, 2)
    older, newest = place.files(STUDENT)[-2:]
    newest.write_bytes(newest.read_bytes()[:-7])
    done = place.run()
    assert done.code == 0
    (line,) = done.lines
    assert newest.name in line and "damaged" in line and older.name not in line
    assert_same(whole, place)


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 120 kB, where such a thing may be made."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0 or _mount(disk, "size=120k").returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def _mount(disk: Path, options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=False, capture_output=True)


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(whole: Place, tmp_path: Path, small_disk: Path) -> None:
    place = Place(tmp_path / "run", whole.home)
    full = place.run("--runs", str(small_disk))
    assert full.code == 2, full.err
    (line,) = full.lines
    assert line.startswith("limbeck: ") and "space" in line.lower(), line
    kept = sorted(small_disk.glob(STUDENT))
    assert kept and all(checkpoint.load(path) for path in kept)
    _mount(small_disk, "remount,size=20m")
    done = place.run("--runs", str(small_disk))
    assert done.code == 0, done.err
    (student,) = small_disk.glob("*/student/model.safetensors")
    delivered = load_file(student)
    assert all(torch.equal(v, delivered[k]) for k, v in whole.student.items())


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.yaml", None, "no such file"),
        ("folder", "folder", "is a folder"),
        ("broken.yaml", "title: [x\nmethod: {", "broken.yaml:"),
        ("binary.yaml", "\x00\x01", "binary.yaml"),
        ("list.yaml", "- a\n- b\n", "map"),
        ("empty.yaml", "", "empty.yaml"),
        ("wrong.yaml", RECIPE.replace("name: dkd", "name: dkdd, temprature: 3"), "did you mean 'dkd'?"),
        ("values.yaml", RECIPE.replace("hidden: 8", "hiden: 8").replace("steps: 500", "steps: many"), "hiden"),
        ("teacher.yaml", RECIPE.replace("teacher: {name: mlp, hidden: 16, train: {steps: 400}}\n", ""), "teacher"),
    ],
)
def test_a_bad_recipe_is_told_in_lines_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, content: str | None,
    says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    if content == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_text(content, encoding="utf8")
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", name, "--set", "train.workers=0"]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert says.lower() in printed.err.lower() and "Traceback" not in printed.err
    assert all(len(line) < 400 for line in printed.err.splitlines())
    assert sorted(tmp_path.rglob("*")) == before


METHOD = """\
from limbeck import Method, Term, Update, forward


class Explodes(Method):
    def __init__(self, *, at: int = 7):
        self.at = at

    def updates(self, batch, clock):
        values = forward(self.student, batch).logits.square().sum(1)
        if clock.step == self.at:
            values = values * float("nan")
        yield Update("student", {"square": Term.of(values)})
"""


def test_a_term_that_becomes_nan_is_named_with_its_step(tmp_path: Path) -> None:
    """The user's own method, beside the recipe."""
    recipe = RECIPE.replace("name: dkd", "name: 'accident_method:Explodes', at: 7")
    recipe = "\n".join(line for line in recipe.splitlines() if not line.startswith("teacher"))
    place = Place(tmp_path / "run", recipe=recipe)
    (place.folder / "accident_method.py").write_text(METHOD, encoding="utf8")
    done = place.run()
    assert done.code == 2, done.err
    (line,) = done.lines
    assert "'square'" in line and "nan" in line and "step 7" in line
    kept = sorted(p.as_posix() for p in place.folder.glob("runs/*/artifacts/student-*/checkpoints/step-*"))
    assert (
        f"last good checkpoint is {kept[-1].removeprefix(place.folder.as_posix() + '/')}"
        if kept
        else "no checkpoint yet"
    ) in line
    assert not list(place.folder.glob("runs/*/student"))
