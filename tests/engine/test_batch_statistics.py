"""What batch normalisation remembers, against what a batch gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.engine.batch_statistics import Statistics, mixed, norms_of, statistics_distance
from toolkit import image_net


def test_statistics_are_those_of_what_the_norms_are_handed() -> None:
    net = image_net(3).double().eval()
    net.stages[0][1].running_mean.normal_()
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    with Statistics(net) as statistics:
        net(x)
        moments, distances, embedding = statistics.moments(), statistics.distances(), statistics.embedding()
    first = net.stages[0][0](x)
    second = net.stages[1][0](net.stages[0](x))
    for i, (value, norm) in enumerate([(first, net.stages[0][1]), (second, net.stages[1][1])]):
        columns = [value[:, c].flatten() for c in range(value.shape[1])]
        mean = torch.stack([sum(c) / len(c) for c in columns])
        variance = torch.stack([sum((c - m) ** 2) / len(c) for c, m in zip(columns, mean, strict=True)])
        torch.testing.assert_close(moments[i][0], mean)
        torch.testing.assert_close(moments[i][1], variance)
        wanted = (mean - norm.running_mean).square().sum().sqrt() + (variance - norm.running_var).square().sum().sqrt()
        torch.testing.assert_close(distances[i], wanted)
    torch.testing.assert_close(embedding, torch.cat([first.mean((2, 3)), second.mean((2, 3))], 1))
    (gradient,) = torch.autograd.grad(distances.sum(), x)
    assert gradient.abs().sum() > 0
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_moments_of_rows_are_those_of_a_smaller_batch() -> None:
    net, x = image_net(3).double().eval(), torch.randn(7, 1, 8, 8, dtype=torch.float64)
    with Statistics(net) as statistics:
        net(x)
        part = statistics.moments(slice(2, 5))
        net(x[2:5])
        torch.testing.assert_close(part, statistics.moments())


def test_norms_of_vectors_count_and_those_without_memory_do_not() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)).eval()
    assert norms_of(net) == [net[1]]
    x = torch.randn(6, 3)
    with Statistics(net) as statistics:
        net(x)
        torch.testing.assert_close(statistics.moments()[0][1], net[0](x).var(0, unbiased=False))
        torch.testing.assert_close(statistics.embedding(), net[0](x))


def test_mixed_moments_are_weighted_means() -> None:
    new = [(torch.tensor([2.0]), torch.tensor([4.0]))]
    assert mixed(None, new, 0.9) is new
    (mean, variance), *_ = mixed([(torch.tensor([1.0]), torch.tensor([0.0]))], new, 0.9)
    assert (mean.item(), variance.item()) == pytest.approx((1.1, 0.4))


def test_statistics_distance_is_two_lengths() -> None:
    a, b, c, d = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    wanted = sum((x - y) ** 2 for x, y in zip(a.tolist(), c.tolist(), strict=True)) ** 0.5
    wanted += sum((x - y) ** 2 for x, y in zip(b.tolist(), d.tolist(), strict=True)) ** 0.5
    assert statistics_distance(a, b, c, d).item() == pytest.approx(wanted)
    with pytest.raises(ValueError):
        statistics_distance(a, b, c, d[:1])
