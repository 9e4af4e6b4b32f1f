"""A cache of text: rows are found by their tokens, added where they are missing, and refused where they are foreign."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from limbeck.data.base import DataSpec
from limbeck.engine.cache import CacheSpec, NotCachedError, TokenCache, fill_tokens
from limbeck.engine.cache import token_writer as writing
from limbeck.errors import UserError
from limbeck.models.forward import Signals
from limbeck.truncated import topk_of

V, T = 40, 12
SPEC = DataSpec(task="language", shape=(T,), vocab_size=V, tokenizer_hash="tokens-1")
PACKED = CacheSpec(mode="packed", k=8)
SAMPLED = CacheSpec(mode="sampled", draws=30)


class Text:
    """Rows of text by number: row n is always the same, the ids are only where it stands."""

    spec = SPEC
    fingerprint = "whatever"

    def __init__(self, rows, context=T):
        self.rows, self.context = rows, context

    def __len__(self):
        return len(self.rows)

    def batch(self, indices, view=0):
        numbers = [self.rows[i] for i in indices.tolist()]
        size = (len(numbers), self.context)
        out = {"input_ids": torch.zeros(size).long(), "labels": torch.full(size, -100)}
        out["attention_mask"] = torch.zeros(size)
        for row, number in enumerate(numbers):
            generator = torch.Generator().manual_seed(number)
            length = 5 + number % 6
            tokens = torch.randint(1, V, (length,), generator=generator)
            out["input_ids"][row, :length] = tokens
            out["labels"][row, 2:length] = tokens[2:]
            out["attention_mask"][row, :length] = 1
        return {**out, "id": indices, "view": view}


class Teacher:
    """Logits that depend on the token and the one before; ``width`` pads the vocabulary."""

    hash = "teacher-1"

    def __init__(self, scale=1.0, width=V):
        generator = torch.Generator().manual_seed(0)
        self.tables = scale * 2 * torch.randn(2, V, width, generator=generator)
        self.rows = 0

    def __call__(self, batch):
        ids = batch["input_ids"]
        self.rows += len(ids)
        before = torch.cat([ids[:, :1], ids[:, :-1]], 1)
        return Signals(logits=self.tables[0][ids] + self.tables[1][before])


def fill(path, rows, spec=PACKED, teacher=None, **kwargs):
    return fill_tokens(path, teacher or Teacher(), Text(rows), spec, batch_size=4, **kwargs)


@pytest.fixture(params=["one shard", "many shards"])
def shards(request, monkeypatch):
    if request.param == "many shards":
        monkeypatch.setattr(writing, "SHARD_BYTES", 300)


pytestmark = pytest.mark.filterwarnings("ignore:the cached top")


def test_packed_rows_come_back_for_their_own_tokens(tmp_path, shards):
    cache = fill(tmp_path, range(20), CacheSpec(mode="packed", k=8, bits=10, temperature=2.0))
    batch = Text(range(20)).batch(torch.tensor([7, 0, 19, 7]))
    stored, live = cache.serve(batch).logits_topk, topk_of(Teacher()(batch).logits, 8, 2.0)
    here = torch.cat([batch["labels"][:, 1:] != -100, torch.zeros(4, 1).bool()], 1)
    assert stored.indices.shape == (4, T, 8)
    assert torch.equal(stored.indices[here], live.indices.sort(-1).values[here])
    order = live.indices.argsort(-1)
    torch.testing.assert_close(stored.logprobs[here], live.logprobs.gather(-1, order)[here], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(stored.covered + stored.log_tail.exp(), torch.ones(4, T))
    assert (stored.temperature, stored.classes) == (2.0, V)


def test_draws_come_back_and_weigh_one(tmp_path, shards):
    cache = fill(tmp_path, range(20), SAMPLED)
    batch = Text(range(20)).batch(torch.tensor([3, 11]))
    drawn = cache.serve(batch).logits_sampled
    torch.testing.assert_close(drawn.weights.sum(-1), torch.ones(2, T))
    probabilities = Teacher()(batch).logits.softmax(-1)
    dense = torch.zeros(2, T, V).scatter_add_(-1, drawn.indices, drawn.weights)
    here = batch["labels"][:, 1:] != -100
    apart = (dense[:, :-1] - probabilities[:, :-1])[here].abs().sum(-1) / 2
    assert apart.mean() < 0.35
    assert "30 draws" in cache.says()
    assert "unbiased" in cache.says()


@pytest.mark.parametrize("spec", [PACKED, SAMPLED], ids=["packed", "sampled"])
def test_other_data_with_the_same_rows_is_served_without_the_teacher(tmp_path, spec):
    fill(tmp_path, range(20), spec)
    teacher = Teacher()
    cache = fill(tmp_path, [13, 5, 5, 2], spec, teacher)
    assert teacher.rows == 0
    assert len(cache) == 20
    wide = Text([5], context=T + 4)
    narrow = cache.serve(Text([5]).batch(torch.tensor([0])))
    for name, value in cache.serve(wide.batch(torch.tensor([0]))).items():
        assert torch.equal(value.indices[:, :T], narrow[name].indices)


def test_only_rows_that_are_new_are_asked_for_and_equal_rows_once(tmp_path, shards):
    fill(tmp_path, range(10))
    teacher = Teacher()
    cache = fill(tmp_path, [*range(5, 15), 14, 14], teacher=teacher)
    assert teacher.rows == 5
    assert len(cache) == 15
    reopened = TokenCache.open(tmp_path, teacher_hash="teacher-1", tokenizer="tokens-1", verify=True)
    for row in range(15):
        one, other = (c.serve(Text([row]).batch(torch.tensor([0]))).logits_topk for c in (cache, reopened))
        assert torch.equal(one.logprobs, other.logprobs)


@pytest.mark.parametrize("spec", [PACKED, SAMPLED], ids=["packed", "sampled"])
def test_a_filling_that_was_cut_off_goes_on_and_ends_the_same(tmp_path, monkeypatch, spec):
    monkeypatch.setattr(writing, "SHARD_BYTES", 300)

    class Killed(Teacher):
        def __call__(self, batch):
            if self.rows >= 12:
                raise KeyboardInterrupt
            return super().__call__(batch)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cut", range(20), spec, Killed())
    assert not list((tmp_path / "cut").glob("*.tmp"))
    second = Teacher()
    cut, whole = fill(tmp_path / "cut", range(20), spec, second), fill(tmp_path / "whole", range(20), spec)
    assert 0 < second.rows < 20
    batch = Text(range(20)).batch(torch.arange(20))
    for name, value in cut.serve(batch).items():
        assert torch.equal(value.indices, whole.serve(batch)[name].indices)


def test_only_learnt_positions_take_room(tmp_path):
    cache = fill(tmp_path, range(20))
    learnt = sum(3 + n % 6 for n in range(20))
    assert cache.manifest.tokens == learnt
    assert cache.nbytes < learnt * cache.coding.widths[0] + 20 * 24 + 64 * 4


def test_what_it_says_is_what_it_measured(tmp_path):
    cache = fill(tmp_path, range(20))
    batch = Text(range(20)).batch(torch.arange(20))
    here = batch["labels"][:, 1:] != -100
    live, stored = topk_of(Teacher()(batch).logits, 8), cache.serve(batch).logits_topk
    assert cache.mean("covered") == pytest.approx(live.covered[:, :-1][here].double().mean().item(), rel=1e-5)
    true = live.logprobs.gather(-1, live.indices.argsort(-1)).double()
    tail = live.log_tail.exp() * (live.log_tail - stored.log_tail)
    kl = ((true.exp() * (true - stored.logprobs)).sum(-1) + tail)[:, :-1][here]
    assert cache.mean("lost") == pytest.approx(kl.mean().item(), abs=1e-6)
    assert 0 < cache.mean("lost") < 5e-3
    assert f"{cache.bytes_per_token:.1f} bytes a token" in cache.says()


def test_padding_of_the_vocabulary_is_not_stored(tmp_path):
    cache = fill(tmp_path, range(6), teacher=Teacher(width=V + 24))
    assert cache.coding.classes == V
    cache.verify(Teacher(width=V + 24), Text(range(6)))


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def test_a_row_that_is_not_there_or_is_learnt_otherwise_is_refused(tmp_path):
    cache = fill(tmp_path, range(6))
    batch = Text([2, 9]).batch(torch.arange(2))
    with pytest.raises(NotCachedError, match=r"1 of these 2 are not among them .the first is number 1"):
        cache.serve(batch)
    other = Text([2]).batch(torch.arange(1))
    other["labels"][0, 2] = -100
    with pytest.raises(NotCachedError, match="which of them are learnt"):
        cache.serve(other)
    other = Text([2]).batch(torch.arange(1))
    other["input_ids"][0, 0] += 1
    with pytest.raises(NotCachedError):
        cache.serve(other)


def test_another_teacher_tokenizer_or_vocabulary_is_told_apart(tmp_path):
    fill(tmp_path, range(6))
    with pytest.raises(UserError, match=r"stale: .* teacher teacher-1, this one is retrained"):
        TokenCache.open(tmp_path, teacher_hash="retrained", tokenizer="tokens-1")
    with pytest.raises(UserError, match=r"foreign: .* tokenizer tokens-1, the data's is tokens-2"):
        TokenCache.open(tmp_path, teacher_hash="teacher-1", tokenizer="tokens-2")
    foreign = Text(range(6))
    foreign.spec = replace(SPEC, tokenizer_hash="tokens-2")
    with pytest.raises(UserError, match="foreign"):
        fill_tokens(tmp_path, Teacher(), foreign, PACKED)
    wider = Text(range(6))
    wider.spec = replace(SPEC, vocab_size=V - 1)
    with pytest.raises(UserError, match=f"over {V} tokens, here there are {V - 1}"):
        fill_tokens(tmp_path, Teacher(), wider, PACKED)
    with pytest.raises(UserError, match=r"holds .* wanted is"):
        fill_tokens(tmp_path, Teacher(), Text(range(6)), CacheSpec(mode="packed", k=9))


@pytest.mark.parametrize("spec", [PACKED, SAMPLED], ids=["packed", "sampled"])
def test_replay_accepts_the_same_teacher_and_refuses_another_behind_the_same_name(tmp_path, spec):
    cache = fill(tmp_path, range(20), spec)
    cache.verify(Teacher(), Text(range(20)), n=20)

    class Other(Teacher):
        def __init__(self):
            super().__init__()
            self.tables = self.tables.roll(1, -1)

    for liar in (Teacher(scale=1.2), Other()):
        with pytest.raises(UserError, match=r"does not hold what the teacher gives now: sample \d+ is off by"):
            cache.verify(liar, Text(range(20)), n=20)


def test_an_altered_and_a_lost_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 300)
    fill(tmp_path, range(20))
    path = tmp_path / "shard-00001.bin"
    content = bytearray(path.read_bytes())
    content[70] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00001\.bin was altered"):
        TokenCache.open(tmp_path, teacher_hash="teacher-1", tokenizer="tokens-1")
    os.truncate(path, 10)
    teacher = Teacher()
    assert len(fill(tmp_path, range(20), teacher=teacher)) == 20
    assert 0 < teacher.rows < 20


def test_a_budget_is_kept_to_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"needs about .* over the budget of 1.7 kB; k up to \d would fit") as caught:
        fill(tmp_path, range(20), CacheSpec(mode="packed", k=8, budget="1.7kB"))
    assert not list(tmp_path.glob("shard*"))
    fits = int(str(caught.value).split("k up to ")[1].split()[0])
    assert fill(tmp_path, range(20), CacheSpec(mode="packed", k=fits, budget="2kB")).coding.k == fits
    with pytest.raises(UserError, match="fewer draws would fit"):
        fill(tmp_path / "other", range(20), CacheSpec(mode="sampled", draws=500, budget="1kB"))


def test_what_is_no_text_and_logits_that_are_not_finite_are_refused(tmp_path):
    class Images:
        spec = DataSpec(shape=(4,))
        fingerprint = "images"

        def __len__(self):
            return 2

        def batch(self, indices, view=0):
            return {"input": torch.zeros(len(indices), 4), "id": indices, "view": view}

    with pytest.raises(UserError, match="no input_ids"):
        fill_tokens(tmp_path, Teacher(), Images(), PACKED)
    broken = Teacher()
    broken.tables[0, 5] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        fill(tmp_path, range(20), teacher=broken)
