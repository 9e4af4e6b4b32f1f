import math

import pytest
import torch
from torch.nn.functional import normalize

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.language.grounding import (
    ClipEncoder,
    Head,
    Memory,
    hinge,
    mean_state,
    neuron_selectivity,
    normalised_cross_entropy,
)

CLOCK = Clock(2, 10)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept_of(*lengths, width):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def test_the_hinge_is_its_definition():
    scores, rows, columns = drawn(4, 4, 3), kept_of(3, 1, 2, 3, width=3), kept_of(3, 3, 1, 2, width=3)
    found = hinge(scores, rows, columns, 0.4)
    for i in range(4):
        for t in range(3):
            films = [max(0.0, 0.4 - scores[i, i, t] + scores[i, j, t]) for j in range(4) if j != i and columns[j, t]]
            texts = [max(0.0, 0.4 - scores[i, i, t] + scores[j, i, t]) for j in range(4) if j != i and rows[j, t]]
            wanted = sum(float(sum(side) / len(side)) for side in (films, texts) if side)
            assert float(found[i, t]) == pytest.approx(wanted, abs=1e-12)


def test_a_hinge_is_at_rest_beyond_the_margin_and_where_there_is_no_other():
    apart = torch.eye(3)[..., None] * 0.5
    there = torch.ones(3, 1, dtype=torch.bool)
    assert not hinge(apart, there, there, 0.5).any()
    torch.testing.assert_close(hinge(apart, there, there, 0.7), torch.full((3, 1), 0.4))
    assert not hinge(torch.ones(1, 1, 2), there[:1].expand(1, 2), there[:1].expand(1, 2), 0.5).any()


def test_scores_and_masks_that_do_not_go_together_are_refused():
    there = torch.ones(3, 2, dtype=torch.bool)
    for scores, columns in ((torch.zeros(3, 4, 2), there), (torch.zeros(3, 3, 2), there[:, :1])):
        with pytest.raises(ValueError, match=r"a hinge takes scores \[B, B, T\] and two masks \[B, T\], not \(3"):
            hinge(scores, there, columns, 0.5)


def test_the_cross_entropy_is_its_definition():
    student, teacher = (normalize(drawn(4, 3, 5, seed=s), dim=-1) for s in (0, 1))
    kept = kept_of(3, 1, 2, 3, width=3)
    found = normalised_cross_entropy(student, teacher, kept, 0.3)
    for i in range(4):
        for t in range(3):
            value = 0.0
            for own, other in ((student, teacher), (teacher, student)):
                anchor = own[i, t]
                ours = math.exp(float(anchor @ other[i, t]) / 0.3)
                against = [side[j, t] for side in (own, other) for j in range(4) if j != i and kept[j, t]]
                value -= math.log(ours / (ours + sum(math.exp(float(anchor @ v) / 0.3) for v in against))) / 2
            assert float(found[i, t]) == pytest.approx(value, rel=1e-10)


def test_the_cross_entropy_refuses_unlike_shapes():
    with pytest.raises(ValueError, match=r"student \(2, 3, 4\), teacher \(2, 3, 5\)"):
        normalised_cross_entropy(torch.ones(2, 3, 4), torch.ones(2, 3, 5), torch.ones(2, 3, dtype=torch.bool), 1.0)
    with pytest.raises(ValueError, match=r"vectors \(2, 3\), kept \(2, 1\)"):
        normalised_cross_entropy(torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(2, 1, dtype=torch.bool), 1.0)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_selectivity_is_the_distance_of_mean_features(degree):
    """The kernel's own features are all products of ``degree`` entries of a map."""
    student, teacher, kept = drawn(3, 4, 5), drawn(3, 4, 7, seed=1), kept_of(4, 2, 3, width=4)
    found = neuron_selectivity(student, teacher, kept, degree=degree)
    for b in range(3):
        means = []
        for states in (student, teacher):
            maps = states[b, : int(kept[b].sum())].T
            maps = maps / maps.norm(dim=1, keepdim=True)
            features = maps
            for _ in range(degree - 1):
                features = (features[:, :, None] * maps[:, None]).flatten(1)
            means.append(features.mean(0))
        assert float(found[b]) == pytest.approx(float((means[0] - means[1]).square().sum()), abs=1e-12)


def test_selectivity_does_not_see_names_of_neurons_scales_or_padding():
    states, kept = drawn(2, 4, 6), kept_of(4, 3, width=4)
    other = 3 * states[..., torch.randperm(6, generator=torch.Generator().manual_seed(0))]
    other[1, 3] = 99
    assert float(neuron_selectivity(states, other, kept).abs().max()) < 1e-12
    assert float(neuron_selectivity(states, drawn(2, 4, 6, seed=5), kept).min()) > 1e-3


def test_gradients_are_those_of_the_formulas():
    student, teacher, kept = drawn(3, 3, 4).requires_grad_(), drawn(3, 3, 4, seed=1), kept_of(3, 2, 3, width=3)

    def contrast(states):
        vectors = normalize(states, dim=-1)
        return normalised_cross_entropy(vectors, normalize(teacher, dim=-1), kept, 0.5)

    assert torch.autograd.gradcheck(lambda s: neuron_selectivity(s, teacher, kept), (student,))
    assert torch.autograd.gradcheck(contrast, (student,))
    assert torch.autograd.gradcheck(lambda s: hinge(s, kept, kept, 0.5), (drawn(3, 3, 3, seed=4).requires_grad_(),))
    dead = torch.zeros(1, 3, 4, dtype=torch.float64, requires_grad=True)
    neuron_selectivity(dead, teacher[:1], kept[:1]).sum().backward()
    assert dead.grad.isfinite().all()


def test_selectivity_refuses_other_positions():
    with pytest.raises(ValueError, match=r"same texts and positions: \(2, 3, 4\), \(2, 5, 4\), \(2, 3\)"):
        neuron_selectivity(torch.ones(2, 3, 4), torch.ones(2, 5, 4), torch.ones(2, 3, dtype=torch.bool))


def test_the_mean_state_leaves_padding_out():
    states, kept = drawn(3, 4, 5), kept_of(4, 1, 0, width=4)
    found = mean_state(states, kept)
    torch.testing.assert_close(found, torch.stack([states[0].mean(0), states[1, 0], torch.zeros(5).double()]))


def test_a_film_is_its_mean_frame_and_its_drift():
    torch.manual_seed(0)
    clips, video = ClipEncoder(3, 4, 6), torch.rand(2, 4, 3, 16, 16)
    found = clips(video)
    assert found.shape == (2, 6)
    torch.testing.assert_close(found, clips(video[:, [0, 2, 1, 3]]))
    assert not torch.allclose(found, clips(video.flip(1)), atol=1e-4)
    still = video[:, :1].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(clips(still), clips(still[:, :1]))
    assert ClipEncoder(1, 2, 6)(torch.rand(2, 1, 1, 9, 9)).shape == (2, 6)


def test_a_head_maps_every_position_alone():
    torch.manual_seed(0)
    head, states = Head(5, 3), torch.randn(2, 4, 5)
    assert [type(m).__name__ for m in head] == ["Linear", "GELU", "LayerNorm", "Linear"]
    torch.testing.assert_close(head(states)[1, 2], head(states[1, 2]))


IDS = torch.tensor([30, 10, 70, 20, 50])


def test_draws_are_the_own_row_and_then_others_all_alike():
    memory = Memory(IDS, 4)
    own = memory.rows(torch.tensor([10, 70, 20]))
    assert own.tolist() == [0, 4, 1]
    rows = memory.draw(torch.tensor([10, 70, 20]), CLOCK, 20000)
    assert rows[:, 0].tolist() == own.tolist()
    for row, mine in zip(rows, own.tolist(), strict=True):
        shares = row[1:].bincount(minlength=5) / 20000
        wanted = torch.full((5,), 0.25)
        wanted[mine] = 0
        torch.testing.assert_close(shares, wanted, atol=0.02, rtol=0)
    again = memory.draw(torch.tensor([20]), CLOCK, 20000)
    assert torch.equal(again[0], rows[2])


def test_the_contrast_with_a_memory_is_its_definition():
    torch.manual_seed(0)
    memory, vectors = Memory(IDS, 4), normalize(torch.randn(2, 3, 4), dim=-1)
    rows = memory.draw(torch.tensor([10, 70, 20]), CLOCK, 6)
    scores = memory.scores(vectors, rows, 0.2)
    memory.fix(scores)
    found = memory.contrast(scores)
    values = torch.zeros(3, dtype=torch.float64)
    for side in (0, 1):
        bank = memory.banks[1 - side].double()
        e = torch.stack([torch.exp(vectors[side, i].double() @ bank[rows[i]].T / 0.2) for i in range(3)])
        g = e / (5 * e.mean())
        h = g / (g + 6 / 5)
        values -= h[:, 0].log() + (1 - h[:, 1:]).log().sum(1)
    torch.testing.assert_close(found.double(), values, rtol=1e-5, atol=1e-6)
    before = memory.log_z
    memory.fix(scores + 1)
    assert memory.log_z is before


def test_rows_move_and_keep_length_one():
    memory = Memory(IDS, 4)
    before, vectors = memory.banks.clone(), normalize(torch.randn(2, 2, 4), dim=-1)
    memory.move(torch.tensor([50, 10]), vectors, 0.3)
    moved = 0.3 * before[:, [3, 0]] + 0.7 * vectors
    torch.testing.assert_close(memory.banks[:, [3, 0]], moved / moved.norm(dim=-1, keepdim=True))
    assert torch.equal(memory.banks[:, [1, 2, 4]], before[:, [1, 2, 4]])


def test_a_memory_begins_within_the_papers_bounds_and_wants_two_samples():
    banks = Memory(torch.arange(500), 12).banks
    assert banks.abs().max() <= math.sqrt(3 / 12)
    assert banks.std().item() == pytest.approx(12**-0.5, rel=0.05)
    with pytest.raises(UserError, match="more than one sample"):
        Memory(torch.tensor([4]), 3)
