"""KRR-ST: its step in float64, targets that begin as the teacher's features, and networks that learn them."""

from __future__ import annotations

import copy

import pytest
import torch

from limbeck.condensation.features import features_as_targets
from limbeck.condensation.methods.krr_st import KRRST
from limbeck.condensation.methods.real_subset import RealSubset
from limbeck.condensation.metrics import pretrain_transfer
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.synthetic import SyntheticImages
from limbeck.data.base import Data
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation
from limbeck.registry import Block, build

NET = Block("convnet", {"width": 4, "depth": 2, "norm": "batch"})


def teacher(data: Data) -> Teacher:
    network = fresh_network(Block("convnet", {"width": 3, "depth": 2}), data.spec.offers(), "teacher")
    return Teacher(network, {"features"}, "teacher")


def made(data: Data, dim: int = 12, **args) -> SyntheticImages:
    block = Block("synthetic_images", {"per_class": 2, "labels": "features", "dim": dim, "seed": 1, **args})
    return build("model", block, offers={**data.spec.offers(), "data": data})


def parts(data: Data, student: SyntheticImages) -> Parts:
    offers = data.spec.offers()
    return Parts(student, {"teacher": teacher(data)}, data.spec, offers, {"data": data.train})


def ready(data: Data, **args) -> KRRST:
    method = KRRST(**{"net": NET, "batch_real": 6, "augment": (), "pool": 2, "life": 6, "strength": 1e-3, **args})
    method.setup(parts(data, made(data)))
    return method


def go(method: KRRST, steps: range) -> list[float]:
    found = []
    for step in steps:
        found.append(method.terms(Clock(step, 100, seed=3))["features"].sum.item())
        method.after_step(Clock(step, 100, seed=3))
    return found


def test_targets_begin_as_the_teachers_features_of_the_images(data):
    method = ready(data)
    wanted = teacher(data).module.features(method.student.images)
    assert torch.allclose(method.student.targets, wanted, atol=1e-6)
    assert method.student.regression
    subset = RealSubset()
    student = made(data)
    subset.setup(parts(data, student))
    assert torch.allclose(student.targets, teacher(data).module.features(student.images), atol=1e-6)


def test_loss_and_gradients_are_the_definition_in_float64(data):
    method = ready(data)
    go(method, range(3))
    (term,) = method.terms(Clock(3, 100, seed=3)).values()
    term.sum.backward()
    network = copy.deepcopy(method._pool.network(3, torch.device("cpu"))).double().eval()
    assert network.head.out_features == 12
    real, _ = method.real.draw(6, ((3, 3), "real"))
    images = method.student.images.detach().double().requires_grad_()
    targets = method.student.targets.detach().double().requires_grad_()
    own, theirs = network.features(images), network.features(real.double())
    k_ss = own @ own.T + 1
    bent = k_ss + 1e-3 * k_ss.detach().trace() * torch.eye(6)
    wanted = teacher(data).module.double().features(real.double())
    loss = ((theirs @ own.T + 1) @ torch.linalg.inv(bent) @ targets - wanted).square().mean()
    loss.backward()
    assert term.sum.item() == pytest.approx(loss.item(), rel=1e-3)
    assert torch.allclose(method.student.images.grad.double(), images.grad, rtol=2e-2, atol=1e-5)
    assert torch.allclose(method.student.targets.grad.double(), targets.grad, rtol=2e-2, atol=1e-5)


def test_a_resumed_run_goes_on_with_the_pool(data):
    one, other = ready(data), ready(data)
    go(one, range(5))
    with torch.no_grad():
        other.student.load_state_dict(one.student.state_dict())
    other.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    assert go(other, range(5, 9)) == go(one, range(5, 9))


def test_networks_are_judged_after_the_set_and_without_it(data):
    student = SyntheticImages(
        torch.stack([data.train.images[data.train.labels == c].mean(0) for c in range(3)]),
        torch.arange(3),
        targets=3 * torch.eye(3),
        regression=True,
    )
    args = {"net": NET, "networks": 2, "epochs": 40, "lr": 0.05, "labelled": 1, "tune_epochs": 12, "tune_lr": 0.02}
    evaluation = Evaluation(student, spec=data.spec, source=data.test, train=data.train)
    values = pretrain_transfer(evaluation, **args).values
    assert set(values) == {"transfer_accuracy", "transfer_std", "scratch_accuracy"}
    assert values["scratch_accuracy"] > 0.9
    assert values["transfer_accuracy"] != values["scratch_accuracy"]
    kept = pretrain_transfer(evaluation, **{**args, "lr": 0.0}).values
    assert kept["transfer_accuracy"] == kept["scratch_accuracy"]  # but for the set there is no difference
    assert pretrain_transfer(evaluation, **args).values == values
    with pytest.raises(UserError, match="numbers to be met"):
        pretrain_transfer(Evaluation(SyntheticImages(student.images.detach(), torch.arange(3)), spec=data.spec))


def test_mistakes_are_told(data):
    with pytest.raises(UserError, match="dim: 12"):
        KRRST(net=NET).setup(parts(data, made(data, dim=11)))
    with pytest.raises(UserError, match="goes with labels: features"):
        made(data, labels="hard")
    with pytest.raises(UserError, match="one teacher"):
        features_as_targets(made(data), {})
    with pytest.raises(UserError, match="krrst: pool"):
        KRRST(pool=0)
