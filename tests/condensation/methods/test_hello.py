"""HeLlO: the projector's formulas in float64, what learns in it, live labels, its bytes, and a set read again."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from limbeck.condensation.lightened import LightenedImages, divergence
from limbeck.condensation.methods.hello import HeLlO
from limbeck.condensation.methods.sre2l import SRe2L
from limbeck.condensation.metrics import fresh_networks
from limbeck.condensation.networks import fresh_network
from limbeck.condensation.relabel import learn
from limbeck.condensation.synthetic import labeller
from limbeck.data.base import Data
from limbeck.engine.method import Clock
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation
from limbeck.registry import Block, build
from toolkit.decoupled import batch_norm_teacher, descend, image_set, loss_of, set_up

pytest.importorskip("peft")

ENCODER = Block("cnn", {"width": 4, "depth": 2})


def made(data: Data | None, like: Data, **args) -> LightenedImages:
    given = {"encoder": ENCODER, "rank": 2, "scale": 10.0, "per_class": 2, "epochs": 3, "batch_size": 4, **args}
    offers = {**like.spec.offers(), **({} if data is None else {"data": data})}
    return build("model", Block("lightened_images", {"seed": 5, **given}), offers=offers)


def encoder(data: Data, seed: int = 3, width: int = 4) -> Teacher:
    found = batch_norm_teacher(data, seed, width)
    return Teacher(found.module, {"features"}, "encoder")


def ready(data: Data, student: LightenedImages | None = None, **args) -> HeLlO:
    given = {"fit_epochs": 3, "fit_batch": 15, "flip": False, "jitter": 0, **args}
    teacher = batch_norm_teacher(data, 0, steps=20)
    return set_up(HeLlO(**given), data, student or made(data, data), teacher=teacher, encoder=encoder(data))


def low_rank_layers(module: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in module.named_modules() if hasattr(layer, "lora_A")}


def test_the_projector_is_its_formula_in_float64(data):
    projector = ready(data).student.projector.double()
    x = data.train.images[:7].double()
    # The adapted network by hand: the product of the factors is added to each convolution's weight.
    plain = copy.deepcopy(encoder(data).module).double().eval()
    layers = low_rank_layers(projector.encoder.base)
    assert len(layers) == 2
    for name, layer in layers.items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert a.shape[0] == 2 and b.shape[1] == 2 and b.abs().sum() > 0
        with torch.no_grad():
            plain.get_submodule(name).weight += torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    e = plain.features(x)
    head = projector.prototypes + projector.up @ projector.down
    wanted = 10 * (e / e.norm(dim=1, keepdim=True)) @ head.T
    assert torch.allclose(projector(x), wanted, rtol=1e-9)


def test_the_head_begins_as_the_mean_feature_of_each_class(data):
    projector = made(data, data).projector
    network = encoder(data).module
    projector.adopt_(network)
    projector.begin_(data.train.images, data.train.labels)
    for c in range(3):
        mean = network.features(data.train.images[data.train.labels == c]).mean(0)
        assert torch.allclose(projector.prototypes[c], mean / mean.norm(), atol=1e-6)
        assert projector.prototypes[c].norm().item() == pytest.approx(1)
    features = network.features(data.train.images)
    cosines = torch.cosine_similarity(features[:, None], projector.prototypes[None], 2)
    assert torch.allclose(projector(data.train.images), 10 * cosines, atol=1e-4)


def test_divergence_is_the_definition_in_float64():
    taught, said = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p, q = (torch.exp(z / 3) / torch.exp(z / 3).sum(1, keepdim=True) for z in (taught, said))
    assert torch.allclose(divergence(taught, said, 3.0), (p * (p / q).log()).sum(1))
    assert divergence(said, said, 3.0).abs().max() < 1e-12


def test_only_low_rank_factors_learn_in_the_first_stage(data):
    student = made(data, data)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    method = ready(data, student, start="own")
    network = encoder(data).module.state_dict()
    after = student.state_dict()
    learnt = {n for n, v in after.items() if not torch.equal(v, before[n]) and "prototypes" not in n}
    factors = {n for n in after if ".lora_" in n or n in ("projector.down", "projector.up")}
    given = {n for n in after if n.startswith("projector.encoder.") and ".lora_" not in n}
    assert factors <= learnt <= factors | given
    public = student.projector.public
    assert set(public) == {n for n in network if not n.startswith("head")}
    assert all(torch.equal(v, network[n]) for n, v in public.items())
    assert [n for n, p in student.named_parameters() if p.requires_grad] == ["images"]
    assert all(p.grad is None for p in student.parameters())
    # Nor do they move with the images.
    kept = {n: v.clone() for n, v in after.items()}
    descend(method, 4)
    moved = [n for n, v in student.state_dict().items() if not torch.equal(v, kept[n])]
    assert moved == ["images"]


def test_the_first_stages_loss_is_its_definition_in_float64(data):
    method = ready(data, fit_ce=0.3, temperature=2.0)
    projector, teacher = method.student.projector.double(), method.teacher
    teacher.module.double()
    x, truth = data.train.images[:6].double(), torch.softmax(torch.randn(6, 3, dtype=torch.float64), 1)
    z, h = teacher.module(x), projector(x)
    p, q = torch.softmax(z / 2, 1), torch.softmax(h / 2, 1)
    wanted = (p * (p.log() - q.log())).sum(1).mean() - 0.3 * (truth * h.log_softmax(1)).sum(1).mean()
    found = method.fit_loss(projector, x, truth)
    # What the teacher says comes as float32 logits.
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_first_stage_brings_the_projector_near_the_teacher(data):
    def gap(method: HeLlO) -> float:
        x = data.test.images
        return float(divergence(labeller(method.teacher)(x), method.student.projector(x), 4.0).mean().detach())

    assert gap(ready(data, fit_epochs=30, fit_lr=0.02)) < 0.5 * gap(ready(data, fit_epochs=1, fit_lr=1e-9))


def test_the_second_stages_terms_are_those_of_sre2l_and_the_divergence(data):
    method = ready(data, start="own", crop=1.0, batch_classes=2)
    found = loss_of(method, Clock(0, 9))
    plain = image_set(data)
    plain.replace_(method.student.images.detach())
    other = set_up(SRe2L(crop=1.0, flip=False, jitter=0, batch_classes=2), data, plain, teacher=method.teacher)
    wanted = loss_of(other, Clock(0, 9))
    assert found["class"].item() == pytest.approx(wanted["class"].item(), rel=1e-5)
    assert found["bn"].item() == pytest.approx(wanted["bn"].item(), rel=1e-5)
    gap = 0.0
    for slot in (0, 1):
        for classes in ([0, 1], [2]):
            x = torch.stack([method.student.images[2 * c + slot] for c in classes])
            p, q = (torch.softmax(m(x) / 4, 1) for m in (method.teacher.module, method.student.projector))
            gap += (p * (p / q).log()).sum(1).mean().item()
    assert found["gap"].item() == pytest.approx(gap, rel=1e-4)
    (update,) = method.updates({}, Clock(0, 9))
    assert {n: t.weight for n, t in update.evaluate().items()} == {"gap": 1.0, "class": 0.1, "bn": 0.01}


def test_images_move_to_where_both_agree(data):
    method = ready(data, ce_weight=1e-9, bn_weight=1e-9, crop=1.0)
    first = loss_of(method, Clock(0, 9))["gap"].item()
    descend(method, 15, lr=0.02)
    assert loss_of(method, Clock(0, 9))["gap"].item() < 0.7 * first
    assert method.student.images.abs().max() <= 2


def test_live_labels_are_the_projectors_at_the_same_sights(data):
    student = ready(data).student
    lessons = student.lessons()
    for epoch in (0, 2):
        for sight in lessons.views.epoch(lessons.images, epoch):
            assert torch.equal(lessons.target(epoch, sight), student.projector(sight.images))
            assert not lessons.target(epoch, sight).requires_grad
    student.train()
    sight = next(lessons.views.epoch(lessons.images, 0))
    assert torch.equal(lessons.target(0, sight), student.eval().projector(sight.images))
    assert lessons.temperature == 20 and student.training_recipe()["epochs"] == 3


def test_a_set_that_is_read_again_gives_the_same_lessons(data):
    student = ready(data, made(data, data, seed=9)).student
    again = made(None, data, seed=None)
    again.load_state_dict({k: v.clone() for k, v in student.state_dict().items()})
    networks = []
    for one in (student, again):
        network = fresh_network(Block("convnet", {"width": 4, "depth": 1}), data.spec.offers(), "fresh")
        networks.append(learn(network, one.lessons()).state_dict())
    assert all(torch.equal(v, networks[1][k]) for k, v in networks[0].items())
    assert student.training_recipe() == again.training_recipe()


def test_bytes_are_counted_and_the_encoder_apart(data):
    student = ready(data).student
    network = encoder(data).module
    one, two = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    factors = sum(2 * (m.in_channels * 9 + m.out_channels) for m in (one, two))
    dim = network.head.in_features
    adapters = 4 * (factors + 2 * (dim + 3) + 3 * dim)
    public = sum(v.numel() * v.element_size() for n, v in network.state_dict().items() if not n.startswith("head"))
    said = {"images": 6 * 64 * 4, "labels": 6 * 8 + 8, "adapters": adapters, "encoder": public}
    assert student.storage() == said
    delivered = sum(v.numel() * v.element_size() for v in student.state_dict().values())
    assert sum(said.values()) == delivered
    counted = made(data, data, count_encoder=True)
    assert counted.storage() == {**said, "adapters": adapters + public, "encoder": 0}
    values = fresh_networks(
        Evaluation(student, spec=data.spec, source=data.test),
        networks=1,
        epochs=1,
        architectures=[Block("mlp", {"hidden": 4})],
    ).values
    assert (values["adapter_bytes"], values["encoder_bytes"], values["label_bytes"]) == (adapters, public, 56)
    assert values["equal_storage_images"] == (6 * 64 * 4 + 56 + adapters) // (64 * 4 + 8)
    told = student.training_recipe()["encoder"]
    assert told["bytes"] == public and len(told["sha256"]) == 64
    other = ready(data, made(data, data, seed=8), fit_epochs=1).student
    assert other.training_recipe()["encoder"] == told, "the hash is of the encoder alone"


def test_hard_labels_can_stand_in_for_comparison(data):
    student = ready(data, made(data, data, labels="mixed")).student
    lessons = student.lessons()
    sight = next(lessons.views.epoch(lessons.images, 0))
    own, other = (nn.functional.one_hot(student.labels[r], 3) for r in (sight.rows, sight.partners))
    assert torch.allclose(lessons.target(0, sight), sight.share * own + (1 - sight.share) * other)
    assert lessons.temperature is None


def test_the_same_run_twice_is_the_same(data):
    one, other = (ready(data).student.state_dict() for _ in range(2))
    assert all(torch.equal(v, other[k]) for k, v in one.items())
    assert not math.isnan(float(one["images"].sum()))


def test_mistakes_are_told(data):
    teacher = batch_norm_teacher(data)
    with pytest.raises(UserError, match="must be lightened_images"):
        set_up(HeLlO(), data, teacher=teacher, encoder=encoder(data))
    with pytest.raises(UserError, match="two teachers"):
        set_up(HeLlO(), data, made(data, data), teacher=teacher)
    with pytest.raises(UserError, match="not built as"):
        set_up(HeLlO(), data, made(data, data), teacher=teacher, encoder=encoder(data, width=6))
    with pytest.raises(UserError, match="no projector yet"):
        made(data, data).lessons()
    with pytest.raises(UserError, match="at least 1"):
        made(data, data, rank=0)
    with pytest.raises(UserError, match="fit_epochs"):
        HeLlO(fit_epochs=0)
