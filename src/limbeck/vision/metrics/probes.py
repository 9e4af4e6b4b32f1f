"""How much a network's features say, judged by simple readers of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.data.base import Source
from limbeck.engine.features import Taps
from limbeck.errors import UserError
from limbeck.metrics.base import IGNORED, Evaluation, Scores
from limbeck.models import places
from limbeck.registry import register


@register(
    "metric",
    task={"classification"},
    better={"linear_probe": "higher", "knn_probe": "higher"},
    labels={"linear_probe": ("Linear probe", "%"), "knn_probe": ("Nearest neighbours", "%")},
)
def probes(evaluation: Evaluation, *, layer: str | None = None, neighbours: int = 20, penalty: float = 1.0) -> Scores:
    """Test accuracy of a logistic regression and of nearest neighbours on the frozen features.

    Both readers see the labelled rows of the training split; the network is in evaluation mode and learns nothing.

    Args:
        evaluation: what is judged.
        layer: module path of the features; by default what the last linear layer reads.
        neighbours: that vote, by cosine; equal votes go to the lower class.
        penalty: weight of the squared norm in the logistic regression, on standardised features.

    Raises:
        UserError: no training split, or no labelled sample in it.
    """
    if evaluation.train is None:
        raise UserError("probes learn from the training split, and the data has none")
    x, y = _features(evaluation, evaluation.train, layer)
    test, truth = _features(evaluation, evaluation.test, layer)
    if not len(y) or not len(truth):
        raise UserError("probes need labelled samples to learn from and to be judged on")
    return Scores(
        {
            "linear_probe": float((linear_reader(x, y, test, penalty) == truth).double().mean()),
            "knn_probe": float((nearest_reader(x, y, test, neighbours) == truth).double().mean()),
        }
    )


def linear_reader(x: Tensor, y: Tensor, test: Tensor, penalty: float) -> Tensor:
    """Classes of ``test`` [M, D] by a logistic regression on the standardised ``x`` [N, D] and ``y`` [N]."""
    from sklearn.linear_model import LogisticRegression

    mean, std = x.mean(0), x.std(0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    reader = LogisticRegression(C=1 / penalty, max_iter=1000)
    reader.fit(((x - mean) / std).numpy(), y.numpy())
    return torch.from_numpy(reader.predict(((test - mean) / std).numpy()))


def nearest_reader(x: Tensor, y: Tensor, test: Tensor, neighbours: int) -> Tensor:
    """Classes of ``test`` [M, D] by a vote of the nearest rows of ``x`` [N, D] by cosine."""
    near = (F.normalize(test, dim=1) @ F.normalize(x, dim=1).T).topk(min(neighbours, len(x)), dim=1).indices
    votes = F.one_hot(y[near], int(y.max()) + 1).sum(1)
    return votes.argmax(1)


def _features(evaluation: Evaluation, source: Source, layer: str | None) -> tuple[Tensor, Tensor]:
    """Features [N, D] in float64 and labels [N] of the labelled rows, on the CPU."""
    batches = list(evaluation.batches(source))
    path = layer or places.head(evaluation.model, batches[0])[0]
    found, labels = [], []
    with Taps(evaluation.model, [path], of="output" if layer else "input", detach=True) as taps:
        for batch in batches:
            evaluation.run(batch)
            found.append(taps.pop()[path].double().flatten(1).cpu())
            labels.append(batch["label"].cpu())
    y = torch.cat(labels)
    return torch.cat(found)[y != IGNORED], y[y != IGNORED]
