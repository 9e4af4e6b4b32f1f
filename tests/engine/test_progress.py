"""Metrics on disk: what is read back, and what a full disk does."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.engine.checkpoint import read_jsonl
from limbeck.engine.progress import JsonLines, TensorBoard, duration
from limbeck.errors import UserError

ROW = {"step": 3, "split": "train", "term/ce": 0.25, "lr/student": 1e-3, "note": "x", "bad": float("nan")}


def test_rows_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a" / "metrics.jsonl"
    log = JsonLines(path)
    for step in (1, 2, 3):
        log.log({"step": step, "value": 1 / 3})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 4, "val')  # cut off
    again = JsonLines(path, resume_at=2)
    again.log({"step": 3})
    again.close()
    assert list(read_jsonl(path)) == [{"step": 1, "value": 0.3333333}, {"step": 2, "value": 0.3333333}, {"step": 3}]


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = TensorBoard(tmp_path / "t")
    log.log(ROW)
    log.log({**ROW, "step": 4, "term/ce": 0.125})
    log.close()
    found = reader.EventAccumulator(str(tmp_path / "t"))
    found.Reload()
    assert found.Tags()["scalars"] == ["train/term/ce", "train/lr/student"]
    assert [(e.step, e.value) for e in found.Scalars("train/term/ce")] == [(3, 0.25), (4, 0.125)]


@pytest.mark.parametrize("kind", ["json", "tensorboard"])
def test_a_full_disk_is_an_error_of_one_line_and_closing_is_silent(tmp_path: Path, kind: str) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no device that is always full")
    log = JsonLines(tmp_path / "metrics.jsonl") if kind == "json" else TensorBoard(tmp_path)
    log._file.close()
    log._file = full.open("a" if kind == "json" else "ab")
    if isinstance(log, TensorBoard):
        log._records._writer = log._file
    with pytest.raises(UserError, match=r"cannot write /dev/full: No space left.*goes on from the last checkpoint"):
        log.log(ROW)
    log.close()


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0.24, "0.2 s"), (8.4, "8 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (float("inf"), "?")],
)
def test_durations_as_people_read_them(seconds: float, says: str) -> None:
    assert duration(seconds) == says
