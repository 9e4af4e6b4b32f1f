"""Sets whose targets are a teacher's features, and what they are for: a start for tasks with few labels."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.condensation.networks import accuracy, descend, features_of, fresh_network, paper_convnet
from limbeck.condensation.synthetic import RealImages, SyntheticImages
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores
from limbeck.registry import ModelBlock, register


def teacher_features(teachers: Mapping[str, Teacher], images: Tensor) -> Tensor:
    """The only teacher's features [B, D] of images, without gradient.

    Raises:
        UserError: there is not one teacher, or it has no method ``features``.
    """
    if len(teachers) != 1:
        raise UserError(f"features are of one teacher, and there are {len(teachers)}")
    (teacher,) = teachers.values()
    with torch.no_grad():
        return features_of(teacher.module.to(images.device))(images).flatten(1)


@torch.no_grad()
def features_as_targets(student: SyntheticImages, teachers: Mapping[str, Teacher]) -> None:
    """Make the targets of a set the teacher's features of its images.

    Raises:
        UserError: the set has no targets of that width, or as :func:`teacher_features` says.
    """
    found = teacher_features(teachers, student.decode()[0])
    if student.targets is None or student.targets.shape[1] != found.shape[1]:
        raise UserError(
            f"the teacher has {found.shape[1]} features: the student must be synthetic_images with labels: features "
            f"and dim: {found.shape[1]}"
        )
    # Images that come of one stored image share its target.
    student.targets.copy_(found.view(len(student.targets), -1, found.shape[1]).mean(1))


@register(
    "metric",
    task={"classification"},
    better={"transfer_accuracy": "higher", "transfer_std": "lower", "scratch_accuracy": "higher"},
    labels={
        "transfer_accuracy": ("Accuracy after a few labels", "%"),
        "transfer_std": ("Spread over networks", "%"),
        "scratch_accuracy": ("The same without the set", "%"),
    },
)
def pretrain_transfer(
    evaluation: Evaluation,
    *,
    net: ModelBlock | None = None,
    networks: int = 3,
    epochs: int = 300,
    lr: float = 0.1,
    labelled: int = 5,
    tune_epochs: int = 100,
    tune_lr: float = 0.01,
    batch_size: int = 256,
) -> Scores:
    """Train fresh networks on a set whose targets are features, then with a new head on a few labels, and test them.

    Lee et al. 2024 (arXiv 2310.06511), section 4: squared error with SGD (momentum 0.9) first, all weights after.

    Args:
        evaluation: the set, the training data that the few labels are of, and the test split.
        net: what is trained; by default the papers' ConvNet of 128 channels.
        networks: how many.
        epochs, lr: of the training on the set.
        labelled: real images of each class whose label is used.
        tune_epochs, tune_lr: of the training on them.
        batch_size: images in a step of both.

    Raises:
        UserError: the model is no such set, or there is no labelled training or test data.
    """
    model, spec = evaluation.model, evaluation.spec
    if not isinstance(model, SyntheticImages) or model.targets is None or not model.regression:
        raise UserError("pretrain_transfer judges a set whose targets are numbers to be met")
    if spec is None or evaluation.train is None or evaluation.source is None or min(networks, labelled) < 1:
        raise UserError("pretrain_transfer needs training and test data, and 'networks' and 'labelled' at least 1")
    images, targets = (t.detach() for t in model())
    real = RealImages.of(evaluation.train, spec.classes).to(images.device)
    test = evaluation.source.batch(torch.arange(len(evaluation.source)))
    block, offers = net or paper_convnet(spec.shape), spec.offers()
    found: dict[bool, list[float]] = {True: [], False: []}
    for number in range(networks):
        few, labels = real.draw(labelled, (evaluation.seed, "labelled", number))
        for taught in found:
            key = (evaluation.seed, "transfer", number)
            network = fresh_network(block, {**offers, "classes": targets.shape[1]}, key, images.device)
            if taught:
                _descents(network, images, targets, epochs, lr, batch_size, (*key, "set"), regression=True)
            network.head = fresh_network(block, offers, (*key, "head"), images.device).head
            _descents(network, few, labels, tune_epochs, tune_lr, batch_size, (*key, "labels"))
            scores = accuracy(network.eval(), test["input"].to(images.device), test["label"].to(images.device), 1024)
            found[taught].append(scores)
    return Scores(
        {
            "transfer_accuracy": statistics.fmean(found[True]),
            "transfer_std": statistics.pstdev(found[True]),
            "scratch_accuracy": statistics.fmean(found[False]),
        }
    )


def _descents(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    lr: float,
    batch_size: int,
    key: Any,
    *,
    regression: bool = False,
) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    network.train()
    for epoch in range(epochs):
        descend(network, optimizer, images, labels, batch_size, (), (key, epoch), regression=regression)
