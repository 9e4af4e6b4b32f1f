"""Records of a few bytes: what comes back, how large they are, and how far off they may be."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from limbeck.engine.cache.draws import Draws
from limbeck.engine.cache.packing import DEEPEST, Packing
from limbeck.errors import UserError
from limbeck.truncated import Sampled, TopK, topk_of


def logits_of(n, classes, seed=0, spread=3.0):
    return spread * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def ordered(topk):
    ids, order = topk.indices.sort(-1)
    return ids, topk.logprobs.gather(-1, order)


@pytest.mark.parametrize(("classes", "most"), [(151_936, 120), (2**17, 119), (50_257, 110), (65, 50)])
def test_a_token_with_its_fifty_likeliest_takes_at_most_120_bytes(classes, most):
    packing = Packing(classes, 50)
    topk = topk_of(logits_of(3, classes), 50)
    assert packing.pack(topk).shape == (3, packing.bytes)
    assert packing.bytes <= most


@pytest.mark.parametrize(("classes", "k"), [(1, 1), (2, 2), (7, 3), (65, 65), (300, 50), (70_001, 1), (151_936, 50)])
def test_the_ids_come_back_exactly(classes, k):
    topk = topk_of(logits_of(9, classes), k)
    back = Packing(classes, k).unpack(Packing(classes, k).pack(topk), 1.0)
    assert torch.equal(back.indices, topk.indices.sort(-1).values)
    assert back.classes == classes


@pytest.mark.parametrize("ids", [[0, 1, 2], [997, 998, 999], [0, 500, 999]])
def test_ids_at_the_ends_of_the_vocabulary_are_no_exception(ids):
    topk = TopK(torch.tensor([ids]), torch.full((1, 3), 0.2).log(), torch.tensor([0.4]).log(), 1.0, 1000)
    assert Packing(1000, 3).unpack(Packing(1000, 3).pack(topk)).indices.tolist() == [ids]


@pytest.mark.parametrize("bits", [2, 4, 5, 8, 12])
@pytest.mark.parametrize("spread", [0.1, 3.0, 20.0])
def test_a_probability_is_off_by_no_more_than_its_record_promises(bits, spread):
    """The cube root of a ratio to the largest is off by half a step; what float16 loses of the depth is a trifle."""
    packing, topk = Packing(5000, 20, bits), topk_of(logits_of(64, 5000, spread=spread), 20)
    back = packing.unpack(packing.pack(topk))
    _, true = ordered(topk)
    root = ((true - true.amax(-1, keepdim=True)).clamp(min=-DEEPEST) / 3).exp()
    stored = ((back.logprobs - back.logprobs.amax(-1, keepdim=True)) / 3).exp()
    half_step = (1 - root.amin(-1, keepdim=True)) / packing.steps / 2
    assert ((root - stored).abs() <= half_step + 2e-4).all()


def test_what_is_stored_is_a_distribution_and_its_tail_is_fine_at_both_ends():
    masses = torch.tensor([1e-12, 1e-6, 1e-3, 0.3, 0.7, 0.999, 0.999999])
    logprobs = torch.log((1 - masses.double())[:, None] * torch.tensor([0.7, 0.3], dtype=torch.float64)).float()
    packing = Packing(100, 2)
    back = packing.unpack(packing.pack(TopK(torch.tensor([[3, 8]]).expand(7, 2), logprobs, masses.log(), 1.0, 100)))
    torch.testing.assert_close(back.covered + back.log_tail.exp(), torch.ones(7))
    torch.testing.assert_close(back.log_tail, masses.log(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(back.covered.log(), torch.log1p(-masses.double()).float(), rtol=2e-2, atol=1e-7)


def test_no_tail_no_mass_and_one_hot_are_kept():
    logits = torch.full((2, 4), -math.inf)
    logits[0, 2], logits[1, :] = 0.0, torch.tensor([0.0, 1.0, 2.0, 3.0])
    back = Packing(4, 4, 12).unpack(Packing(4, 4, 12).pack(topk_of(logits, 4)))
    assert (back.log_tail == -math.inf).all()
    torch.testing.assert_close(back.logprobs.exp(), logits.softmax(-1), rtol=1e-3, atol=1e-3)


def test_more_bits_lose_less():
    topk = topk_of(logits_of(200, 5000), 50)
    ids, true = ordered(topk)
    assert ids.shape == (200, 50)

    def kl(bits):
        back = Packing(5000, 50, bits).unpack(Packing(5000, 50, bits).pack(topk))
        return float((true.exp() * (true - back.logprobs)).sum(-1).mean())

    losses = [kl(bits) for bits in (3, 4, 5, 6, 8)]
    assert all(a > 2.5 * b for a, b in pairwise(losses))
    assert losses[2] < 2e-3


def test_a_damaged_record_and_a_wrong_shape_are_refused():
    packing, topk = Packing(1000, 8), topk_of(logits_of(2, 1000), 8)
    records = packing.pack(topk)
    records[0, 0] ^= 1
    with pytest.raises(UserError, match="damaged"):
        packing.unpack(records)
    with pytest.raises(ValueError, match="the records 8"):
        packing.pack(topk_of(logits_of(2, 1000), 7))
    with pytest.raises(ValueError, match="outside the vocabulary of 9"):
        Packing(9, 8).pack(topk)
    with pytest.raises(UserError, match="lower k"):
        Packing(7, 8)
    with pytest.raises(UserError, match="bits"):
        Packing(70, 8, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Draws


KEYS = torch.tensor([5, -(2**62), 12345, 0])


@pytest.mark.parametrize(("classes", "draws", "width"), [(151_936, 50, 3), (65, 50, 2), (65, 1000, 3), (2, 1, 1)])
def test_draws_come_back_exactly_in_whole_bytes(classes, draws, width):
    drawing = Draws(classes, draws)
    drawn = drawing.draw(logits_of(4, classes), KEYS, torch.arange(4))
    tokens, entries = drawing.pack(drawn)
    back = drawing.unpack(tokens, entries)
    assert drawing.entry_bytes == width == entries.shape[1]
    assert len(entries) == int((drawn.weights > 0).sum())
    assert torch.equal(back.indices, drawn.indices)
    torch.testing.assert_close(back.weights, drawn.weights)
    torch.testing.assert_close(back.weights.sum(-1), torch.ones(4))


def test_weights_of_another_proposal_are_kept_to_a_part_in_2048():
    drawing = Draws(500, 40, proposal=0.5)
    drawn = drawing.draw(logits_of(4, 500), KEYS, torch.arange(4))
    back = drawing.unpack(*drawing.pack(drawn))
    assert torch.equal(back.indices, drawn.indices)
    torch.testing.assert_close(back.weights, drawn.weights, rtol=1 / 2048, atol=3e-8)


def test_draws_follow_from_seed_row_and_position_alone():
    logits, places = logits_of(4, 50), torch.arange(4)
    together = Draws(50, 20).draw(logits, KEYS, places)
    alone = Draws(50, 20).draw(logits[2:3], KEYS[2:3], places[2:3])
    width = alone.indices.shape[1]
    assert torch.equal(together.indices[2, :width], alone.indices[0])
    for other in (
        Draws(50, 20, seed=1).draw(logits[2:3], KEYS[2:3], places[2:3]),
        Draws(50, 20).draw(logits[2:3], KEYS[1:2], places[2:3]),
        Draws(50, 20).draw(logits[2:3], KEYS[2:3], places[1:2]),
    ):
        dense = [torch.zeros(1, 50).scatter_add(1, d.indices, d.weights) for d in (other, alone)]
        assert not torch.equal(*dense)


@pytest.mark.parametrize("proposal", [1.0, 0.7, 0.0])
def test_the_mean_weight_of_many_draws_is_the_probability(proposal):
    """Twenty thousand rows of three draws each: every class within five standard errors of its probability."""
    n, logits = 20_000, torch.tensor([2.0, 0.0, -1.0, 1.0, -torch.inf, -4.0])
    drawn = Draws(6, 3, proposal).draw(logits.expand(n, -1), torch.arange(n), torch.zeros(n, dtype=torch.long))
    dense = torch.zeros(n, 6).scatter_add_(1, drawn.indices, drawn.weights).double()
    error = dense.std(0) / n**0.5
    assert ((dense.mean(0) - logits.softmax(-1)).abs() <= 5 * error + 1e-7).all()
    assert (dense[:, 4] == 0).all()


def test_records_that_do_not_go_together_are_refused():
    drawing = Draws(50, 20)
    tokens, entries = drawing.pack(drawing.draw(logits_of(4, 50), KEYS, torch.arange(4)))
    with pytest.raises(UserError, match="damaged"):
        drawing.unpack(tokens, entries[1:])
    with pytest.raises(UserError, match="draws must be 1"):
        Draws(50, 0)
    with pytest.raises(UserError, match="proposal"):
        Draws(50, 20, proposal=-1.0)
    assert isinstance(drawing.unpack(tokens[:0], entries[:0]), Sampled)
