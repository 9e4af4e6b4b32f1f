"""The vocabulary that two models share, decided by their tokenizers and never by width alone."""

from __future__ import annotations

from torch import Tensor

from limbeck.errors import UserError


def shared_vocabulary(
    student_vocab: int,
    teacher_vocab: int,
    student_tokenizer_hash: str | None,
    teacher_tokenizer_hash: str | None,
    tokens: int | None = None,
) -> int:
    """How many leading entries of two models' logits mean the same tokens.

    Models of one family pad one tokenizer's vocabulary to different widths; both are cut to what they share, and the
    softmax over the rest is a distribution again. Unlike tokenizers are refused, even at equal width.

    Args:
        student_vocab, teacher_vocab: widths of the logits.
        student_tokenizer_hash, teacher_tokenizer_hash: from :func:`limbeck.data.tokenizer.tokenizer_hash`; ``None``
            where unknown, which is taken as the other's.
        tokens: how many tokens the tokenizer has, where known: padding beyond them is cut on both sides.

    Raises:
        UserError: the tokenizers differ.
    """
    student, teacher = student_tokenizer_hash, teacher_tokenizer_hash
    if student is not None and teacher is not None and student != teacher:
        raise UserError(
            f"student and teacher have different tokenizers ({student} with {student_vocab} entries, {teacher} with "
            f"{teacher_vocab}), so their logits cannot be compared: use a teacher with the student's tokenizer"
        )
    return min(student_vocab, teacher_vocab, tokens or student_vocab)


def cut(logits: Tensor, width: int) -> Tensor:
    """The first ``width`` entries of the vocabulary; a softmax over them renormalises."""
    return logits[..., :width]
