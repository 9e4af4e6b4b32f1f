"""The command line: what is asked is answered on standard output, everything else goes to standard error."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from limbeck import cli
from limbeck.errors import UserError
from toolkit.runs import Said, command, refused, written


@pytest.fixture
def limbeck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """``limbeck ARGUMENTS`` in a new working directory."""
    monkeypatch.chdir(tmp_path)

    def go(*arguments: str | Path) -> Said:
        return command(capsys, *arguments)

    return go


def here() -> list[str]:
    """Names in the working directory."""
    return sorted(path.name for path in Path().iterdir())


def test_run_answers_in_json_and_talks_on_the_other_stream(limbeck: Any) -> None:
    said = limbeck("run", written(Path()), "--json")
    assert said.code == 0 and set(said.json) == {"folder", "report", "results"}
    assert "student: done in" in said.err and "student: done" not in said.out
    quiet = limbeck("run", written(Path(), "other", seed=1), "--json", "--quiet")
    assert quiet.err == "" and quiet.json["results"]["seed"] == 1


def test_run_answers_in_words(limbeck: Any) -> None:
    said = limbeck("run", written(Path(), stages=None), "--quiet", "--seed", "3", "--runs", "elsewhere")
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines] == ["Teacher", "Student", "Student", "Kept:", "Report:"]
    report = Path(lines[-1].removeprefix("Report: "))
    assert report.is_file() and report.parent.name.endswith("-seed3") and report.parts[0] == "elsewhere"
    report.unlink()
    again = limbeck("report", report.parent)
    assert again.out.strip() == str(report) and report.is_file()


def test_a_finished_run_is_told_at_once(limbeck: Any) -> None:
    recipe = written(Path(), stages=None, evaluate=["accuracy"], controls=False)
    first = limbeck("run", recipe)
    began = time.monotonic()
    second = limbeck("run", recipe)
    assert second.out == first.out and "finished before" in second.err and "steps" not in second.err
    assert time.monotonic() - began < 1.0


def test_the_plan_says_where_every_value_comes_from(limbeck: Any) -> None:
    said = limbeck("run", written(Path()), "--set", "method.temperature=3", "--runs", "r")
    plan = {line.split()[0]: line.strip() for line in said.err.splitlines() if line.startswith("  ")}
    assert (
        plan["method"] == "method    kd; --set: temperature=3; default: ce_weight=0.1, kd_weight=0.9, direction=forward"
    )
    assert plan["student"] == "student   mlp, hidden=4; the data: in_features=64, classes=10; default: layers=1"
    assert plan["controls"] == "controls  alone" and plan["seed"] == "seed      0"
    assert "parameters, none trains; hash" in said.err and "its own score: right on" in said.err
    assert "student: trains 310 of 310 parameters, 4 steps" in said.err


def test_check_shows_the_plan_and_what_it_takes_and_writes_nothing(limbeck: Any) -> None:
    recipe = written(Path())
    said = limbeck("check", recipe)
    assert said.code == 0 and "student.hidden" in said.out and "recipe.yaml:" in said.out
    assert "student parameters  310" in said.out and "training time" in said.out
    whole = limbeck("check", recipe, "--json").json
    assert whole["estimate"]["teacher parameters"] == 910 and whole["estimate"]["steps"] == 4
    lines = recipe.read_text(encoding="utf8").splitlines()
    line = 1 + lines.index("  steps: 4")
    assert ["train.steps", 4, f"recipe.yaml:{line}"] in whole["plan"]
    assert here() == ["recipe.yaml"]


def test_a_static_check_builds_nothing(limbeck: Any) -> None:
    said = limbeck("check", "vision/kd", "--static", "--json")
    assert said.code == 0 and said.json["estimate"] == {}
    odd = limbeck("check", written(Path(), method={"name": "supervised"}), "--static")
    assert odd.err == "note: method supervised states no need of a teacher, the recipe has teacher\n"


def test_recipes_go_by_their_names_in_the_gallery(limbeck: Any) -> None:
    sizes = ["data.train_size=60", "data.test_size=40", "train.epochs=1", "teacher.train.epochs=1", "controls=false"]
    settings = [word for size in sizes for word in ("--set", size)]
    said = limbeck("run", "vision/kd", "--json", "--set", "stages=[teacher, train, evaluate, export]", *settings)
    assert said.code == 0 and said.json["results"]["slug"] == "kd"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "vision/kdd"], ["no recipe of that name", "did you mean 'vision/kd'?"]),
        (["run", "missing.yaml"], ["missing.yaml", "no such file"]),
        (["run", "."], ["is a folder"]),
        (["check", "zzzz"], ["limbeck list"]),
        (["compare", "vision/kdd"], ["did you mean"]),
        (["prove", "missing.yaml"], ["no such file"]),
        (["list", "--family", "visoin"], ["no family is called 'visoin'; did you mean 'vision'?"]),
        (["list", "--kind", "modle"], ["no kind of part is called 'modle'; did you mean 'model'?"]),
        (["list", "--kind", "zzz"], ["there is method, model"]),
        (["show", "dkdd"], ["no method is called 'dkdd'; did you mean 'dkd'?"]),
        (["show", "model:cnnn"], ["no model is called 'cnnn'; did you mean 'cnn'?"]),
        (["show", "foo:bar"], ["cannot import 'foo'"]),
        (["report", "nowhere"], ["nowhere is not a finished run"]),
        (["export", "nowhere", "--format", "onnx"], ["no folder nowhere"]),
        (["init", "x.yaml", "--method", "dkdd"], ["did you mean 'dkd'?"]),
        (["init", "no/such/folder/x.yaml"], ["cannot write"]),
    ],
)
def test_wrong_names_are_one_line_and_nothing_is_written(limbeck: Any, arguments: list[str], words: list[str]) -> None:
    refused(limbeck(*arguments), *words)
    assert here() == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.epoch=1", ["train has no 'epoch'; did you mean 'epochs'?"]),
        ("teh=1", ["did you mean 'teacher'?"]),
        ("train", ["must be KEY=VALUE"]),
        ("method.name=dkdd", ["did you mean 'dkd'?"]),
        ("method.temprature=2", ["did you mean 'temperature'?"]),
        ("student.name=mpl", ["did you mean 'mlp'?"]),
        ("data.name=digts", ["did you mean 'digits'?"]),
        ("evaluate=[acuracy]", ["did you mean 'accuracy'?"]),
        ("train.optimizer.name=adm", ["did you mean"]),
        ("train.schedule=cosin", ["did you mean 'cosine'?"]),
        ("student.path=nowhere", ["no file or folder"]),
        ("train.steps=many", ["train.steps"]),
    ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(limbeck: Any, setting: str, words: list[str]) -> None:
    refused(limbeck("run", written(Path()), "--set", setting), "--set", *words)
    assert here() == ["recipe.yaml"]


def test_wrong_commands_and_flags_end_with_2(limbeck: Any) -> None:
    for arguments in (["runn"], ["run"], ["run", "kd", "--sett", "a=1"], []):
        assert limbeck(*arguments).code == 2


def test_list_and_show(limbeck: Any) -> None:
    rows = [json.loads(line) for line in limbeck("list", "--json").out.splitlines()]
    assert {"slug", "family", "title", "arxiv", "needs", "evidence"} <= set(rows[0])
    assert {"kd", "dkd", "quickstart"} <= {row["slug"] for row in rows}
    table = limbeck("list", "--family", "vision").out.splitlines()
    assert table[0].split() == ["slug", "family", "evidence", "title"] and len(table) < len(rows) + 1
    models = [json.loads(line)["name"] for line in limbeck("list", "--kind", "model", "--json").out.splitlines()]
    assert models == sorted(models) and "cnn" in models
    shown = limbeck("show", "dkd").out
    assert "temperature: float = 4.0" in shown and "Needs of teacher: logits" in shown and "Recipe:" in shown
    cnn = limbeck("show", "model:cnn").out
    assert "classes: int  (from the data, where left out)" in cnn and "Gives: features, logits" in cnn
    assert limbeck("show", "model:cnn", "--json").json["arguments"][0]["name"] == "in_channels"


def test_schema_is_json(limbeck: Any) -> None:
    schema = json.loads(limbeck("schema").out)
    assert {"data", "teacher", "student", "method", "train"} <= set(schema["properties"])


def test_what_init_writes_runs_as_it_is(limbeck: Any) -> None:
    said = limbeck("init")
    assert said.out == "recipe.yaml\n" and said.code == 0
    text = Path("recipe.yaml").read_text(encoding="utf8")
    assert "# limbeck run recipe.yaml" in text and "temperature: 4.0" in text and "# T, softens both" in text
    sizes = ["--set", "train.epochs=1", "--set", "stages=[teacher, train, evaluate, export]"]
    assert limbeck("run", "recipe.yaml", "--json", "--quiet", *sizes).code == 0
    refused(limbeck("init"), "recipe.yaml exists already")
    assert Path("recipe.yaml").read_text(encoding="utf8") == text


def test_warnings_are_one_line(limbeck: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def warned(arguments: Any) -> None:
        warnings.warn("look out", stacklevel=1)

    monkeypatch.setattr(cli, "list_", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(
            warnings, "showwarning", lambda m, *rest, **more: sys.stderr.write(warnings.formatwarning(m))
        )
        assert limbeck("list").err == "warning: look out\n"


def test_a_score_that_is_no_number_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_json({"nll": float("nan"), "list": [float("inf"), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"nll": None, "list": [None, 1.5]}


class Interrupted(Exception):  # noqa: N818
    """Stands for the one of limbeck.engine.stopping: the command line goes by the name."""

    code = 143


class OutOfMemoryError(RuntimeError):
    """Likewise, torch's."""


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("the cause, and what to do"), 2, "limbeck: the cause, and what to do"),
        (Interrupted("stopped at step 7; the same command goes on from there"), 143, "stopped at step 7"),
        (KeyboardInterrupt(), 130, "the same command goes on from there"),
        (OutOfMemoryError("CUDA"), 2, "raise train.accumulate"),
    ],
)
def test_how_commands_end(
    limbeck: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str
) -> None:
    def fails(arguments: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "list_", fails)
    said = limbeck("list")
    assert said.code == code and says in said.err and said.err.count("\n") == 1


def test_errors_of_the_library_itself_keep_their_traceback(limbeck: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(arguments: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "list_", fails)
    with pytest.raises(ZeroDivisionError):
        limbeck("list")


def test_a_reader_that_closes_early_is_no_error(tmp_path: Path) -> None:
    program = "import sys; from limbeck.cli import main; sys.exit(main(['schema']))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(
    limbeck: Any, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    from limbeck.engine.loop import Loop

    recipe = written(Path(), train={"steps": 8, "batch_size": 16}, controls=False)
    step = Loop._one_step

    def stopped(loop: Loop, *arguments: Any) -> None:
        step(loop, *arguments)
        if loop.settings.label == "student" and loop.step == 2:
            signal.raise_signal(number)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_one_step", stopped)
        said = limbeck("run", recipe)
    assert said.code == 130 and said.out == ""
    assert said.err.splitlines()[-1] == "limbeck: stopped at step 3; the same command goes on from there"
    again = limbeck("run", recipe, "--json")
    assert again.code == 0 and "student: going on from step 3" in again.err
    whole = limbeck("run", recipe, "--json", "--runs", "whole")
    assert whole.arms["student"]["metrics"] == again.arms["student"]["metrics"]
