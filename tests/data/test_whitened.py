"""Whitened images: the transform, and that every split gets that of the training images."""

from __future__ import annotations

import pytest
import torch

from limbeck.data import load_data
from limbeck.data.base import unscaled
from limbeck.data.whitened import whiten, zca
from limbeck.errors import UserError
from limbeck.registry import Block

DIGITS = Block("digits", {"train_size": 200, "test_size": 40})


def rows(source):
    return source.batch(torch.arange(len(source)))


def test_what_varies_enough_is_decorrelated_and_of_variance_one():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    images = (torch.randn(500, 12, generator=generator, dtype=torch.float64) @ mix).view(500, 3, 2, 2)
    mean, matrix = zca(images, 1e-12)
    flat = whiten(images, mean, matrix).double().flatten(1)
    assert torch.allclose(flat.T @ flat / 499, torch.eye(12, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(matrix, matrix.T)
    assert torch.allclose(flat.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-6)


def test_eps_bounds_what_is_blown_up():
    """Of independent pixels the factor is 1 / sqrt(variance + eps)."""
    images = torch.zeros(5, 1, 1, 2)
    images[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5])
    variance = images[:, 0, 0, 0].var()
    _, matrix = zca(images, 0.1)
    assert matrix.diagonal().tolist() == pytest.approx([float((variance + 0.1) ** -0.5), 0.1**-0.5])


def test_all_splits_are_whitened_by_the_training_images():
    plain, data = load_data(DIGITS), load_data(Block("whitened", {"of": DIGITS, "eps": 0.05}))
    mean, matrix = zca(unscaled(rows(plain.train)["input"], plain.spec), 0.05)
    for before, after in ((plain.train, data.train), (plain.test, data.test)):
        expected = whiten(unscaled(rows(before)["input"], plain.spec), mean, matrix)
        assert torch.allclose(rows(after)["input"], expected, atol=1e-5)
        assert torch.equal(rows(after)["label"], rows(before)["label"])
    assert (data.spec.classes, data.spec.shape) == (10, (1, 8, 8))
    shown = unscaled(rows(data.train)["input"], data.spec)
    assert 0 <= shown.min() <= shown.max() <= 1
    assert torch.allclose((shown - 0.5) / data.spec.std[0], rows(data.train)["input"], atol=1e-4)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="eps must be above 0"):
        load_data(Block("whitened", {"of": DIGITS, "eps": 0.0}))
    with pytest.raises(UserError, match="no images"):
        load_data(Block("whitened", {"of": Block("text", {"corpus": "grammar", "characters": 4000})}))
