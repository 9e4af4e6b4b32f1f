"""Starting a student with the weights of some of its teacher's layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from limbeck.errors import UserError

_LAYER = re.compile(r"^(.*\.)(\d+)(\..*)$")


def every(student: int, teacher: int) -> list[int]:
    """Which of the teacher's layers a student of fewer begins with: evenly spread, the first among them.

    Raises:
        UserError: the student is deeper.
    """
    if student > teacher:
        raise UserError(f"a student of {student} layers cannot begin with those of a teacher of {teacher}")
    return [i * teacher // student for i in range(student)]


@torch.no_grad()
def copy_layers(student: nn.Module, teacher: nn.Module, layers: Sequence[int]) -> int:
    """Copy the teacher's layer ``layers[i]`` into the student's layer i, and everything outside the layers.

    Layers are found by the number in their parameters' names, so any model of the same architecture will do. Weights
    outside the layers that the student does not have (a pooler) or has in another shape stay as they are.

    Args:
        student: takes the weights.
        teacher: of the same architecture and width.
        layers: for each of the student's layers one of the teacher's, by number.

    Returns:
        how many of the student's tensors were set.

    Raises:
        UserError: a layer's weights do not fit.
    """
    theirs, done = teacher.state_dict(), 0
    for name, own in student.state_dict().items():
        match = _LAYER.match(name)
        source = name if match is None else f"{match[1]}{_of(layers, int(match[2]))}{match[3]}"
        given = theirs.get(source)
        if given is not None and given.shape == own.shape:
            own.copy_(given)
            done += 1
        elif match is not None:
            has = "nothing" if given is None else f"shape {list(given.shape)}"
            raise UserError(f"the student's {name} {list(own.shape)} cannot begin with the teacher's {source}: {has}")
    return done


@torch.no_grad()
def copy_around(student: nn.Module, teacher: nn.Module) -> int:
    """Copy everything outside the numbered layers that both have in one shape: embeddings and heads.

    Returns:
        how many of the student's tensors were set.

    Raises:
        UserError: nothing fits.
    """
    theirs, done = teacher.state_dict(), 0
    for name, own in student.state_dict().items():
        given = theirs.get(name)
        if not _LAYER.match(name) and given is not None and given.shape == own.shape:
            own.copy_(given)
            done += 1
    if not done:
        raise UserError("the student has no embedding or head of the name and shape of its teacher's to begin with")
    return done


def _of(layers: Sequence[int], i: int) -> int:
    if i >= len(layers):
        raise UserError(f"the student has a layer {i}, and only {len(layers)} layers were chosen for it")
    return layers[i]
