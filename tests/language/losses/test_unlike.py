import pytest
import torch

from limbeck.language.losses import sorted_l1, uld


def by_hand(p, q):
    p, q = (sorted(x.tolist(), reverse=True) for x in (p, q))
    width = max(len(p), len(q))
    p, q = (x + [0.0] * (width - len(x)) for x in (p, q))
    return sum(abs(a - b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("width", [3, 5, 8])
def test_it_is_the_distance_of_sorted_probabilities(width):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, width, generator=generator, dtype=torch.float64)
    value = uld(student, teacher, temperature=2.0)
    for b in range(2):
        for t in range(3):
            wanted = by_hand((teacher[b, t] / 2).softmax(-1), (student[b, t] / 2).softmax(-1))
            assert value[b, t].item() == pytest.approx(wanted, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: uld(x, teacher), student)


def test_the_names_of_the_tokens_do_not_matter():
    student, teacher = torch.arange(24.0).view(4, 6).sin(), torch.arange(24.0).view(4, 6).cos()
    torch.testing.assert_close(uld(student, teacher[:, torch.tensor([3, 0, 5, 1, 4, 2])]), uld(student, teacher))
    assert float(uld(student, student.flip(-1)).abs().max()) < 1e-6


def test_nothing_is_broadcast():
    with pytest.raises(ValueError, match="leading dimensions"):
        sorted_l1(torch.rand(2, 3), torch.rand(1, 3))
