import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.export.calls import Call, call_of
from limbeck.export.checks import LIMIT, check


@pytest.fixture
def call(model) -> Call:
    return call_of(model("mlp"))


def shifted(call, amount):
    """The model with one output of one sample off by a share of the largest output."""

    def run(batch):
        out = call.module(*batch).clone()
        out[0, 0] += amount * out.abs().max()
        return out

    return run


def test_the_largest_difference_is_told(call):
    found = check(call, shifted(call, 0.5 * LIMIT), "the copy")
    assert found["relative"] == pytest.approx(0.5 * LIMIT, rel=0.01) and found["limit"] == LIMIT
    assert check(call, lambda batch: call.module(*batch), "the copy")["largest_difference"] == 0.0
    assert [b[0] for b in found["batches"]] == [2, 1, 5, 16]


def test_one_wrong_output_is_enough_to_refuse(call):
    with pytest.raises(UserError, match="the copy differs from the model on a batch of 2"):
        check(call, shifted(call, 2 * LIMIT), "the copy")


def test_a_batch_of_one_size_alone_is_not_believed(call):
    """An export whose batch size was frozen runs on the size that it was traced with."""

    def run(batch):
        return call.module(*batch) if len(batch[0]) == 2 else call.module(*batch)[:0]

    with pytest.raises(UserError, match=r"gives \[0, 10\] for a batch of 1"):
        check(call, run, "the copy")


def test_values_that_are_not_finite_are_no_agreement(call):
    with pytest.raises(UserError, match="by nan"):
        check(call, lambda batch: call.module(*batch) * float("nan"), "the copy")


def test_an_error_of_the_runtime_is_told_with_the_batch(call):
    def run(batch):
        raise RuntimeError("\nInvalid dimensions\nat 0x7f")

    with pytest.raises(UserError, match=r"does not run on a batch of 2: Invalid dimensions$"):
        check(call, run, "the copy")


def test_padding_is_not_compared(model):
    call = call_of(model("causal_lm"))

    def run(batch):
        return call.module(*batch) + 100.0 * (batch[1] == 0)[..., None]

    assert check(call, run, "the copy")["relative"] == 0.0


def test_an_output_of_zeros_is_compared_too():
    zero = nn.Linear(2, 2)
    nn.init.zeros_(zero.weight), nn.init.zeros_(zero.bias)
    call = Call(zero, ("input",), "logits", ({0: "batch"},), {}, ((torch.randn(2, 2),),), "random inputs")
    assert check(call, lambda batch: zero(*batch), "the copy")["relative"] == 0.0
    with pytest.raises(UserError, match="differs"):
        check(call, lambda batch: zero(*batch) + 1e-9, "the copy")
