"""Judging a condensed set by the networks it trains."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from limbeck.condensation.metrics import few_steps, fresh_networks, kernel_ridge, pictures, whole_data
from limbeck.condensation.synthetic import SyntheticImages, valid_range
from limbeck.data.base import DataSpec
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, directions
from limbeck.registry import Block, find

SMALL = [Block("convnet", {"width": 8, "depth": 2})]


def student(data, images: torch.Tensor) -> SyntheticImages:
    return SyntheticImages(images, torch.arange(3).repeat_interleave(len(images) // 3), valid_range(data.spec))


def judge(data, images: torch.Tensor, **args):
    evaluation = Evaluation(student(data, images), spec=data.spec, source=data.test, batch_size=16)
    return fresh_networks(evaluation, **{"networks": 2, "epochs": 20, "architectures": SMALL, "lr": 0.05, **args})


def test_class_means_teach_and_wrong_labels_do_not(data):
    means = torch.stack([data.train.images[data.train.labels == c].mean(0) for c in range(3)])
    good, bad = judge(data, means), judge(data, means[[1, 2, 0]])
    assert good.values["fresh_accuracy"] > 0.9
    assert bad.values["fresh_accuracy"] < 0.1
    each = good.details["fresh_accuracies"]["convnet(width=8, depth=2)"]
    assert len(each) == 2
    assert good.values["fresh_accuracy"] == pytest.approx(sum(each) / 2)
    assert good.values["fresh_accuracy_std"] == pytest.approx(abs(each[0] - each[1]) / 2)


def test_sizes_are_what_is_delivered(data):
    values = judge(data, torch.zeros(6, 1, 8, 8), epochs=1).values
    assert values["images"] == 6
    assert values["image_bytes"] == 6 * 64 * 4
    assert values["label_bytes"] == 6 * 8
    assert values["adapter_bytes"] == 0
    assert values["equal_storage_images"] == 6


def test_a_set_is_learnt_as_it_asks_to_be(data):
    """At its own rate, by squared error where its targets are numbers."""
    means = torch.stack([data.train.images[data.train.labels == c].mean(0) for c in range(3)])
    targets = 3 * torch.eye(3)[[1, 2, 0]]

    def accuracy_of(**form):
        model = SyntheticImages(means, torch.arange(3), **form)
        evaluation = Evaluation(model, spec=data.spec, source=data.test)
        scores = fresh_networks(evaluation, networks=2, epochs=20, architectures=SMALL, augment=())
        return scores.values["fresh_accuracy"]

    assert accuracy_of(rate=0.05) > 0.9
    assert accuracy_of(rate=1e-6) < 0.8
    assert accuracy_of(rate=0.05, targets=targets, regression=True) < 0.1


def test_judging_neither_trains_nor_moves_the_images(data):
    torch.manual_seed(0)
    images, before = torch.randn(3, 1, 8, 8), torch.get_rng_state()
    model = student(data, images)
    evaluation = Evaluation(model, spec=data.spec, source=data.test)
    first = fresh_networks(evaluation, networks=1, epochs=2, architectures=SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.images, images)
    assert model.images.grad is None
    assert fresh_networks(evaluation, networks=1, epochs=2, architectures=SMALL) == first


def test_several_architectures_are_averaged(data):
    scores = judge(data, torch.randn(3, 1, 8, 8), networks=1, epochs=1, architectures=[*SMALL, Block("logistic")])
    assert set(scores.details["fresh_accuracies"]) == {"convnet(width=8, depth=2)", "logistic"}


def test_details_are_json_with_images_in_zero_to_one(data):
    details = json.loads(json.dumps(judge(data, 9 * torch.randn(6, 1, 8, 8), epochs=1).details))
    images = torch.tensor(details["images"])
    assert images.shape == (6, 1, 8, 8)
    assert images.min() == 0
    assert images.max() == 1
    assert details["image_labels"] == [0, 0, 1, 1, 2, 2]


def test_pictures_undo_the_normalisation_and_keep_the_first_of_each_class():
    spec = DataSpec(shape=(2, 1, 1), mean=(0.5, 0.25), std=(0.5, 0.5))
    shown = pictures(torch.tensor([-1.0, 0.5]).view(1, 2, 1, 1), torch.tensor([4]), spec)
    assert shown == {"images": [[[[0.0]], [[0.5]]]], "image_labels": [4]}
    many = pictures(torch.zeros(40, 2, 1, 1), torch.arange(2).repeat_interleave(20), spec)
    assert many["image_labels"] == [0] * 10 + [1] * 10


def test_every_value_has_a_direction(data):
    facts = find("metric", "fresh_networks").facts
    values = judge(data, torch.zeros(3, 1, 8, 8), epochs=1).values
    assert set(values) == set(facts["better"]) == set(facts["labels"])
    assert directions()["fresh_accuracy"] == "higher"


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="not Linear"):
        fresh_networks(Evaluation(nn.Linear(2, 2), spec=data.spec, source=data.test))
    with pytest.raises(UserError, match="at least 1"):
        judge(data, torch.zeros(3, 1, 8, 8), networks=0)
    data.test.labels = None
    with pytest.raises(UserError, match="no labels"):
        judge(data, torch.zeros(3, 1, 8, 8))


def test_whole_data_is_trained_on_once(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))
    model = student(data, torch.zeros(3, 1, 8, 8))
    evaluation = Evaluation(model, spec=data.spec, source=data.test, train=data.train)
    args = {"epochs": 20, "architectures": SMALL, "lr": 0.05, "batch_size": 16, "augment": ()}
    first = whole_data(evaluation, **args)
    assert first.values["whole_accuracy"] > 0.9
    monkeypatch.setattr("limbeck.condensation.metrics.post_train", None)
    assert whole_data(evaluation, **args) == first
    with pytest.raises(TypeError):
        whole_data(evaluation, **{**args, "epochs": 19})
    with pytest.raises(UserError, match="needs training data"):
        whole_data(Evaluation(model, spec=data.spec, source=data.test))


def test_a_few_steps_are_taken_at_the_sets_own_rate_from_weights_that_may_be_known(data):
    means = torch.stack([data.train.images[data.train.labels == c].mean(0) for c in range(3)])

    def accuracy_of(rate, **args):
        model = SyntheticImages(means, torch.arange(3), rate=rate)
        evaluation = Evaluation(model, spec=data.spec, source=data.test, seed=args.pop("seed", 0))
        return few_steps(evaluation, **{"net": SMALL[0], "epochs": 10, **args}).values

    assert accuracy_of(0.1)["few_steps_accuracy"] > 0.9 > accuracy_of(1e-6)["few_steps_accuracy"]
    assert accuracy_of(1e-6, lr=0.1) == accuracy_of(0.1)
    assert accuracy_of(0.1, start="fixed")["few_steps_std"] == 0
    untrained = [accuracy_of(1e-6, start="fixed", seed=seed)["few_steps_accuracy"] for seed in (3, 3, 4, 5, 6)]
    assert untrained[0] == untrained[1]
    assert len(set(untrained)) > 1
    with pytest.raises(UserError, match="at least 1"):
        accuracy_of(0.1, epochs=0)


def test_kernel_ridge_tells_images_by_those_of_the_set(data):
    def accuracy_of(images, **form):
        model = SyntheticImages(images, torch.arange(3).repeat_interleave(len(images) // 3), **form)
        return kernel_ridge(Evaluation(model, spec=data.spec, source=data.test)).values["ridge_accuracy"]

    means = torch.stack([data.train.images[data.train.labels == c].mean(0) for c in range(3)])
    assert accuracy_of(means) > 0.9
    turned = torch.eye(3)[[1, 2, 0]] - 1 / 3
    assert accuracy_of(means, targets=turned, regression=True) < 0.1
