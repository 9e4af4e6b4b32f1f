"""Teachers that read other tokens than the student: the same text in both, and the spans where they can be compared.

The student's rows say what the text is. It is given to the teacher in the teacher's own tokens, prompt and completion
apart as the student has them, with its own beginning and end of text; special tokens are matched by what they mean,
and never by their number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.data.base import Batch
from limbeck.errors import UserError
from limbeck.language.alignment import Pieces, Reader, align, readable
from limbeck.losses import IGNORE

KEPT = 50_000
"""Rows whose other tokens are kept: a training set is read many times."""
UNREADABLE = "�"
"""What a teacher is given in the place of bytes that are no text, or of a token that the student does not know."""

By = Literal["spans", "position"]


@dataclass
class Crossing:
    """Rows of the student in a teacher's tokens, and where both can be compared.

    A token at index i is predicted by the logits at i - 1; spans that begin at index 0 of either row have no
    prediction and are left out.

    Attributes:
        batch: the teacher's rows: ``input_ids``, ``attention_mask``, ``labels`` (int64 [B, U]), ``id`` and ``view``.
        student: int64 [B, S, 2], first token of a span and the one after its last, in the student's row.
        teacher: the same in the teacher's row.
        mask: bool [B, S], which spans there are.
        student_read, teacher_read: int64 [B, T] and [B, U], how much of the text each token ends at; the same number
            is the same place of the text.
    """

    batch: Batch
    student: Tensor
    teacher: Tensor
    mask: Tensor
    student_read: Tensor
    teacher_read: Tensor

    @property
    def single(self) -> Tensor:
        """Which spans are one token on both sides, bool [B, S]."""
        one = [(side[..., 1] - side[..., 0]) == 1 for side in (self.student, self.teacher)]
        return one[0] & one[1] & self.mask


def at(values: Tensor, index: Tensor) -> Tensor:
    """The predictions of tokens: shifted values [B, T-1, ...] and token indices [B, S] -> [B, S, ...]."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, index - 1]


def span_sums(values: Tensor, spans: Tensor) -> Tensor:
    """Sums over the tokens of spans: shifted values [B, T-1] of tokens and [B, S, 2] -> [B, S] (the chain rule)."""
    count = spans.shape[1]
    token = torch.arange(1, values.shape[1] + 1, device=values.device).expand(len(values), -1).contiguous()
    first, end = (side.contiguous() for side in spans.unbind(-1))
    # Spans are in order; those that are not there are empty, and go behind all others.
    end = end.masked_fill(first == end, values.shape[1] + 2)
    owner = torch.searchsorted(end, token, right=True)
    inside = (owner < count) & (first.gather(1, owner.clamp(max=count - 1)) <= token)
    # A token of no span goes to a last column that is cut off.
    owner = owner.masked_fill(~inside, count)
    sums = values.new_zeros(len(values), count + 1)
    return sums.scatter_add(1, owner, values)[:, :count]


@dataclass
class _Row:
    """One row in the teacher's tokens."""

    ids: list[int] = field(default_factory=list)
    labelled: list[bool] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    own_read: list[int] = field(default_factory=list)
    spans: list[tuple[int, int, int, int]] = field(default_factory=list)
    size: int = 0

    def add(self, ids: Sequence[int], read: Sequence[int], labelled: bool) -> None:
        self.ids += ids
        self.read += [self.size + r for r in read]
        self.labelled += [labelled] * len(ids)


class Bridge:
    """From a student's tokens to a teacher's.

    Args:
        student: the student's fast tokenizer.
        teacher: the teacher's.
        limit: tokens that the teacher reads at most; what lies beyond is not compared.
        by: what is compared: the smallest ``spans`` of the same text, or the learnt tokens by their ``position``,
            first with first, up to the shorter row.
    """

    def __init__(self, student: Any, teacher: Any, *, limit: int | None = None, by: By = "spans") -> None:
        self.student, self.teacher = Reader(student), Reader(teacher)
        self.limit = limit
        self.by = by
        self.begin = _before_text(self.teacher)
        self._kept: OrderedDict[tuple[bytes, bytes], _Row] = OrderedDict()

    def __call__(self, batch: Batch) -> Crossing:
        """The teacher's side of a batch of the student's rows.

        Raises:
            UserError: a row's tokens do not say its text, or it has a special token that the teacher does not know.
        """
        device = batch["input_ids"].device
        ids, there, labels = (batch[name].cpu() for name in ("input_ids", "attention_mask", "labels"))
        rows = [self._row(i[m], y[m]) for i, m, y in zip(ids, there.bool(), labels != IGNORE, strict=True)]
        width = max(2, *(len(row.ids) for row in rows))
        input_ids = _padded([row.ids for row in rows], width)
        mask = _padded([[1] * len(row.ids) for row in rows], width)
        learnt = _padded([[int(x) for x in row.labelled] for row in rows], width).bool()
        spans = [row.spans for row in rows]
        count = max(1, *(len(s) for s in spans))
        # Of no span: tokens [1, 1), which are none, at an index that can be looked up.
        table = torch.ones(len(rows), count, 4, dtype=torch.int64)
        for b, own in enumerate(spans):
            if own:
                table[b, : len(own)] = torch.tensor(own)
        theirs = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "labels": torch.where(learnt, input_ids, IGNORE),
            "id": batch["id"],
            "view": batch.get("view", 0),
        }
        present = torch.arange(count) < torch.tensor([[len(s)] for s in spans])
        reads = _placed([row.own_read for row in rows], there), _padded([row.read for row in rows], width)
        made = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in theirs.items()}
        found = (table[..., :2], table[..., 2:], present, *reads)
        return Crossing(made, *(t.to(device) for t in found))

    # -- one row -------------------------------------------------------------------------------------------------------

    def _row(self, ids: Tensor, labelled: Tensor) -> _Row:
        key = (ids.numpy().tobytes(), labelled.numpy().tobytes())
        if key not in self._kept:
            self._kept[key] = self._make(ids.tolist(), labelled.tolist())
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _make(self, ids: list[int], labelled: list[bool]) -> _Row:
        row = _Row()
        if not self._begins(ids):
            row.add(self.begin, [0] * len(self.begin), False)
        for start, end in self._segments(ids, labelled):
            if ids[start] in self.student.special:
                self._special(row, ids[start], start, labelled[start])
            else:
                self._text(row, ids[start:end], start, labelled[start], (start == 0, end == len(ids)))
        if self.by == "position":
            ours = [i for i, kept in enumerate(labelled) if kept and i]
            theirs = [j for j, kept in enumerate(row.labelled) if kept and j]
            row.spans = [(i, i + 1, j, j + 1) for i, j in zip(ours, theirs, strict=False)]
        if self.limit is not None:
            row.spans = [span for span in row.spans if span[3] <= self.limit]
            row.ids, row.read = row.ids[: self.limit], row.read[: self.limit]
            row.labelled = row.labelled[: self.limit]
        return row

    def _segments(self, ids: list[int], labelled: list[bool]) -> Iterator[tuple[int, int]]:
        """Special tokens alone, and runs of text that are learnt or not."""
        special, start = self.student.special, 0
        for i in range(1, len(ids) + 1):
            if i == len(ids) or ids[i] in special or ids[i - 1] in special or labelled[i] != labelled[i - 1]:
                if i > start:
                    yield start, i
                start = i

    def _text(self, row: _Row, ids: list[int], start: int, labelled: bool, edges: tuple[bool, bool]) -> None:
        raw, own = self._own(ids)
        text, parts = _told(raw, *edges)
        other = _moved(self.teacher.encode(text), parts, len(raw))
        base = len(row.ids)
        row.add(other.ids, other.ends, labelled)
        row.own_read += [row.size + end for end in own.ends]
        for span in align(own, other):
            (a, b), (c, d) = span.first, span.second
            if labelled and not span.hole and start + a and base + c:
                row.spans.append((start + a, start + b, base + c, base + d))
        row.size += len(raw)

    def _own(self, ids: list[int]) -> tuple[bytes, Pieces]:
        found = self.student.pieces(ids)
        if found is not None:
            return found
        text = self.student.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        again = self.student.encode(text)
        if list(again.ids) != ids:
            raise UserError(
                f"the student's tokenizer does not say the text of its tokens: {text[:40]!r} is read as other tokens "
                "again, so it cannot be given to a teacher with another tokenizer; use a byte-level tokenizer"
            )
        return text.encode(), again

    def _special(self, row: _Row, token: int, index: int, labelled: bool) -> None:
        other = self._counterpart(token, index)
        if other is not None:
            base = len(row.ids)
            row.add([other], [1], labelled)
            if labelled and index and base and token != self.student.unknown:
                row.spans.append((index, index + 1, base, base + 1))
        elif token == self.student.unknown:
            pieces = self.teacher.encode(UNREADABLE)
            row.add(pieces.ids, [1] * len(pieces.ids), labelled)
        row.size += 1
        row.own_read.append(row.size)

    def _counterpart(self, token: int, index: int) -> int | None:
        """The teacher's special token of the same meaning; None where it does without."""
        ours, theirs = self.student.tokenizer, self.teacher.tokenizer
        roles = ("bos_token_id", "eos_token_id") if index == 0 else ("eos_token_id", "bos_token_id")
        for role in roles:
            if token == getattr(ours, role):
                other = getattr(theirs, role)
                return None if other is None else int(other)
        if token in (self.student.unknown, ours.pad_token_id):
            return None
        content = ours.convert_ids_to_tokens(token)
        known = theirs.get_vocab().get(content)
        if known is None or known not in self.teacher.special:
            raise UserError(
                f"a row has the student's special token {content!r}, which the teacher's tokenizer does not have: "
                "texts in the chat template of one tokenizer cannot be read with another's; give the data as plain "
                "prompts and completions"
            )
        return int(known)

    def _begins(self, ids: list[int]) -> bool:
        """Whether a row begins with the student's token for it, which becomes the teacher's."""
        begin = self.student.tokenizer.bos_token_id
        return bool(ids) and begin is not None and ids[0] == begin


def _before_text(reader: Reader) -> list[int]:
    """What a tokenizer puts before every text."""
    encoding = reader.backend.encode("a", add_special_tokens=True)
    text = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
    return list(encoding.ids[:text])


def _told(raw: bytes, first: bool, last: bool) -> tuple[str, list[tuple[int, int, int, bool]]]:
    """What a teacher is told of some bytes, and which part of it stands for which bytes: (size, start, end, is text).

    Bytes that are no text become one mark; at the edges of a row, where a character is cut off, nothing.
    """
    text, parts = "", []
    for start, end, run in readable(raw):
        cut_off = run is None and ((first and start == 0) or (last and end == len(raw)))
        said = "" if cut_off else UNREADABLE if run is None else run
        text += said
        parts.append((len(said.encode()), start, end, run is not None))
    return text, parts


def _moved(pieces: Pieces, parts: list[tuple[int, int, int, bool]], size: int) -> Pieces:
    """A tokenisation of what was told, with its positions in the bytes that it was told of."""
    if len(parts) == 1 and parts[0][3]:
        return pieces
    ends, whole = [], []
    for end, clean in zip(pieces.ends, pieces.whole, strict=True):
        at_end, fine = _place(end, parts)
        ends.append(at_end)
        whole.append(clean and fine)
    lost = [(start, end) for _, start, end, is_text in parts if not is_text]
    # Both ends of an interval that the tokens do not say, in the same coordinates.
    unsaid = [(_place(a, parts)[0], _place(b, parts)[0]) for a, b in pieces.holes]
    return Pieces(pieces.ids, tuple(ends), tuple(whole), size, (*lost, *unsaid))


def _place(told: int, parts: list[tuple[int, int, int, bool]]) -> tuple[int, bool]:
    """The byte that a position in the told text stands for, and whether it is a certain one."""
    before = 0
    for size, start, end, is_text in parts:
        if size and told <= before + size:
            if told == before:
                return start, True
            if is_text:
                return start + told - before, True
            return end, told == before + size
        before += size
    return (parts[-1][2] if parts else 0), True


def _padded(rows: list[list[int]], width: int) -> Tensor:
    made = torch.zeros(len(rows), width, dtype=torch.int64)
    for b, row in enumerate(rows):
        made[b, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return made


def _placed(rows: list[list[int]], there: Tensor) -> Tensor:
    """Values of the tokens that are there, [B, T]; 0 at padding."""
    made = torch.zeros_like(there, dtype=torch.int64)
    for b, row in enumerate(rows):
        made[b, there[b].bool()] = torch.tensor(row, dtype=torch.int64)
    return made


def straight(batch: Batch) -> Crossing:
    """The crossing of rows that the teacher reads as they are: every learnt token is a span of its own."""
    labels = batch["labels"]
    width = labels.shape[1]
    place = torch.arange(width, device=labels.device)
    mask = (labels != IGNORE)[:, 1:]
    first = place[1:].expand(len(labels), -1)
    spans = torch.stack([first, first + 1], -1)
    read = place.expand(len(labels), -1) + 1
    return Crossing(batch, spans, spans, mask, read, read)
