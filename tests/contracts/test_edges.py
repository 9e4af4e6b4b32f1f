"""Batches at the edge: a single sample, no label at all, less data than a batch, half precision."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import UserError
from toolkit.benches import ROWS, Bench, Masked, Run, trained


def check_finite(run: Run) -> None:
    """Every term and every weight is a number."""
    bad = [key for key, value in run.noted if not math.isfinite(value)]
    assert not bad, bad
    wrong = [k for k, v in run.weights.items() if v.is_floating_point() and not v.isfinite().all()]
    assert not wrong, wrong


def test_a_batch_of_one_sample(bench: Bench, tmp_path: Path) -> None:
    """One sample is enough, or the method says in one line that it compares samples."""
    try:
        check_finite(trained(bench.varied(train={"steps": 2, "batch_size": 1}), tmp_path))
    except UserError as refused:
        assert bench.couples_samples and "\n" not in str(refused), refused


def test_less_data_than_a_batch(bench: Bench, tmp_path: Path) -> None:
    check_finite(trained(bench.varied(train={"steps": 2, "batch_size": 4 * ROWS}), tmp_path))


def test_samples_without_any_label_pull_at_nothing(bench: Bench, tmp_path: Path) -> None:
    """The loss on labels is exactly zero, and so is its gradient; what the teacher says still counts."""
    hide: Any = partial(Masked, everything=True)
    try:
        run = trained(bench.varied(train={"steps": 2}), tmp_path, wrap=hide)
    except UserError as refused:
        assert "label" in str(refused) or "class" in str(refused), refused
        return
    check_finite(run)
    noted = run.values("term") | run.values("share")
    on_labels = {key: value for key, value in noted.items() if key[2].endswith("/ce")}
    assert not any(on_labels.values()), on_labels


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bfloat16_trains_float32_weights(bench: Bench, tmp_path: Path) -> None:
    run = trained(bench.varied(train={"steps": 3, "precision": "bf16-mixed"}), tmp_path)
    check_finite(run)
    learnt = {n: v for n, v in run.weights.items() if not n.endswith("soft")}  # stored in half precision
    assert {v.dtype for v in learnt.values() if v.is_floating_point()} <= {torch.float32}
