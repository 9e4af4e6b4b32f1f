"""Which layer of the teacher a layer of the student learns from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from limbeck.errors import UserError

LayerMap = Literal["skip", "last", "emb_last"]


def layer_map(
    kind: LayerMap | Mapping[int, int], student: int, teacher: int, *, last: bool = True
) -> list[tuple[int, int]]:
    """Pairs (student's, teacher's) of hidden states, where 0 is the embedding's output and i that of layer i.

    Args:
        kind: ``skip`` takes every (teacher/student)-th layer, ``last`` the teacher's last ones in order, ``emb_last``
            the embedding and the last layer alone; or the pairs themselves.
        student: layers of the student.
        teacher: of the teacher; at least as many.
        last: the last layer is mapped, too (Patient KD leaves it to the logits).

    Raises:
        UserError: the student is deeper than the teacher, or a pair names a layer that is not there.
    """
    if student > teacher:
        raise UserError(f"a student of {student} layers cannot be mapped onto a teacher of {teacher}")
    if isinstance(kind, Mapping):
        for a, b in kind.items():
            if not (0 <= int(a) <= student and 0 <= int(b) <= teacher):
                raise UserError(
                    f"no pair of layers {a}: {b}; the student has 0 to {student}, the teacher 0 to {teacher}"
                )
        return [(int(a), int(b)) for a, b in kind.items()]
    if kind == "emb_last":
        return [(0, 0), (student, teacher)]
    own = range(1, student + 1 if last else student)
    if kind == "last":
        # Of a map without the last layer those before the teacher's last.
        return [(i, teacher - student + i) for i in own]
    return [(i, round(i * teacher / student)) for i in own]
