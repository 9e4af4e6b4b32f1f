"""The student alone."""

from __future__ import annotations

import torch

from limbeck.registry import Block, build
from toolkit import set_up, toy_net, toy_source


def batch() -> dict:
    return toy_source().batch(torch.arange(16))


def test_it_is_cross_entropy_with_smoothing() -> None:
    x = batch()
    method = set_up(build("method", Block("supervised", {"label_smoothing": 0.1})), toy_net())
    term = method.terms(x)["ce"]
    expected = torch.nn.functional.cross_entropy(method.student(x["input"]), x["label"], label_smoothing=0.1)
    assert torch.allclose(term.sum / term.count, expected, atol=1e-6)
