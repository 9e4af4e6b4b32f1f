"""The benchmarks run and write what they found. How fast anything is, is never asserted here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize(
    "name",
    [
        "loop_overhead",
        "startup",
        "teacher_cache",
        "torchdistill_kd",
        "method_cost",
        "vocabulary_head",
        "expert_buffer",
        "block_contrast",
        "matching_step",
    ],
)
def test_each_benchmark_runs_and_writes_its_numbers_with_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    from benchmarks.__main__ import main

    assert main([name, "--quick", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    if "skipped" in printed:
        assert "pip install" in printed and not list(tmp_path.iterdir())
        return
    found = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf8"))
    assert {"cores", "threads", "torch", "load"} <= set(found["machine"]) and found["date"]
    assert all(math.isfinite(row["value"]) for row in found["rows"])
    assert name == "method_cost" or any(row["goal"] is not None for row in found["rows"])
    assert all(row["what"] in printed for row in found["rows"])


def test_a_contender_that_fails_ends_the_race_with_its_error() -> None:
    from benchmarks.measure import race

    def fails(tick) -> None:
        tick()
        raise ValueError("broke")

    def works(tick) -> None:
        for _ in range(9):
            tick()

    with pytest.raises(ValueError, match="broke"):
        race({"works": works, "fails": fails}, rounds=2, length=3)


def test_turns_alternate_and_the_first_round_is_not_counted() -> None:
    from benchmarks.measure import race, steps_of

    seen: list[str] = []

    def contender(name: str):
        def run(tick) -> None:
            for _ in range(steps_of(2, 5)):
                seen.append(name)
                tick()

        return run

    laps = race({"a": contender("a"), "b": contender("b")}, rounds=2, length=5)
    assert seen == [*"aaaaabbbbb"] * 3
    assert {name: len(times) for name, times in laps.items()} == {"a": 2, "b": 2}
    assert all(lap.wall >= 0 and lap.cpu >= 0 for times in laps.values() for lap in times)


def test_a_missed_goal_is_the_exit_code_and_an_unknown_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.measure import Report, Row

    from benchmarks import __main__ as program
    from benchmarks import startup

    row = Row.of("slow", [3.0, 4.0, 5.0], "s", goal=1.0)
    assert row.met is False and row.value == 4.0 and row.quartiles == (3.5, 4.5)
    monkeypatch.setattr(startup, "run", lambda *, quick: Report("startup", "about", [row]))
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    assert program.main(["startup"]) == 1
    assert json.loads((tmp_path / "startup.json").read_text(encoding="utf8"))["rows"][0]["met"] is False
    with pytest.raises(SystemExit):
        program.main(["nosuch"])
