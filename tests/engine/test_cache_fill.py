"""Filling a teacher cache: within a budget, through kills and full disks, and never into something half right."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch import Tensor

from limbeck.data.base import DataSpec
from limbeck.engine.cache import CacheSpec, TeacherCache, estimate, fill, format_bytes, parse_bytes
from limbeck.engine.cache import format as disk
from limbeck.errors import UserError
from limbeck.models.forward import Signals


class Rows:
    spec = DataSpec(shape=(3,))
    fingerprint = "rows"

    def __init__(self, n: int = 50) -> None:
        self.ids = torch.arange(n) * 7

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Tensor, view: int = 0) -> dict:
        ids = self.ids[indices]
        return {"input": torch.stack([ids, ids + view, ids * 0 + view], 1).float(), "id": ids, "view": view}


class Teacher:
    hash = "teacher"

    def __init__(self, fail_at: int | None = None) -> None:
        self.seen, self.fail_at = 0, fail_at

    def __call__(self, batch: dict) -> Signals:
        self.seen += len(batch["id"])
        if self.fail_at is not None and self.seen > self.fail_at:
            raise KeyboardInterrupt
        return Signals(logits=batch["input"], tokens=batch["id"][:, None])


@pytest.fixture
def small_shards(monkeypatch):
    """Ten rows a shard: 8 bytes of id and 6 of logits each."""
    monkeypatch.setattr(disk, "SHARD_BYTES", 140)


def run(path, teacher=None, source=None, spec=None, signals=("logits",), **kwargs) -> TeacherCache:
    return fill(
        path,
        teacher or Teacher(),
        Rows() if source is None else source,
        spec or CacheSpec(),
        signals,
        batch_size=4,
        **kwargs,
    )


def contents(path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(path.iterdir()) if f.name != "verified.json"}


# ---------------------------------------------------------------------------------------------------------------------
# Size


def test_sizes_are_read_as_people_write_them():
    sizes = {"2GB": 2e9, "1.5 GiB": 1.5 * 2**30, "800k": 8e5, "12": 12, 7: 7, "3TiB": 3 * 2**40}
    for text, expected in sizes.items():
        assert parse_bytes(text) == expected
    for text in ("2 gigs", "-1GB", "0", "", "GB"):
        with pytest.raises(UserError, match="not a size in bytes"):
            parse_bytes(text)
    assert [format_bytes(n) for n in (12, 5_130_000_000, 999_999)] == ["12 B", "5.13 GB", "1 MB"]


@pytest.mark.filterwarnings("ignore:the cached top")
@pytest.mark.parametrize("spec", [CacheSpec(mode="full"), CacheSpec(views=7), CacheSpec(mode="topk", k=2, views=2)])
@pytest.mark.parametrize("shard_bytes", [1000, 1 << 20])
def test_the_directory_is_never_larger_than_the_estimate(tmp_path, spec, shard_bytes, monkeypatch):
    monkeypatch.setattr(disk, "SHARD_BYTES", shard_bytes)
    promised = estimate(spec, {"logits": (3,), "tokens": (1,)}, 50, {"tokens": "int64"})
    cache = run(tmp_path, spec=spec, signals={"logits", "tokens"})
    taken = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert cache.nbytes < taken <= promised


def test_estimates_follow_the_arithmetic():
    """ImageNet, 1000 classes: 8 bytes of id, then 4 or 2 bytes a logit, or (2 + 2) k + 2 for the top k."""
    n, shapes = 1_281_167, {"logits": (1000,)}
    for spec, row in [
        (CacheSpec(mode="full"), 4008),
        (CacheSpec(mode="fp16", views=3), 3 * 2008),
        (CacheSpec(mode="topk", k=10), 8 + 40 + 2),
        (CacheSpec(mode="topk", k=10, logprobs="fp32"), 8 + 60 + 4),
    ]:
        assert estimate(spec, shapes, n) == pytest.approx(n * row, rel=1e-3)


def test_over_budget_says_what_fits_and_what_it_says_does_fit(tmp_path):
    wide, n = {"logits": (1000,)}, 100_000

    class Wide(Teacher):
        def __call__(self, batch):
            return Signals(logits=torch.zeros(len(batch["id"]), 1000))

    spec = CacheSpec(mode="full", views=4, budget="500MB")
    with pytest.raises(UserError) as caught:
        run(tmp_path / "cache", Wide(), Rows(n), spec)
    assert str(caught.value) == (
        "the teacher cache needs 1.6 GB (100000 samples x 4 views x 4008 bytes), over the budget of 500 MB; "
        "these fit: mode topk with k up to 309; 1 of the 4 views"
    )
    assert not (tmp_path / "cache").exists()
    assert estimate(CacheSpec(mode="topk", k=309, views=4), wide, n) <= 500e6
    assert estimate(CacheSpec(mode="topk", k=310, views=4), wide, n) > 500e6
    with pytest.raises(UserError, match=r"mode fp16 \(803 MB\); mode topk with k up to 503; 2 of the 4 views"):
        run(tmp_path / "cache", Wide(), Rows(n), CacheSpec(mode="full", views=4, budget="810MB"))
    with pytest.raises(UserError, match="nothing smaller fits"):
        run(tmp_path / "cache", Wide(), Rows(n), CacheSpec(budget="1MB"))


def test_every_setting_that_changes_the_content_changes_the_key():
    specs = [CacheSpec(), CacheSpec(mode="full"), CacheSpec(views=2), CacheSpec(views=(1,))]
    specs += [CacheSpec(mode="topk", k=3), CacheSpec(mode="topk", k=4), CacheSpec(mode="topk", k=3, temperature=2.0)]
    keys = {spec.key(signals) for spec in specs for signals in ({"logits"}, {"logits", "features"})}
    assert len(keys) == 2 * len(specs)
    assert CacheSpec(budget="1GB").key(["a", "b"]) == CacheSpec(budget="2GB").key(["b", "a"])


def test_bad_specs_are_one_clear_line():
    for wrong, message in [
        ({"mode": "fp61"}, "did you mean fp16"),
        ({"mode": "topk"}, "needs k"),
        ({"views": 0}, "views"),
        ({"views": (1, 1)}, "distinct"),
        ({"budget": "lots"}, "size in bytes"),
        ({"temperature": 0.0}, "temperature"),
    ]:
        with pytest.raises(UserError, match=message):
            CacheSpec(**wrong)
    with pytest.raises(UserError, match="keeps the top 9 of 'logits', which has 3 classes"):
        estimate(CacheSpec(mode="topk", k=9), {"logits": (3,)}, 50)


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


def test_an_interrupted_filling_goes_on_at_the_first_missing_shard(tmp_path, small_shards):
    uninterrupted = contents(run(tmp_path / "a", spec=CacheSpec(views=2)).directory)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", Teacher(fail_at=2 + 35), spec=CacheSpec(views=2))
    assert sorted(contents(tmp_path / "b")) == ["manifest.json", *(f"shard-0000{i}.bin" for i in range(3))]
    with pytest.raises(UserError, match="lacks 7 of 10 shards"):
        TeacherCache.open(tmp_path / "b", teacher_hash="teacher", fingerprint="rows")
    teacher, steps = Teacher(), []
    run(tmp_path / "b", teacher, spec=CacheSpec(views=2), progress=lambda *done: steps.append(done))
    assert teacher.seen == 70
    assert (steps[0], steps[-1]) == ((34, 100), (100, 100))
    assert contents(tmp_path / "b") == uninterrupted


def test_a_complete_cache_is_opened_without_a_call_of_the_teacher(tmp_path):
    run(tmp_path)
    teacher = Teacher()
    run(tmp_path, teacher)
    assert teacher.seen == 0


def test_only_lost_shards_are_computed_again(tmp_path, small_shards):
    before = contents(run(tmp_path).directory)
    (tmp_path / "shard-00001.bin").unlink()
    os.truncate(tmp_path / "shard-00003.bin", 5)
    teacher = Teacher()
    run(tmp_path, teacher)
    assert teacher.seen == 20
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": CacheSpec(mode="full")}, r"has signals logits\[3\] as fp16, wanted is logits\[3\] as full"),
        ({"spec": CacheSpec(views=2)}, "has views"),
        ({"signals": ("logits", "tokens")}, "has signals"),
        ({"source": Rows(49)}, "has count 50, wanted is 49"),
    ],
)
def test_a_directory_with_another_cache_is_refused_and_left_alone(tmp_path, change, message):
    before = contents(run(tmp_path).directory)
    with pytest.raises(UserError, match=message):
        run(tmp_path, **change)
    assert contents(tmp_path) == before


def test_a_retrained_teacher_cannot_complete_the_old_ones_cache(tmp_path, small_shards):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Teacher(fail_at=30))
    retrained = Teacher()
    retrained.hash = "retrained"
    with pytest.raises(UserError, match="stale"):
        run(tmp_path, retrained)


class Slow(Teacher):
    def __call__(self, batch):
        time.sleep(0.02)
        return super().__call__(batch)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_killed_process_leaves_whole_shards_and_the_next_one_completes_them(tmp_path, small_shards):
    """A real SIGKILL, at a moment when a shard is half written."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path / "b", Slow(), Rows(100)))
    process.start()
    deadline = time.monotonic() + 60
    try:
        while not ((tmp_path / "b" / "shard-00003.bin").exists() and list((tmp_path / "b").glob("*.bin.tmp"))):
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    whole = [s for s in json.loads((tmp_path / "b" / "manifest.json").read_text())["shards"] if s]
    assert 3 <= len(whole) < 10
    teacher = Teacher()
    run(tmp_path / "b", teacher, Rows(100))
    assert teacher.seen == 100 - 10 * len(whole)
    assert contents(tmp_path / "b") == contents(run(tmp_path / "a", source=Rows(100)).directory)


def test_two_processes_do_not_fill_one_directory(tmp_path, small_shards):
    class Greedy(Teacher):
        def __call__(self, batch):
            if self.seen >= 20:
                run(tmp_path)
            return super().__call__(batch)

    with pytest.raises(UserError, match="another process is filling"):
        run(tmp_path, Greedy())


# ---------------------------------------------------------------------------------------------------------------------
# Disks and teachers that fail


def test_a_disk_too_small_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.engine.cache.writer.shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"needs .* has 100 B free"):
        run(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_disk_that_fills_up_is_one_clear_line_and_keeps_what_is_done(tmp_path, small_shards, monkeypatch):
    real, reserved = os.posix_fallocate, []

    def full(*args):
        reserved.append(args)
        if len(reserved) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no space left .* finished shards are kept"):
        run(tmp_path)
    monkeypatch.undo()
    assert sorted(contents(tmp_path)) == ["manifest.json", "shard-00000.bin", "shard-00001.bin"]
    teacher = Teacher()
    run(tmp_path, teacher)
    assert teacher.seen == 30


class Odd(Teacher):
    def __init__(self, logits) -> None:
        super().__init__()
        self.logits = logits

    def __call__(self, batch):
        return Signals(logits=self.logits(batch["input"]))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (lambda x: x / 0 * 0, "NaN"),
        (lambda x: x + 1e5, r"reaches 1e\+05, beyond fp16: use cache mode full"),
        (lambda x: x[:1], r"shape \(1, 3\) for a batch of 2"),
        (lambda x: (x, x), "a tuple; only tensors"),
        (lambda x: x[:, : 3 - int(x[0, 0] >= 140)], r"\[2\] for some samples and float32 \[3\] for others"),
        (lambda x: x.to(torch.complex64), "complex64"),
    ],
)
def test_what_cannot_be_stored_faithfully_is_refused(tmp_path, logits, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, Odd(logits))


def test_a_signal_the_teacher_does_not_give_is_named(tmp_path):
    with pytest.raises(UserError, match="no signal 'hidden' to cache; it gives logits, tokens"):
        run(tmp_path / "cache", signals={"hidden"})
    with pytest.raises(UserError, match="no signal is named"):
        run(tmp_path / "cache", signals=())
    with pytest.raises(UserError, match="data is empty"):
        run(tmp_path / "cache", source=Rows(0))
    assert not (tmp_path / "cache").exists()


def test_two_samples_with_one_id_are_refused(tmp_path):
    near, far = Rows(), Rows()
    near.ids = near.ids.index_fill(0, torch.tensor([5]), near.ids[6].item())
    far.ids = far.ids.index_fill(0, torch.tensor([5]), far.ids[40].item())
    with pytest.raises(UserError, match="one id to several of the rows 4 to 7"):
        run(tmp_path / "near", source=near)
    with pytest.raises(UserError, match="has id 280 twice in view 0"):
        run(tmp_path / "far", source=far)


def test_padding_does_not_count_as_covered_mass(tmp_path):
    class Tokens(Rows):
        def batch(self, indices, view=0):
            batch = super().batch(indices, view)
            return {**batch, "attention_mask": torch.tensor([[1, 1, 0]]).expand(len(indices), -1)}

    sure, unsure = torch.tensor([20.0, 0, 0, 0]), torch.zeros(4)
    teacher = Odd(lambda x: torch.stack([sure, sure, unsure]).expand(len(x), -1, -1))
    cache = run(tmp_path, teacher, Tokens(), CacheSpec(mode="topk", k=1))
    assert cache.covered_mass["logits_topk"] > 0.999
