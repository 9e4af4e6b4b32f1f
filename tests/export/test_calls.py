import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.export.calls import SIZES, call_of, example_rows
from limbeck.export.store import Stored
from limbeck.registry import Block


def test_images_are_the_rows_that_were_kept(model):
    rows = {"input": torch.randn(3, 1, 8, 8)}
    call = call_of(model("cnn"), rows)
    assert [len(b[0]) for b in call.batches] == list(SIZES) and call.origin == "3 rows of the data"
    assert torch.equal(call.batches[-1][0][3], rows["input"][0])  # too few rows begin again
    assert call.signature() == {"input": ["batch", 1, 8, 8]} and call.output == "logits"


def test_without_rows_inputs_are_random_and_the_same_each_time(model):
    first, second = (call_of(model("mlp")).batches for _ in range(2))
    assert call_of(model("mlp")).origin == "random inputs"
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


def test_tokens_vary_in_length_and_have_padding(model):
    call = call_of(model("causal_lm"))
    assert call.inputs == ("input_ids", "attention_mask")
    assert len({b[0].shape[1] for b in call.batches}) > 1 and not call.batches[-1][1].all()
    assert call.limits == {"sequence": 8} and call.signature()["input_ids"] == ["batch", "sequence"]
    assert call.module(*call.batches[0]).shape == (2, 8, 12)


def test_a_generator_takes_noise_and_its_class(model):
    plain, labelled = call_of(model("one_step")), call_of(model("labelled"))
    assert (plain.inputs, plain.output) == (("noise",), "samples")
    assert labelled.inputs == ("noise", "label") and 0 <= int(labelled.batches[-1][1].max()) < 3
    assert float(plain.batches[-1][0].std()) > 0.3  # noise, not the zeros of an example


def test_a_denoiser_takes_positive_levels(model):
    call = call_of(model("denoiser"))
    assert (call.inputs, call.output) == (("x", "sigma"), "denoised")
    assert all(bool((b[1] > 0).all()) for b in call.batches)


def test_a_model_of_named_outputs_is_a_function_of_its_logits():
    class Named(nn.Module):
        def forward(self, x):
            return {"features": x, "logits": x.flatten(1)[:, :3]}

    call = call_of(Stored(Named(), Block("mine"), spec={"shape": (1, 4, 4)}))
    assert call.output == "logits" and call.module(*call.batches[0]).shape == (2, 3)


def test_parameters_take_no_gradient(model):
    call = call_of(model("cnn"))
    assert not any(p.requires_grad for p in call.module.parameters()) and not call.module.training


def test_what_is_no_function_is_refused(model):
    with pytest.raises(UserError, match=r"a set of images.*images\.npz"):
        call_of(model("synthetic"))
    with pytest.raises(UserError, match="does not say the shape"):
        call_of(Stored(nn.Linear(2, 2), Block("mine")))


def test_example_rows_hold_inputs_and_no_labels():
    class Source:
        def __len__(self):
            return 5

        def batch(self, indices, view=0):
            return {"input": torch.randn(len(indices), 2), "label": indices, "id": indices, "view": view}

    rows = example_rows(Source())
    assert rows.keys() == {"input"} and rows["input"].shape == (5, 2)
