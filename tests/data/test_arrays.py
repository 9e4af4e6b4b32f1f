import numpy as np
import pytest
import torch

from limbeck.data.arrays import (
    ArraySource,
    Prepare,
    as_images,
    as_inputs,
    build_transform,
    channel_stats,
    fingerprint,
    from_splits,
)
from limbeck.data.base import DataSpec, Source
from limbeck.data.transforms import Flip, Noise
from limbeck.errors import UserError
from limbeck.registry import Block

SPEC = DataSpec(shape=(3, 4, 4), classes=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def images(n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator)


def source(n=12, transform=None, seed=0, spec=SPEC, **more):
    return ArraySource({"input": images(n), "label": torch.arange(n) % 3, **more}, spec, transform, seed)


def test_bytes_are_scaled_and_normalised_after_the_gather():
    rows = torch.tensor([5, 0, 5])
    batch = source().batch(rows, view=4)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (SPEC.mean, SPEC.std))
    expected = (images()[rows].double() / 255 - mean) / std
    assert batch["input"].dtype == torch.float32
    torch.testing.assert_close(batch["input"].double(), expected, rtol=1e-6, atol=1e-6)
    assert batch["label"].tolist() == [2, 0, 2] and batch["id"].tolist() == [5, 0, 5] and batch["view"] == 4
    assert source().tensors["input"].dtype == torch.uint8, "kept as bytes"


def test_floats_are_taken_as_they_are():
    x = torch.randn(4, 3, 4, 4)
    batch = ArraySource({"input": x}, SPEC).batch(torch.tensor([3, 1]))
    assert torch.equal(batch["input"], x[[3, 1]])


def test_a_batch_does_not_change_the_stored_rows():
    rows = source(transform=Noise(std=1.0))
    kept = rows.tensors["input"].clone()
    rows.batch(torch.arange(12))["input"].zero_()
    assert torch.equal(rows.tensors["input"], kept)
    floats = ArraySource({"input": torch.ones(3, 2)}, DataSpec(shape=(2,)))
    floats.batch(torch.arange(3))["input"].zero_()
    assert floats.tensors["input"].sum() == 6


def test_the_same_id_and_view_give_the_same_tensors_in_any_batch():
    rows = source(transform=build_transform([Block("crop"), Block("flip"), Block("noise"), Block("cutout")]))
    whole = rows.batch(torch.arange(12), view=3)["input"]
    for some in ([7], [7, 7], [0, 7, 2], [11, 7]):
        batch = rows.batch(torch.tensor(some), view=3)
        for place, row in enumerate(some):
            assert torch.equal(batch["input"][place], whole[row])
    assert not torch.equal(rows.batch(torch.tensor([7]), view=4)["input"][0], whole[7])


def test_ids_name_the_augmentation_not_rows():
    first = source(transform=Noise(std=1.0), id=torch.arange(100, 112))
    assert torch.equal(first.take(torch.tensor([4])).batch(torch.tensor([0]), 1)["input"][0], first.batch(
        torch.tensor([4]), 1)["input"][0])  # fmt: skip
    assert first.take(torch.tensor([4])).batch(torch.tensor([0]))["id"].item() == 104


def test_the_fingerprint_follows_the_content():
    base = source().fingerprint
    assert base == source().fingerprint == source().to("cpu").fingerprint
    changed = images()
    changed[3, 1, 2, 2] ^= 1
    assert ArraySource({"input": changed, "label": torch.arange(12) % 3}, SPEC).fingerprint != base
    assert ArraySource({"input": images(), "label": (torch.arange(12) + 1) % 3}, SPEC).fingerprint != base
    assert source(id=torch.arange(1, 13)).fingerprint != base
    assert source(transform=Flip()).fingerprint != base
    assert source(transform=Flip(p=0.4)).fingerprint != source(transform=Flip()).fingerprint
    assert source(transform=Flip(), seed=1).fingerprint != source(transform=Flip()).fingerprint
    assert source(spec=DataSpec(shape=(3, 4, 4), classes=3)).fingerprint != base
    assert source(seed=1).fingerprint == base, "without augmentation there is nothing to seed"


def test_the_fingerprint_tells_shapes_and_types_apart():
    x = torch.zeros(4, 2)
    assert fingerprint({"a": x}) != fingerprint({"a": x.view(2, 4)})
    assert fingerprint({"a": x}) != fingerprint({"a": x.to(torch.int32)})
    assert fingerprint({"a": x}) != fingerprint({"b": x})
    assert fingerprint({"a": x}) == fingerprint({"a": torch.zeros(2, 4).t()}), "not the memory layout"


def test_a_source_is_a_source():
    assert isinstance(source(), Source)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "has no rows"),
        ({"input": torch.zeros(0, 3, 4, 4)}, "has no rows"),
        ({"input": torch.zeros(4, 3, 4, 4), "label": torch.zeros(3).long()}, "4 of 'input', 3 of 'label'"),
        ({"input": torch.full((2, 3, 4, 4), float("nan"))}, "not finite, the first in row 0"),
        ({"input": torch.tensor([0.0, float("inf")]).view(2, 1, 1, 1).expand(2, 3, 4, 4)}, "the first in row 1"),
        ({"input": torch.zeros(2, 3, 4, 4), "label": torch.tensor([0, 3])}, "label 3 in row 1 of data is out of range"),
        ({"input": torch.zeros(2, 3, 4, 4), "label": torch.tensor([-1, 0])}, "label -1 in row 0"),
        ({"input": torch.zeros(2, 3, 4, 4), "label": torch.zeros(2)}, "must be int64"),
        ({"input": torch.zeros(2, 3, 4, 4, dtype=torch.float64)}, "uint8 or float32"),
        ({"input": torch.zeros(2, 3, 5, 4)}, r"shape \[3, 5, 4\], the spec says \[3, 4, 4\]"),
        ({"input": torch.zeros(2, 3, 4, 4), "id": torch.tensor([1, 1])}, "more than once"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, says):
    with pytest.raises(UserError, match=says):
        ArraySource(fields, SPEC)


def test_one_class_is_refused_and_unlabelled_rows_are_not():
    with pytest.raises(UserError, match="at least two"):
        ArraySource({"label": torch.zeros(3).long()}, DataSpec(classes=1))
    ArraySource({"label": torch.tensor([0, -100, 2])}, SPEC)


def test_mean_of_another_number_of_channels_is_refused():
    with pytest.raises(UserError, match="2 values for 3 channels"):
        Prepare(DataSpec(shape=(3, 4, 4), mean=(0.1, 0.2), std=(1.0, 1.0)))


def test_only_train_is_augmented_and_ids_are_unique_over_splits():
    pair = (images(), torch.arange(12) % 3)
    data = from_splits({"train": pair, "test": pair, "val": (images(0), torch.zeros(0).long())}, SPEC, [Block("flip")])
    assert data.val is None
    assert data.train.batch(torch.tensor([0, 1]))["id"].tolist() == [0, 1]
    assert not set(data.train.tensors["id"].tolist()) & set(data.test.tensors["id"].tolist())
    views = {s: [getattr(data, s).batch(torch.arange(12), v)["input"] for v in (0, 1)] for s in ("train", "test")}
    assert torch.equal(*views["test"]) and not torch.equal(*views["train"])


def test_augment_takes_blocks_maps_and_callables():
    flip = Flip(p=1.0)
    x, i = torch.randn(2, 1, 3, 3), torch.arange(2)
    for entry in (Block("flip", {"p": 1.0}), {"name": "flip", "p": 1.0}, flip):
        assert torch.equal(build_transform([entry])(x, i, 0, 0), x.flip(-1))
    assert build_transform([]) is None and build_transform(None) is None
    with pytest.raises(UserError, match="augment lists transforms"):
        build_transform([3])


def test_arrays_become_what_is_kept():
    assert as_inputs(np.zeros((2, 5, 6), np.uint8)).shape == (2, 1, 5, 6)
    assert as_inputs(np.zeros((2, 5, 6, 3), np.uint8)).shape == (2, 3, 5, 6)
    assert as_inputs(np.zeros((2, 3, 5, 6), np.uint8)).shape == (2, 3, 5, 6)
    assert as_inputs(np.zeros((2, 7), np.float64)).dtype == torch.float32
    assert as_inputs(np.array([[1, 2]], dtype=">i4")).tolist() == [[1.0, 2.0]]
    assert as_inputs(np.array([[1, 70000]], dtype=np.uint32)).tolist() == [[1.0, 70000.0]]
    assert as_inputs([[1, 2], [3, 4]]).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(UserError, match="are not numbers"):
        as_inputs(np.array([["a"]]))
    with pytest.raises(UserError, match="expected rows"):
        as_inputs(np.zeros(3))


def test_channels_move_with_their_pixels():
    last = torch.arange(2 * 5 * 6 * 3).view(2, 5, 6, 3)
    assert torch.equal(as_images(last)[1, 2], last[1, :, :, 2])


def test_channel_statistics_equal_the_definition():
    x = images(30)
    scaled = x.double() / 255
    mean, std = channel_stats(x)
    np.testing.assert_allclose(mean, scaled.mean(dim=(0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(std, scaled.std(dim=(0, 2, 3), unbiased=False), atol=1e-6)
    assert channel_stats(torch.zeros(3, 1, 2, 2, dtype=torch.uint8)) == ((0.0,), (1.0,))
