"""Contract 10: interrupted equals uninterrupted, bit for bit. Contract 12: nothing that is written can run code."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limbeck.engine.stopping import Interrupted
from limbeck.recipe import load_recipe
from limbeck.run import run_recipe
from toolkit.benches import STEPS, Bench, Run, recipe_paths, small, stop_after, trained


def differing(one: Run, other: Run) -> list[str]:
    """Names of the learnt tensors that are not the same to the last bit."""
    assert one.weights.keys() == other.weights.keys()
    return [k for k, v in one.weights.items() if not torch.equal(v, other.weights[k])]


def test_a_run_that_was_cut_off_ends_like_one_that_was_not(
    bench: Bench, whole: Callable[[Bench], Run], tmp_path: Path
) -> None:
    recipe = bench.varied(train={"ema": [0.9]})
    with pytest.raises(Interrupted) as stopped:
        trained(recipe, tmp_path, watch=stop_after(STEPS // 2))
    assert stopped.value.code == 143 and "goes on from there" in str(stopped.value)
    torch.manual_seed(987654321)  # a new process starts from somewhere else
    resumed = trained(recipe, tmp_path)
    assert min((key[0] for key, _ in resumed.noted), default=STEPS // 2) == STEPS // 2, "it started over"
    assert not differing(whole(bench), resumed)
    steps = [row["step"] for row in resumed.rows if row["split"] == "train"]
    assert steps == sorted(set(steps)) == [row["step"] for row in whole(bench).rows if row["split"] == "train"]


def test_the_seed_decides_everything(bench: Bench, whole: Callable[[Bench], Run], tmp_path: Path) -> None:
    recipe = bench.varied(train={"ema": [0.9]})
    torch.manual_seed(123456789)
    again = trained(recipe, tmp_path / "again")
    assert not differing(whole(bench), again)
    assert [n for n in again.noted if n[0][2].startswith("term/")] == [
        n for n in whole(bench).noted if n[0][2].startswith("term/")
    ]
    assert differing(whole(bench), trained(recipe, tmp_path / "other", seed=1))


# -- contract 12 -------------------------------------------------------------------------------------------------------

PICKLE_NAMES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy"}


def is_pickle(data: bytes) -> bool:
    """Whether bytes begin as a pickle does, or are an archive that holds one."""
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return False
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return any(is_pickle(archive.read(name)) for name in archive.namelist())


def pickles(folder: Path, *, names: bool = True) -> list[str]:
    """Files that unpickle when their usual reader opens them, found by their bytes and by name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(p) for p in files if is_pickle(p.read_bytes()) or (names and p.suffix in PICKLE_NAMES)]


def test_the_search_for_pickles_finds_them(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(2)}, tmp_path / "zip.safetensors")
    torch.save({"x": torch.zeros(2)}, tmp_path / "old.json", _use_new_zipfile_serialization=False)
    (tmp_path / "weights.bin").write_bytes(b"")
    (tmp_path / "fine.json").write_text("{}")
    assert len(pickles(tmp_path)) == 3


def test_no_training_writes_a_pickle(bench: Bench, whole: Callable[[Bench], Run]) -> None:
    run = whole(bench)
    assert list(run.folder.rglob("*.safetensors")) and not pickles(run.folder)


def test_a_whole_run_writes_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teacher, cache, checkpoints, controls, scores, export, report: everything that a run may leave."""
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    path = next(p for p in recipe_paths() if p.stem == "kd")
    tree = {**small(load_recipe(path)).tree, "controls": True, "cache": {"mode": "full"}}
    tree |= {"export": ["torch_export"], "evaluate": ["accuracy"]}
    result = run_recipe(tree, runs=tmp_path / "runs", quiet=True)
    assert result.report.is_file() and {"teacher", "student", "alone"} <= result.metrics.keys()
    assert not pickles(result.folder)
    assert not pickles(tmp_path / "home", names=False)  # shards of a cache are raw numbers called .bin
