"""Where a model's features are: every module's output by path, and the ones that methods compare by default.

The suggestions are made by running the model once, not by its name, so they hold for plain PyTorch, timm and
transformers alike. ``limbeck show-features`` prints them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.features import first_channels, submodule, turned
from limbeck.errors import UserError
from limbeck.models.forward import forward

SUGGESTED = 4
"""How many blocks of a transformer, or hidden layers, are suggested at most."""


@dataclass(frozen=True)
class Place:
    """A module whose output is a feature.

    Attributes:
        path: of the module.
        shape: of its output without the batch: [C, H, W], [N, D] or [D].
        leaf: whether it has no modules inside.
        kind: the module's class.
    """

    path: str
    shape: tuple[int, ...]
    leaf: bool
    kind: str

    def stride(self, image_size: int) -> float | None:
        """Input pixels per cell of a map; None for tokens and vectors."""
        return image_size / self.shape[-1] if len(self.shape) == 3 else None


def places(module: nn.Module, batch: Mapping[str, Any]) -> list[Place]:
    """Every module that gave a feature (a floating tensor of 2 to 4 axes) for a batch, in the order they finished."""
    count = _rows(batch)
    found: dict[str, Place] = {}
    turns = turned(module)

    def see(path: str) -> Any:
        def hook(child: nn.Module, inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple | list) and output else output
            value = first_channels(value) if turns(child) else value
            if _is_feature(value, count):
                found.pop(path, None)  # a module that runs twice stands where it ran last
                found[path] = Place(path, tuple(value.shape[1:]), not any(child.children()), type(child).__name__)

        return hook

    handles = [child.register_forward_hook(see(path)) for path, child in module.named_modules() if path]
    try:
        with looking(module):
            forward(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def stages(module: nn.Module, batch: Mapping[str, Any]) -> list[str]:
    """Paths of the features that stand for a model, shallow to deep.

    Members of a child called ``stages``; else the last module of each resolution of a convolutional network; else
    evenly spaced blocks of a transformer; else the hidden layers.

    Raises:
        UserError: the model has no such feature.
    """
    seen = places(module, batch)
    head = _head_path(module, batch, required=False)
    inner = [p for p in seen if head is None or not (p.path + ".").startswith(head + ".")]
    blocks = _blocks(inner)
    # What a block of tokens holds inside ([heads, N, d], say) is no map, though it has as many axes.
    tokens = tuple(path + "." for path in _longest(inner))
    maps = _maps([p for p in inner if not p.path.startswith(tokens)] if tokens else inner)
    # A transformer's patches are a single map before its blocks.
    for paths in (_named_stages(inner), maps if len(maps) > 1 else [], blocks, maps, _hidden(inner)):
        if paths:
            return paths
    raise UserError(
        f"no features were found in {type(module).__name__}: name layers (limbeck show-features lists them)"
    )


def blocks(module: nn.Module, batch: Mapping[str, Any]) -> list[str]:
    """Paths of all blocks of a transformer, first to last; none where the network has no tokens."""
    return _longest(places(module, batch))


def head(module: nn.Module, batch: Mapping[str, Any]) -> tuple[str, nn.Linear]:
    """Path and module of the linear layer that gives the logits; its input is the embedding.

    Raises:
        UserError: the logits do not come out of a linear layer.
    """
    path = _head_path(module, batch, required=True)
    assert path is not None
    layer = submodule(module, path)
    assert isinstance(layer, nn.Linear)
    return path, layer


def pair(student: Sequence[str], teacher: Sequence[str]) -> tuple[list[str], list[str]]:
    """As many features of either side, the deepest ones opposite each other and the others evenly spread."""
    n = min(len(student), len(teacher))
    return _spread(student, n), _spread(teacher, n)


def _is_feature(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (2, 3, 4) and len(value) == count


def _rows(batch: Mapping[str, Any]) -> int:
    return len(batch["input_ids"] if "input_ids" in batch else batch["input"])


@contextmanager
def looking(module: nn.Module) -> Iterator[None]:
    """Within the context the model is in evaluation mode and takes no gradient: a look must not leave a trace."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def _head_path(module: nn.Module, batch: Mapping[str, Any], *, required: bool) -> str | None:
    """The last linear layer whose output is the logits."""
    outputs: dict[str, Tensor] = {}

    def see(path: str) -> Any:
        return lambda child, inputs, output: outputs.__setitem__(path, output)

    linear = {path: child for path, child in module.named_modules() if isinstance(child, nn.Linear)}
    handles = [child.register_forward_hook(see(path)) for path, child in linear.items()]
    try:
        with looking(module):
            logits = forward(module, batch).get("logits")
    finally:
        for handle in handles:
            handle.remove()
    same = [p for p, o in outputs.items() if logits is not None and o.shape == logits.shape and torch.equal(o, logits)]
    if not same and required:
        raise UserError(f"the logits of {type(module).__name__} come out of no linear layer: name the layers instead")
    return same[-1] if same else None


def _named_stages(seen: Sequence[Place]) -> list[str]:
    found = [p.path for p in seen if re.fullmatch(r"(?:.*\.)?stages\.\d+", p.path)]
    return sorted(found, key=lambda path: int(path.rsplit(".", 1)[1]))


def _maps(seen: Sequence[Place]) -> list[str]:
    """The end of each height and width: the last of the outermost modules, of those that hold others if there are."""
    ends: dict[tuple[int, ...], Place] = {}
    for place in (p for p in seen if len(p.shape) == 3 and p.shape[-1] > 1):
        size = place.shape[1:]
        if size not in ends or _rank(place) <= _rank(ends[size]):
            ends[size] = place
    whole = [p for p in ends.values() if not p.leaf]
    chosen = whole if len(whole) > 1 else list(ends.values())
    return [p.path for p in sorted(chosen, key=lambda p: -p.shape[-1])][-SUGGESTED:]


def _rank(place: Place) -> tuple[bool, int]:
    """Low for the end of a stage: a network's first layer of a size often lies inside the block behind it."""
    return place.leaf, place.path.count(".")


def _blocks(seen: Sequence[Place]) -> list[str]:
    """Evenly spread members of the longest list of like modules that give tokens."""
    longest = _longest(seen)
    return _spread(longest, min(SUGGESTED, len(longest)))


def _longest(seen: Sequence[Place]) -> list[str]:
    lists: dict[str, list[Place]] = {}
    for place in (p for p in seen if len(p.shape) == 2 and not p.leaf):
        parent, _, name = place.path.rpartition(".")
        if name.isdecimal():
            lists.setdefault(f"{parent} {place.kind}", []).append(place)
    return [p.path for p in max(lists.values(), key=len, default=[])]


def _hidden(seen: Sequence[Place]) -> list[str]:
    """Layers of a network of vectors: members of a list, or activations."""
    vectors = [p for p in seen if len(p.shape) == 1]
    activations = [p.path for p in vectors if p.leaf and p.kind not in ("Linear", "Dropout", "Flatten", "Identity")]
    return _spread(activations, min(SUGGESTED, len(activations)))


def _spread(paths: Sequence[str], count: int) -> list[str]:
    """So many of the paths, the last one among them, evenly spaced."""
    if count < 1:
        return []
    step = len(paths) / count
    return [paths[round(step * (i + 1)) - 1] for i in range(count)]
