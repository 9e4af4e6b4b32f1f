"""Checkpoints: nothing half-written, nothing believed that was altered, never pickle."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from limbeck.engine import checkpoint
from limbeck.errors import UserError

STATE = {"a": torch.arange(6.0).view(2, 3), "deep": {"list": [1, 2.5, None, "x", torch.ones(2)], "t": (1, 2)}, 3: True}


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 7, STATE)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    step, state = found
    assert step == 7
    assert torch.equal(state["a"], STATE["a"])
    assert state["deep"]["t"] == (1, 2) and state["deep"]["list"][:4] == [1, 2.5, None, "x"] and state[3] is True


def test_tensors_that_share_memory_are_kept_apart(tmp_path: Path) -> None:
    x = torch.ones(4)
    checkpoint.save(tmp_path, 1, {"x": x, "view": x[:2]})
    state = checkpoint.latest(tmp_path)[1]
    state["x"].zero_()
    assert torch.equal(state["view"], torch.ones(2))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, 1, {"x": torch.tensor(1.0)})
    checkpoint.save(tmp_path, 2, {"x": torch.tensor(2.0)})
    newest = checkpoint.checkpoints(tmp_path)[0]
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    newest.write_bytes(bytes(data[: len(data) // 2]) if damage == "truncate" else b"" if damage == "empty" else data)
    said: list[str] = []
    step, state = checkpoint.latest(tmp_path, warn=said.append)
    assert step == 1 and state["x"] == 1
    assert len(said) == 1 and newest.name in said[0] and "damaged" in said[0]


def test_a_full_disk_ends_with_one_line_and_the_checkpoint_before_it_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, {"x": torch.tensor(1.0)})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        checkpoint.save(tmp_path, 2, {"x": torch.tensor(2.0)})
    assert "\n" not in str(caught.value)
    assert [p.name[:13] for p in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.latest(tmp_path)[0] == 1


def test_what_is_no_plain_value_is_refused_not_pickled(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object"):
        checkpoint.save(tmp_path, 1, {"x": object()})


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        checkpoint.save(tmp_path, step, {"x": torch.tensor(float(step))}, keep=2)
    assert [int(p.name[5:13]) for p in checkpoint.checkpoints(tmp_path)] == [4, 3]
