"""Pairs of a network teacher on disk: the same to the last bit, whether found, made on, mended or held in memory."""

from __future__ import annotations

import json
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from limbeck.diffusion import base, mixture, samplers
from limbeck.diffusion.guidance import Guided
from limbeck.engine import pools
from limbeck.engine.checkpoint import sha256
from limbeck.errors import UserError
from limbeck.processes import _free_port
from limbeck.registry import Block
from toolkit.benches import bench_of, trained
from toolkit.diffusion import CLOCK, batch
from toolkit.pools import CHUNK, PAIRS, damage, drawn, learner, network, process, slowly, together

FIRST = [0, 1]
"""The pairs that are made to know a pool by."""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache folder of its own, and chunks that are small."""
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(base, "CHUNK", CHUNK)
    return tmp_path / "home"


def shards(home):
    return sorted(home.glob("pairs/*/*.safetensors"))


def folders(home):
    return sorted(home.glob("pairs/*"))


def chunks(first, stop):
    return [list(range(a, min(a + CHUNK, stop))) for a in range(first, stop, CHUNK)]


def every(method, count=PAIRS):
    """All samples as they have to be: the sampler on each chunk, and no pool."""
    parts = []
    for ids in torch.arange(count).split(CHUNK):
        start, label = method.pair_start(ids, CLOCK.seed)
        grid = {"sigma_min": method.sigma_min, "sigma_max": method.sigma_max, "steps": method.pair_steps}
        parts.append(samplers.sample(method.real, start, label=label, **grid).samples)
    return torch.cat(parts)


def of_batch(method, count=PAIRS):
    """Those among them that :func:`drawn` has to give."""
    which = (CLOCK.uniform(batch()["id"], (1,), "pair").squeeze(1) * count).long()
    return every(method, count)[which]


@pytest.mark.parametrize("held", [0, pools.HELD], ids=["mapped", "held"])
def test_found_or_made_on_disk_or_in_memory_they_are_the_same(home, monkeypatch, held):
    monkeypatch.setattr(pools, "HELD", held)
    memory = learner(keep=None)
    expected = of_batch(memory)
    assert torch.equal(drawn(memory), expected)
    assert memory.asked == chunks(0, PAIRS)
    assert not home.exists()
    new, again = learner(), learner()
    assert torch.equal(drawn(new), expected)
    assert new.asked == [FIRST, *chunks(0, PAIRS)]
    assert torch.equal(drawn(again), expected)
    assert again.asked == [FIRST]
    assert (new._pool._held is None) == (held == 0)
    assert drawn(again).dtype == torch.float32


def test_classes_and_guidance_are_the_pairs_own(home):
    net = Block("mlp_denoiser", {"width": 16, "depth": 1, "floor": 0.02, "classes": 3})
    ours = learner(network(classes=3), net, guidance=2.0)
    assert isinstance(ours.real, Guided)
    assert torch.equal(drawn(ours), of_batch(ours))
    assert torch.equal(drawn(learner(network(classes=3), net, guidance=2.0)), of_batch(ours))
    assert len(folders(home)) == 1


def test_more_pairs_are_added_to_those_that_are_there(home):
    drawn(learner(pairs=16))
    more = learner(pairs=35)
    assert torch.equal(drawn(more), of_batch(more, 35))
    assert more.asked == [FIRST, *chunks(16, 35)]
    beyond = shards(home)[-1]
    damage(beyond)
    fewer = learner(pairs=24)
    assert torch.equal(drawn(fewer), of_batch(fewer, 24))
    assert fewer.asked == [FIRST]
    assert beyond.exists(), "what is not asked for is not looked at"
    assert len(folders(home)) == 1


def test_a_last_chunk_is_made_whole_when_more_are_asked_for(home):
    """Rows of a batch of another size may round differently: a chunk is never put together of two."""
    drawn(learner(pairs=20))
    more = learner(pairs=24)
    assert torch.equal(drawn(more), of_batch(more, 24))
    assert more.asked == [FIRST, *chunks(16, 24)]
    facts = json.loads((folders(home)[0] / pools.MANIFEST).read_text())
    assert (facts["count"], facts["made"]) == (24, 24)


def test_a_damaged_shard_is_made_again_and_said_once(home, capsys):
    method = learner()
    drawn(method)
    damage(shards(home)[1])
    shards(home)[2].write_bytes(b"")
    mended = learner()
    assert torch.equal(drawn(mended), of_batch(method))
    assert mended.asked == [FIRST, *chunks(8, PAIRS)]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "damaged, rows 8 to 15 are made again" in said[0]
    assert learner().asked == []
    assert all(sha256(path)[:16] in path.name for path in shards(home))


def test_what_a_killed_process_left_aside_is_not_read_and_goes_after_a_while(home):
    drawn(learner())
    old, young = (folders(home)[0] / f".00000000-00000008.safetensors.{pid}.part" for pid in (1, 2))
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    method = learner()
    assert torch.equal(drawn(method), of_batch(method))
    assert method.asked == [FIRST]
    assert young.exists()
    assert not old.exists()


def test_killed_it_goes_on_at_the_first_missing_shard(home):
    victim = process(slowly, str(home))
    deadline = time.monotonic() + 300
    while len(shards(home)) < 2:
        assert victim.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    method = learner()
    assert torch.equal(drawn(method), of_batch(method))
    assert method.asked == [FIRST, *chunks(16, PAIRS)]


@pytest.mark.parametrize(
    "other",
    [
        {"pair_steps": 4},
        {"rho": 5.0},
        {"teacher": {"seed": 1}},
        {"teacher": {"sigma_data": 0.6}},
        {"teacher": {"activation": "relu"}},
        {"net": Block("mlp_denoiser", {"width": 16, "depth": 1, "floor": 0.02, "classes": 2})},
    ],
    ids=["steps", "rho", "weights", "scale", "layers", "classes"],
)
def test_other_pairs_have_a_folder_of_their_own(home, other):
    drawn(learner())
    net = {"net": other["net"]} if "net" in other else {}
    rest = {k: v for k, v in other.items() if k not in ("net", "teacher")}
    teacher = network(classes=2) if net else network(**other.get("teacher", {}))
    ours = learner(teacher, **net, **rest)
    drawn(ours)
    assert ours.asked == [FIRST, *chunks(0, PAIRS)]
    assert len(folders(home)) == 2


def test_a_seed_has_pairs_of_its_own_and_a_budget_has_not(home):
    drawn(learner())
    found = learner(keep="1MB")
    drawn(found)
    assert found.asked == [FIRST]
    seed = type(CLOCK)(step=3, total=10, seed=2)
    learner().pair(batch(), seed)
    assert len(folders(home)) == 2


def test_the_manifest_says_what_the_pairs_are(home):
    method = learner()
    drawn(method)
    facts = json.loads((folders(home)[0] / pools.MANIFEST).read_text())
    start, _ = method.pair_start(torch.arange(2), CLOCK.seed)
    grid = {"sigma_min": 0.02, "sigma_max": 10.0}
    assert facts["nfe"] == samplers.sample(method.real, start, steps=3, **grid).nfe
    wanted = {
        "what": "pairs", "teacher": method.teacher.hash, "teacher_name": "EDMDenoiser", "sampler": "heun", "steps": 3,
        "rho": 7.0, "guidance": 1.0, "seed": CLOCK.seed, "count": PAIRS, "made": PAIRS, "version": pools.VERSION,
        "rows": {"samples": {"shape": [2], "dtype": "float32"}}, **grid,
    }  # fmt: skip
    assert {k: facts[k] for k in wanted} == wanted
    assert facts["shards"] == [path.name for path in shards(home)]
    assert sum(len(load_file(path)["samples"]) for path in shards(home)) == PAIRS


def test_an_exact_teacher_has_nothing_to_keep(home):
    exact = learner(mixture.ring(4, 2.0, 0.3).float())
    assert torch.equal(drawn(exact), of_batch(exact))
    assert exact.asked == chunks(0, PAIRS)
    assert not home.exists()


def test_large_samples_are_made_a_few_at_once(monkeypatch):
    monkeypatch.setattr(base, "LARGE", 1)
    monkeypatch.setattr(base, "FEW", 3)
    method = learner(keep=None)
    drawn(method)
    assert [len(ids) for ids in method.asked] == [3, 3, 3, 3, 3, 3, 2]


# -- what is said and refused ------------------------------------------------------------------------------------------


def test_there_is_progress_only_when_it_takes_long_and_nobody_wants_quiet(home, monkeypatch, capsys):
    drawn(learner())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(pools, "PATIENCE", 0.0)
    drawn(learner())
    assert capsys.readouterr().err == "", "all was found"
    drawn(learner(pair_steps=4))
    assert capsys.readouterr().err.startswith("pairs: done in")
    quiet = learner(pair_steps=5)
    quiet.quiet = True
    drawn(quiet)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("keep", "says"), [("100B", "20 pairs take 160 B on disk"), ("some", "keep: 'some' is not")])
def test_a_budget_that_is_too_small_or_none_is_refused(home, keep, says):
    with pytest.raises(UserError, match=says):
        drawn(learner(keep=keep))
    assert not home.exists()


def test_a_disk_without_room_is_told_before_anything_is_made(home, monkeypatch):
    monkeypatch.setattr(pools.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    method = learner()
    with pytest.raises(UserError, match="has 100 B free"):
        drawn(method)
    assert method.asked == [FIRST]


def test_a_cache_folder_that_cannot_be_used_is_told_in_a_line(home):
    home.write_text("a file")
    with pytest.raises(UserError, match="keep: null"):
        drawn(learner())


# -- within a training, and in several processes -----------------------------------------------------------------------


def test_a_training_learns_the_same_and_hands_its_quiet_on(home, tmp_path):
    bench = bench_of("rectified_flow")
    net = {"name": "mlp_denoiser", "width": 16, "depth": 1, "modes": None}

    def run(name, keep):
        recipe = bench.varied(teacher=net, method={"keep": keep}, train={"steps": 2})
        return trained(recipe, tmp_path / name, keep=False)

    memory = run("memory", None)
    assert not home.exists()
    new, found = run("new", "1GB"), run("found", "1GB")
    assert len(folders(home)) == 1
    for other in (new, found):
        assert all(torch.equal(v, other.weights[k]) for k, v in memory.weights.items())
    assert found.loop.method.quiet


def test_two_processes_make_the_same_with_a_sharded_teacher_and_agree_on_what_is_missing(tmp_path):
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    group |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "limbeck", "OMP_NUM_THREADS": "1"}
    both = [process(together, tmp_path, {**group, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    said = []
    for r, one in enumerate(both):
        one.join(300)
        said.append((tmp_path / f"stderr-{r}").read_text(encoding="utf8"))
        one.kill()
        assert one.exitcode == 0, said
    expected = of_batch(learner())
    found = {
        job: [load_file(tmp_path / f"{job}-{r}.safetensors") for r in range(2)] for job in ("ddp", "fsdp", "damaged")
    }
    for job, processes in found.items():
        for got in processes:
            assert torch.equal(got["samples"], expected), job
            missing = list(range(8, 16)) if job == "damaged" else list(range(PAIRS))
            assert got["asked"].tolist() == [*FIRST, *missing], job
    for r in range(2):  # the second process hears why the first one cannot go on
        assert len(load_file(tmp_path / f"full-{r}.safetensors")["samples"]) == 0
    assert [text.count("is damaged") for text in said] == [1, 0]
