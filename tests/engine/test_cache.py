"""What a teacher cache gives back, to whom, and when it refuses."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.data.base import DataSpec
from limbeck.engine.cache import CacheSpec, NotCachedError, TeacherCache, fill
from limbeck.engine.cache import format as disk
from limbeck.engine.noise import normal
from limbeck.errors import UserError
from limbeck.models.forward import Signals
from limbeck.truncated import topk_of

IDS = torch.tensor([7, -3, 2**40, 0, 11, 5, 900, -(2**62), 8, 21, 22])


class Rows:
    """Rows with arbitrary ids; the view is added to the input, as an augmentation would be."""

    spec = DataSpec(shape=(4,))
    fingerprint = "rows-and-preprocessing-1"

    def __init__(self, ids: Tensor = IDS) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Tensor, view: int = 0) -> dict:
        ids = self.ids[indices]
        return {"input": normal(ids, (4,), view), "id": ids, "view": view}


class Teacher:
    """Several signals of each kind: logits [B, K], token logits [B, T, V], a feature map, integers."""

    hash = "teacher-weights-1"

    def __init__(self, scale: float = 1.0, classes: int = 10) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = scale * torch.randn(4, classes, generator=generator)
        self.calls = 0

    def __call__(self, batch: dict) -> Signals:
        self.calls += 1
        x = batch["input"]
        logits = x @ self.weight
        return Signals(
            logits=logits,
            token_logits=torch.stack([logits, 2 * logits, -logits], 1),
            features=x[:, :, None, None].expand(-1, -1, 2, 3).to(torch.bfloat16),
            tokens=logits.argsort(-1).to(torch.int32),
            pair=(logits, logits),
        )


ALL = {"logits", "token_logits", "features", "tokens"}


@pytest.fixture(params=["one shard", "many shards"])
def shards(request, monkeypatch):
    """Small caches are one shard; with a tiny shard size the same rows spread over many, across view boundaries."""
    if request.param == "many shards":
        monkeypatch.setattr(disk, "SHARD_BYTES", 1200)


def filled(path, spec: CacheSpec, signals=frozenset({"logits"}), **kwargs) -> TeacherCache:
    return fill(path, Teacher(), Rows(), spec, signals, batch_size=4, **kwargs)


def reopened(path, **kwargs) -> TeacherCache:
    return TeacherCache.open(path, teacher_hash=Teacher.hash, fingerprint=Rows.fingerprint, **kwargs)


def flip(path, at: int = 100) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.parametrize(("mode", "tolerance"), [("full", 0.0), ("fp16", 1e-3)])
def test_every_signal_of_a_shuffled_batch_comes_back_for_its_own_sample_and_view(tmp_path, shards, mode, tolerance):
    cache = filled(tmp_path, CacheSpec(mode=mode, views=(0, 5, 9)), ALL)
    order = torch.randperm(len(IDS), generator=torch.Generator().manual_seed(1))
    assert cache.gives == ALL
    for view in (9, 0, 5):
        batch = Rows().batch(order, view)
        live, stored = Teacher()(batch), cache.lookup(batch["id"], view)
        assert stored.tokens.dtype == torch.int32
        assert torch.equal(stored.tokens, live.tokens)
        for name in ("logits", "token_logits", "features"):
            assert stored[name].dtype == torch.float32
            torch.testing.assert_close(stored[name], live[name].float(), rtol=tolerance, atol=tolerance)


def test_topk_is_that_of_the_teacher_and_sums_to_one(tmp_path, shards):
    with pytest.warns(UserWarning, match="cover 0"):
        cache = filled(tmp_path, CacheSpec(mode="topk", k=3, views=2, temperature=2.0), ALL)
    assert cache.gives == {"logits_topk", "token_logits_topk", "features", "tokens"}
    batch = Rows().batch(torch.tensor([4, 0, 9]), 1)
    live, stored = Teacher()(batch), cache.lookup(batch["id"], 1)
    for name in ("logits", "token_logits"):
        expected, got = topk_of(live[name], 3, 2.0), stored[f"{name}_topk"]
        assert torch.equal(got.indices, expected.indices)
        torch.testing.assert_close(got.logprobs, expected.logprobs, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(got.log_tail, expected.log_tail, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(got.covered + got.log_tail.exp(), torch.ones_like(got.covered))
        assert (got.temperature, got.classes) == (2.0, 10)


def test_covered_mass_is_the_mean_and_low_mass_is_reported(tmp_path, shards):
    with pytest.warns(
        UserWarning, match=r"top 2 of 'logits' cover 0\.\d+ of the teacher's mass .* raise k \(of 10 classes\)"
    ):
        cache = filled(tmp_path, CacheSpec(mode="topk", k=2, views=2, logprobs="fp32"))
    views = [Teacher()(Rows().batch(torch.arange(len(IDS)), view)).logits for view in (0, 1)]
    expected = topk_of(torch.cat(views), 2).covered.mean().item()
    assert cache.covered_mass == {"logits_topk": pytest.approx(expected, abs=1e-5)}
    assert cache.covered_mass == json.loads((tmp_path / "manifest.json").read_text())["covered_mass"]


def test_keeping_all_classes_leaves_no_tail_and_warns_of_nothing(tmp_path, recwarn):
    cache = filled(tmp_path, CacheSpec(mode="topk", k=10))
    stored = cache.lookup(IDS).logits_topk
    assert (stored.log_tail == -torch.inf).all()
    assert stored.logprobs.isfinite().all()
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:the cached top")
@pytest.mark.parametrize(("classes", "dtype"), [(256, "|u1"), (257, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_indices_take_the_narrowest_type_that_holds_the_last_class(tmp_path, classes, dtype):
    teacher = Teacher(classes=classes)
    teacher.weight[:, -1] = 100 * torch.sign(teacher.weight[:, -1])
    cache = fill(tmp_path, teacher, Rows(), CacheSpec(mode="topk", k=classes // 2, logprobs="fp32"), {"logits"})
    (column,) = [c for c in cache.manifest.columns if c.name == "logits.indices"]
    expected = topk_of(teacher(Rows().batch(torch.arange(len(IDS)))).logits, classes // 2)
    assert column.dtype == dtype
    assert (expected.indices == classes - 1).any()
    torch.testing.assert_close(cache.lookup(IDS).logits_topk.indices, expected.indices)


def test_the_format_can_be_read_without_this_library(tmp_path):
    filled(tmp_path, CacheSpec(mode="fp16"))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    path, n = tmp_path / "shard-00000.bin", manifest["count"]
    offset = -(-8 * n // 64) * 64
    ids = np.memmap(path, "<i8", "r", 0, (n,))
    logits = np.memmap(path, "<f2", "r", offset, (n, 10))
    assert manifest["version"] == 1
    assert ids.tolist() == IDS.tolist()
    live = Teacher()(Rows().batch(torch.arange(n))).logits
    np.testing.assert_array_equal(logits, live.half().numpy())


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def test_an_unknown_id_or_view_is_named_instead_of_served(tmp_path, shards):
    cache = filled(tmp_path, CacheSpec(views=3))
    with pytest.raises(NotCachedError, match=r"no sample with id 4, 10000 \(view 1\)"):
        cache.lookup(torch.tensor([7, 4, 10_000]), 1)
    with pytest.raises(NotCachedError, match="no view 3; it holds 0 to 2"):
        cache.lookup(torch.tensor([7]), 3)
    with pytest.raises(LookupError):
        cache.lookup(torch.tensor([2**63 - 1]), 0)
    assert cache.lookup(torch.empty(0, dtype=torch.int64)).logits.shape == (0, 10)


def test_consecutive_ids_are_found_too_and_only_they(tmp_path, shards):
    ids = torch.tensor([5, 3, 4, 7, 6])
    cache = fill(tmp_path, Teacher(), Rows(ids), CacheSpec(mode="full"), {"logits"})
    live = Teacher()(Rows(ids).batch(torch.arange(5))).logits
    torch.testing.assert_close(cache.lookup(ids).logits, live)
    for stranger in (2, 8, -(2**63), 2**63 - 1):
        with pytest.raises(NotCachedError, match=f"id {stranger} "):
            cache.lookup(torch.tensor([4, stranger]))


def test_a_stale_teacher_foreign_data_and_a_missing_cache_are_told_apart(tmp_path):
    filled(tmp_path, CacheSpec())
    with pytest.raises(UserError, match=r"stale: .* teacher teacher-weights-1, this one is retrained"):
        TeacherCache.open(tmp_path, teacher_hash="retrained", fingerprint=Rows.fingerprint)
    with pytest.raises(UserError, match=r"foreign: .* data rows-and-preprocessing-1, this is other crop"):
        TeacherCache.open(tmp_path, teacher_hash=Teacher.hash, fingerprint="other crop")
    with pytest.raises(UserError, match="no teacher cache at"):
        reopened(tmp_path / "nowhere")


@pytest.mark.parametrize("kwargs", [{}, {"verify": True}])
def test_an_altered_shard_is_named_and_refused(tmp_path, kwargs, monkeypatch):
    monkeypatch.setattr(disk, "SHARD_BYTES", 200)
    filled(tmp_path, CacheSpec())
    flip(tmp_path / "shard-00001.bin")
    with pytest.raises(UserError, match=r"shard-00001\.bin was altered"):
        reopened(tmp_path, **kwargs)


def test_a_truncated_or_lost_shard_is_named_even_without_hashing(tmp_path):
    filled(tmp_path, CacheSpec())
    path = tmp_path / "shard-00000.bin"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UserError, match=r"shard-00000\.bin has \d+ bytes, not \d+"):
        reopened(tmp_path, verify=False)
    path.unlink()
    with pytest.raises(UserError, match=r"shard-00000\.bin is missing"):
        reopened(tmp_path, verify=False)


def test_a_copied_cache_is_hashed_once_and_then_trusted_until_it_changes(tmp_path, monkeypatch):
    filled(tmp_path, CacheSpec())
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda f, name: hashed.append(f.name) or digest(f, name))
    reopened(tmp_path)
    assert not hashed
    path = tmp_path / "shard-00000.bin"
    path.write_bytes(path.read_bytes())
    reopened(tmp_path)
    reopened(tmp_path)
    assert len(hashed) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: "{", "damaged"),
        (lambda m: json.dumps({**m, "version": 2}), "version 2, this library reads version 1"),
        (lambda m: json.dumps({**m, "surprise": 1}), "surprise"),
        (lambda m: json.dumps({**m, "count": 10**6}), "do not add up"),
        (lambda m: json.dumps({**m, "shards": [None], "complete": False}), "lacks 1 of 1 shards"),
    ],
)
def test_a_damaged_manifest_is_one_clear_line(tmp_path, change, message):
    filled(tmp_path, CacheSpec())
    path = tmp_path / "manifest.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(UserError, match=message) as caught:
        reopened(tmp_path)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Replay against the live teacher


SPECS = [
    CacheSpec(mode="full", views=3),
    CacheSpec(mode="fp16", views=3),
    CacheSpec(mode="topk", k=6, views=3),
]


@pytest.mark.filterwarnings("ignore:the cached top")
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.mode)
def test_replay_accepts_the_same_teacher_and_refuses_one_five_percent_off(tmp_path, spec):
    cache = filled(tmp_path, spec, ALL)
    cache.verify(Teacher(), Rows(), n=11)
    with pytest.raises(
        UserError, match=r"does not hold what the teacher gives now .* sample -?\d+ of view [012] is off by"
    ):
        cache.verify(Teacher(scale=1.05), Rows(), n=11)
    cache.verify(Teacher(scale=1.05), Rows(), n=11, tolerance=1.0)


class Shuffled(Rows):
    """Gives the rows of one order under the ids of another: the oldest mistake with stored teacher outputs."""

    def batch(self, indices: Tensor, view: int = 0) -> dict:
        return {**super().batch((indices + 1) % len(self), view), "id": self.ids[indices]}


class Reseeded(Rows):
    """Another augmentation behind the same view number."""

    def batch(self, indices: Tensor, view: int = 0) -> dict:
        return {**super().batch(indices, view + 100), "view": view}


@pytest.mark.filterwarnings("ignore:the cached top")
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.mode)
@pytest.mark.parametrize("source", [Shuffled(), Reseeded()], ids=["shuffled", "reseeded"])
def test_replay_refuses_data_that_lies_about_its_fingerprint(tmp_path, spec, source):
    cache = filled(tmp_path, spec)
    with pytest.raises(UserError, match="off by"):
        cache.verify(Teacher(), source, n=4)


def test_ruled_out_classes_survive_the_cache_and_its_replay(tmp_path):
    class Masked(Teacher):
        def __call__(self, batch):
            return Signals(logits=super().__call__(batch).logits.index_fill(1, torch.tensor([3]), -torch.inf))

    for mode in ("full", "fp16", "topk"):
        cache = fill(tmp_path / mode, Masked(), Rows(), CacheSpec(mode=mode, k=9), {"logits"})
        cache.verify(Masked(), Rows())
        if mode != "topk":
            assert (cache.lookup(IDS).logits[:, 3] == -torch.inf).all()
