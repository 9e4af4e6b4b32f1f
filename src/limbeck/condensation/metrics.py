"""Judging a condensed set by what it is for: training networks on it."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck import __version__
from limbeck.condensation.few_steps import known_network, learnt
from limbeck.condensation.kernels import mlp_kernel, ridge_weights
from limbeck.condensation.networks import accuracy, descend, fresh_network, paper_convnet, post_train
from limbeck.condensation.relabel import learn
from limbeck.condensation.synthetic import RealImages, SyntheticImages, first_targets
from limbeck.condensation.unroll import Flat
from limbeck.data.base import DataSpec, for_page
from limbeck.engine.checkpoint import write_json
from limbeck.errors import UserError
from limbeck.metrics.base import Evaluation, Scores
from limbeck.paths import cache_root
from limbeck.registry import Block, ModelBlock, register

EPOCHS = 300
LR = 0.01
HARD_LABEL = 8
"""Bytes of an int64."""
SHOWN = 10
"""Images of each class that the details hold, at most."""

SHOWN_IN_ALL = 200
"""Images that the details hold, at most."""


@register(
    "metric",
    task={"classification"},
    better={
        "fresh_accuracy": "higher",
        "fresh_accuracy_std": "lower",
        "images": "lower",
        "image_bytes": "lower",
        "label_bytes": "lower",
        "adapter_bytes": "lower",
        "encoder_bytes": "lower",
        "equal_storage_images": "lower",
    },
    labels={
        "fresh_accuracy": ("Accuracy of fresh networks", "%"),
        "fresh_accuracy_std": ("Spread over fresh networks", "%"),
        "images": ("Images", ""),
        "image_bytes": ("Images", "bytes"),
        "label_bytes": ("Labels", "bytes"),
        "adapter_bytes": ("Adapters", "bytes"),
        "encoder_bytes": ("Public encoder", "bytes"),
        "equal_storage_images": ("Real images in as many bytes", ""),
    },
)
def fresh_networks(
    evaluation: Evaluation,
    *,
    networks: int = 3,
    epochs: int | None = None,
    architectures: list[ModelBlock] | None = None,
    lr: float | None = None,
    batch_size: int = 256,
    augment: tuple[Literal["color", "crop", "cutout", "flip", "scale", "rotate"], ...] = (
        "color", "crop", "cutout", "flip", "scale", "rotate",
    ),
    cutmix: float = 0.0,
) -> Scores:  # fmt: skip
    """Train fresh networks on the model's images and test them: mean and spread of their accuracy.

    The protocol of the condensation papers (Zhao et al., arXiv 2006.05929 and 2102.08259): random weights, SGD with
    momentum 0.9 and weight decay 5e-4, the rate divided by 10 at half of the epochs, augmentation without pairing.
    They train 20 networks for 1000 epochs (300 in the first paper). A set that comes with lessons of its own (soft
    labels for each sight of an image) is learnt by these, and one with a rate of its own at that rate. ``images``
    counts image-equivalents: stored numbers by the numbers of one image. ``equal_storage_images`` is how many real
    images with hard labels, stored alike, take as many bytes as images, labels and adapters together. A public encoder
    that a set's labels need beside it is ``encoder_bytes``, and counts as nothing else.

    Args:
        evaluation: the images that are judged, and the test split.
        networks: fresh networks of each architecture.
        epochs: passes over the images; by default 300, or as many as the set has lessons for.
        architectures: what is trained; by default the papers' ConvNet of 128 channels.
        lr: learning rate of the first half; by default the set's own, or 0.01.
        batch_size: images a step.
        augment: operations; none where empty. Leave out ``flip`` for digits and text.
        cutmix: share of the steps whose images are mixed by CutMix, as IDC's protocol has it (0.5).

    Raises:
        UserError: the model is not a set of images with labels, or the test split has no labels.
    """
    if evaluation.spec is None or networks < 1:
        raise UserError("fresh_networks needs a data block, and 'networks' at least 1")
    images, labels = _condensed(evaluation.model)
    form = {"batch_size": batch_size, "ops": tuple(augment), "cutmix": cutmix}
    taught = _learning(evaluation.model, images, labels, epochs, lr, form)
    test, truth = _test_set(evaluation)
    found: dict[str, list[float]] = {}
    for block in architectures or [paper_convnet(evaluation.spec.shape)]:
        for number in range(networks):
            key = (evaluation.seed, "fresh network", str(block.tree()), number)
            network = taught(fresh_network(block, evaluation.spec.offers(), key, images.device), key)
            found.setdefault(_title(block), []).append(accuracy(network, test, truth, evaluation.batch_size))
    scores = [score for each in found.values() for score in each]
    values = {"fresh_accuracy": statistics.fmean(scores), "fresh_accuracy_std": statistics.pstdev(scores)}
    return Scores(
        {**values, **_sizes(evaluation.model, evaluation.spec)},
        {"fresh_accuracies": found, **pictures(images, labels, evaluation.spec)},
    )


@register(
    "metric",
    task={"classification"},
    better={"whole_accuracy": "higher"},
    labels={"whole_accuracy": ("Accuracy of networks trained on all data", "%")},
)
def whole_data(
    evaluation: Evaluation,
    *,
    networks: int = 1,
    epochs: int = 30,
    architectures: list[ModelBlock] | None = None,
    lr: float = 0.01,
    batch_size: int = 256,
    augment: tuple[Literal["color", "crop", "cutout", "flip", "scale", "rotate"], ...] = (
        "color", "crop", "cutout", "flip", "scale", "rotate",
    ),
) -> Scores:  # fmt: skip
    """What the same networks reach with all the training data: what a condensed set is measured against.

    Nothing of it depends on the student, so that the result is kept in the cache for all arms and runs on this data.

    Args:
        evaluation: the training data and the test split.
        networks: fresh networks of each architecture.
        epochs: passes over the training data.
        architectures, lr, batch_size, augment: as in ``fresh_networks``.

    Raises:
        UserError: there is no labelled training or test data.
    """
    if evaluation.spec is None or evaluation.train is None or networks < 1 or epochs < 1:
        raise UserError("whole_data needs training data, and 'networks' and 'epochs' at least 1")
    blocks = architectures or [paper_convnet(evaluation.spec.shape)]
    prints = [getattr(source, "fingerprint", "") for source in (evaluation.train, evaluation.source)]
    settings = [networks, epochs, lr, batch_size, list(augment), [b.tree() for b in blocks], evaluation.seed]
    key = hashlib.sha256(json.dumps([prints, settings, __version__], sort_keys=True).encode()).hexdigest()[:32]
    path = cache_root() / "whole" / f"{key}.json"
    if path.is_file():
        return Scores(json.loads(path.read_text(encoding="utf8")))
    real = RealImages.of(evaluation.train, evaluation.spec.classes)
    test, truth = _test_set(evaluation)
    scores = []
    for block in blocks:
        for number in range(networks):
            name = (evaluation.seed, "whole", str(block.tree()), number)
            network = fresh_network(block, evaluation.spec.offers(), name, test.device)
            images, labels = real.to(test.device).images, real.labels
            form = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
            post_train(network, images, labels, ops=tuple(augment), key=name, **form)  # type: ignore[arg-type]
            scores.append(accuracy(network, test, truth, evaluation.batch_size))
    values = {"whole_accuracy": statistics.fmean(scores)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)
    return Scores(values)


@register(
    "metric",
    task={"classification"},
    better={"few_steps_accuracy": "higher", "few_steps_std": "lower"},
    labels={
        "few_steps_accuracy": ("Accuracy after a few plain steps", "%"),
        "few_steps_std": ("Spread over first weights", "%"),
    },
)
def few_steps(
    evaluation: Evaluation,
    *,
    net: ModelBlock | None = None,
    start: Literal["fixed", "random"] = "random",
    steps: int = 1,
    epochs: int = 3,
    networks: int = 5,
    lr: float | None = None,
) -> Scores:
    """Let networks take a few plain steps on the model's images, as ``dd`` unrolls them, and test them.

    The protocol of Wang et al. 2018 (arXiv 1811.10959): ``epochs`` passes of ``steps`` steps without momentum, decay or
    augmentation, at the set's own rate.

    Args:
        evaluation: the images that are judged, and the test split.
        net: what is trained; by default the papers' ConvNet of 128 channels.
        start: ``fixed`` are the weights that a ``dd`` of this seed with ``inits: fixed`` learned the images for.
        steps: shares that the images are dealt into.
        epochs: passes over the images.
        networks: how many random networks.
        lr: learning rate; by default the set's own, or 0.01.

    Raises:
        UserError: the model is not a set of images with labels, or the test split has no labels.
    """
    if evaluation.spec is None or min(networks, steps, epochs) < 1:
        raise UserError("few_steps needs a data block, and 'networks', 'steps' and 'epochs' at least 1")
    images, labels = _condensed(evaluation.model)
    test, truth = _test_set(evaluation)
    block, offers = net or paper_convnet(evaluation.spec.shape), evaluation.spec.offers()
    keys = [(evaluation.seed, "few steps", number) for number in range(1 if start == "fixed" else networks)]
    device, found = images.device, []
    for key in keys:
        fixed = start == "fixed"
        network = known_network(block, offers, evaluation.seed, device) if fixed else fresh_network(block, offers, key)
        flat = Flat(network.to(device))
        rate = torch.tensor(_rate(evaluation.model, lr), device=device)
        regression = getattr(evaluation.model, "regression", False)
        how: dict[str, Any] = {"steps": steps, "epochs": epochs, "regression": regression, "checkpoint": True}
        end = learnt(flat, flat.weights(network), images, labels.detach(), rate, **how)
        found.append(accuracy(partial(flat, end), test, truth, evaluation.batch_size))
    values = {"few_steps_accuracy": statistics.fmean(found), "few_steps_std": statistics.pstdev(found)}
    return Scores(values, pictures(images, labels, evaluation.spec))


@register(
    "metric",
    task={"classification"},
    better={"ridge_accuracy": "higher"},
    labels={"ridge_accuracy": ("Accuracy of kernel ridge regression", "%")},
)
def kernel_ridge(
    evaluation: Evaluation,
    *,
    kernel: Literal["ntk", "nngp"] = "ntk",
    depth: int = 2,
    bias: float = 0.1,
    strength: float = 1e-6,
) -> Scores:
    """Tell test images by kernel ridge regression from the set, with the kernel of an infinitely wide perceptron.

    It is what ``kip`` learns the images for; no network is trained (Nguyen et al. 2021, arXiv 2011.00050).

    Args:
        evaluation: the images that are judged, and the test split.
        kernel, depth, bias, strength: as in method ``kip``.

    Raises:
        UserError: the model is not a set of images with labels, or the test split has no labels.
    """
    images, labels = _condensed(evaluation.model)
    test, truth = _test_set(evaluation)
    targets = first_targets(labels, int(labels.max()) + 1, centred=True) if labels.dim() == 1 else labels.detach()
    k_ss = mlp_kernel(images, images, depth=depth, bias=bias, kind=kernel)
    weights = ridge_weights(k_ss, targets, strength)
    pieces = (mlp_kernel(x, images, depth=depth, bias=bias, kind=kernel) for x in test.split(1024))
    hits = torch.cat([(piece.double() @ weights).argmax(1) for piece in pieces]) == truth
    return Scores({"ridge_accuracy": hits.double().mean().item()})


def _rate(model: nn.Module, lr: float | None) -> float:
    """What is asked for, else the set's own rate, else the papers'."""
    own = getattr(model, "rate", None)
    return lr if lr is not None else LR if own is None else float(own)


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


def pictures(images: Tensor, labels: Tensor, spec: DataSpec) -> dict[str, Any]:
    """The first images [N, C, H, W] of each class for a report, as lists: ``images`` and ``image_labels``.

    Values are in [0, 1]: the normalisation is undone, and what lies outside the range of real images is cut.
    """
    hard = (labels if labels.dim() == 1 else labels.argmax(1)).tolist()
    seen: dict[int, int] = {}
    rows: list[int] = []
    for row, label in enumerate(hard):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= SHOWN and len(rows) < SHOWN_IN_ALL:
            rows.append(row)
    return {"images": for_page(images[rows], spec), "image_labels": [hard[r] for r in rows]}


def _learning(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int | None,
    lr: float | None,
    form: Mapping[str, Any],
) -> Callable[[nn.Module, Hashable], nn.Module]:
    """How a network learns the set, from the network and a key."""
    lessons = model.lessons() if isinstance(model, SyntheticImages) else None
    if lessons is not None:
        given = {name: value for name, value in (("epochs", epochs), ("lr", lr)) if value is not None}
        if given.get("epochs", 0) > lessons.epochs:
            raise UserError(f"fresh_networks: the set has soft labels for {lessons.epochs} epochs, not {epochs}")
        own = replace(lessons, **given)  # type: ignore[arg-type]
        return lambda network, key: learn(network, own)
    settings: dict[str, Any] = {**form, "epochs": EPOCHS if epochs is None else epochs}
    settings["lr"] = _rate(model, lr)
    settings["regression"] = getattr(model, "regression", False)
    return lambda network, key: post_train(network, images, labels, key=key, **settings)


@torch.no_grad()
def _condensed(model: nn.Module) -> tuple[Tensor, Tensor]:
    try:
        images, labels = model()
    except (TypeError, ValueError):
        name = type(model).__name__
        raise UserError(
            f"fresh_networks judges a set of images (a student like synthetic_images), not {name}"
        ) from None
    return images.detach().clone(), labels


def _test_set(evaluation: Evaluation) -> tuple[Tensor, Tensor]:
    batches = list(evaluation.batches())
    if any("label" not in batch for batch in batches):
        raise UserError("fresh_networks tests networks on labelled images, and the test split has no labels")
    images, labels = (torch.cat([batch[name] for batch in batches]) for name in ("input", "label"))
    return images[labels >= 0], labels[labels >= 0]


def _sizes(model: nn.Module, spec: DataSpec) -> dict[str, float]:
    """What the delivered state takes."""
    if isinstance(model, SyntheticImages):
        stored = model.storage()
    else:
        state = {name: v.numel() * v.element_size() for name, v in model.state_dict().items()}
        labels = state.pop("labels", 0)
        stored = {"images": sum(state.values()), "labels": labels, "adapters": 0}
    one = torch.Size(spec.shape).numel() * torch.get_default_dtype().itemsize
    encoder = stored.pop("encoder", 0)
    return {
        "images": stored["images"] / one,
        "image_bytes": float(stored["images"]),
        "label_bytes": float(stored["labels"]),
        "adapter_bytes": float(stored["adapters"]),
        "encoder_bytes": float(encoder),
        "equal_storage_images": float(sum(stored.values()) // (one + HARD_LABEL)),
    }


def _title(block: Block) -> str:
    said = ", ".join(f"{k}={v}" for k, v in block.tree().items() if k != "name")
    return f"{block.name}({said})" if said else block.name
