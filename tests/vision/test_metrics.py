"""Metrics of classifiers: readers of features, and the size of few levels."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation
from limbeck.metrics.base import evaluate as judge
from limbeck.registry import Block
from limbeck.vision.metrics.probes import linear_reader, nearest_reader
from limbeck.vision.quantise import huffman_bits, quantised
from toolkit import IMAGES, image_net, image_source

G = torch.Generator().manual_seed(0)


def evaluation(**changes: object) -> Evaluation:
    given = {"model": image_net(4).eval(), "spec": IMAGES, "source": image_source(16, 3), "train": image_source(32)}
    return Evaluation(**{**given, **changes})  # type: ignore[arg-type]


def test_readers_find_what_is_there() -> None:
    y = torch.arange(60) % 3
    x = torch.nn.functional.one_hot(y, 5).double() + 0.1 * torch.randn(60, 5, generator=G)
    x[:, 4] = 2.0  # a constant feature has no deviation
    assert torch.equal(linear_reader(x[:40], y[:40], x[40:], 1.0), y[40:])
    assert torch.equal(nearest_reader(x[:40], y[:40], x[40:], 5), y[40:])
    assert nearest_reader(x[:4], y[:4], x[40:], 20).shape == (20,)


def test_probes_leave_the_model_and_read_unlabelled_rows_not() -> None:
    train = image_source(32)
    hidden = train.take(torch.arange(32))
    hidden.tensors["label"] = torch.where(torch.arange(32) < 16, hidden.tensors["label"], -100)
    before = {k: v.clone() for k, v in image_net(4).state_dict().items()}
    one = evaluation(train=hidden)
    other = evaluation(train=train.take(torch.arange(16)))
    blocks = [Block("probes", {"neighbours": 3})]
    assert judge(one, blocks).values == judge(other, blocks).values
    assert all(torch.equal(v, before[k]) for k, v in one.model.state_dict().items())
    by_name = [Block("probes", {"layer": "stages.1"})]
    assert 0 <= judge(one, by_name).values["linear_probe"] <= 1


def test_probes_need_something_to_learn_from() -> None:
    with pytest.raises(UserError, match="training split"):
        judge(evaluation(train=None), ["probes"])
    bare = image_source(8)
    bare.tensors["label"] = torch.full((8,), -100)
    with pytest.raises(UserError, match="labelled"):
        judge(evaluation(train=bare), ["probes"])


def test_packing_counts_codes_levels_and_scales() -> None:
    net = image_net(4).eval()
    floats = sum(p.numel() for p in net.parameters()) * 4
    assert judge(evaluation(model=net), ["packing"]).values["packed_bytes"] == floats
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1:
                p.copy_(quantised(p, 1, 256))
    bits = 0
    for p in net.parameters():
        if p.dim() < 2:
            bits += 32 * p.numel()
            continue
        buckets = p.detach().flatten().split(256)
        ones = sum(int((b == b.max()).sum()) for b in buckets)
        bits += huffman_bits([ones, p.numel() - ones]) + 64 * len(buckets) + 64
    assert judge(evaluation(model=net), ["packing"]).values["packed_bytes"] == bits / 8 < floats / 4
