"""Grids of noise levels: their ends, and what they are even in."""

from __future__ import annotations

import pytest
import torch

from limbeck.diffusion import samplers
from limbeck.diffusion.grids import grid_of
from limbeck.diffusion.paths import VPCosine


def test_the_grid_is_that_of_the_paper():
    grid = samplers.karras_grid(18, 0.002, 80.0)
    assert len(grid) == 19
    assert grid[-1] == 0
    i = 5
    by_hand = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert float(grid[i]) == pytest.approx(by_hand, rel=1e-12)
    assert [float(g) for g in (grid[0], grid[-2])] == pytest.approx([80, 0.002])
    assert samplers.karras_grid(1, 0.002, 80.0).tolist() == pytest.approx([80.0, 0.0])


@pytest.mark.parametrize("name", ["karras", "log_snr", "linear", "shifted"])
def test_every_grid_falls_from_one_end_to_the_other_and_then_to_zero(name):
    grid = grid_of(name, 7, 0.02, 20.0)
    assert grid.shape == (8,)
    assert bool((grid.diff() < 0).all())
    assert grid[[0, -2, -1]].tolist() == pytest.approx([20.0, 0.02, 0.0])
    assert grid_of(name, 1, 0.02, 20.0).tolist() == pytest.approx([20.0, 0.0])


def evenly(values: torch.Tensor) -> None:
    torch.testing.assert_close(values.diff(), values.diff().mean().expand(len(values) - 1))


def test_what_the_grids_are_even_in():
    evenly(samplers.log_snr_grid(9, 0.02, 20.0)[:-1].log())
    level = samplers.linear_grid(9, 0.02, 20.0)[:-1]
    evenly(level / (1 + level))
    evenly(torch.atan(samplers.linear_grid(9, 0.02, 20.0, VPCosine())[:-1]))


def test_the_shift_moves_even_times_by_its_formula():
    level = samplers.shifted_grid(9, 0.02, 20.0, shift=4.0)[:-1]
    shifted = level / (1 + level)
    even = shifted / (4 - 3 * shifted)  # the inverse of t <- 4 t / (1 + 3 t)
    evenly(even)
    torch.testing.assert_close(samplers.shifted_grid(9, 0.02, 20.0, 1.0), samplers.linear_grid(9, 0.02, 20.0))
    with pytest.raises(ValueError, match="shift"):
        samplers.shifted_grid(9, 0.02, 20.0, 0.0)


@pytest.mark.parametrize("args", [(0, 0.1, 1.0), (4, 0.0, 1.0), (4, 2.0, 1.0)])
def test_impossible_grids_are_refused(args):
    with pytest.raises(ValueError, match="grid needs"):
        samplers.karras_grid(*args)
