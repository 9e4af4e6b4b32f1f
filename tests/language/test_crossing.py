import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.tokenizer import encode
from limbeck.errors import UserError
from limbeck.language.crossing import UNREADABLE, Bridge, at, span_sums, straight
from toolkit.words import HARD, PIECES, words


def rows(texts, kind="byte_bpe", prompts=None, width=None):
    """Rows of a student: prompts that are not learnt, and completions that are."""
    tokenizer = words(kind)
    parts = [encode(tokenizer, [p, t]) for p, t in zip(prompts or [""] * len(texts), texts, strict=True)]
    ids = [[*p, *t] for p, t in parts]
    width = width or max(map(len, ids))
    batch = {"id": torch.arange(len(texts)), "view": 0}
    batch["input_ids"] = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
    batch["attention_mask"] = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    learnt = [[-100] * len(p) + t + [-100] * (width - len(p) - len(t)) for p, t in parts]
    batch["labels"] = torch.tensor(learnt)
    return batch


def said(kind, ids):
    return words(kind).decode([int(i) for i in ids])


def pairs_of(crossing, batch, b, kinds):
    """The text of each span on both sides."""
    found = []
    for s in range(crossing.mask.shape[1]):
        if crossing.mask[b, s]:
            (i, j), (k, m) = crossing.student[b, s].tolist(), crossing.teacher[b, s].tolist()
            found.append(
                (said(kinds[0], batch["input_ids"][b, i:j]), said(kinds[1], crossing.batch["input_ids"][b, k:m]))
            )
    return found


@pytest.mark.parametrize("teacher", ["char", "prefix_bpe", "metaspace"])
def test_the_spans_of_two_rows_say_the_same(teacher):
    bridge, batch = Bridge(words("byte_bpe"), words(teacher)), rows(HARD[:4])
    crossing = bridge(batch)
    for b in range(4):
        pairs = pairs_of(crossing, batch, b, ("byte_bpe", teacher))
        assert len(pairs) > 2
        for ours, theirs in pairs:
            # Decoders of whole texts drop the space before the first word.
            assert theirs.strip() == ours.strip() or UNREADABLE in ours
    begin = words(teacher).bos_token_id
    if begin is not None:
        assert (crossing.batch["input_ids"][:, 0] == begin).all(), "as the teacher's texts begin"


def test_prompts_are_given_and_not_compared():
    batch = rows(["cat sat", "the mat"], prompts=["the ", "sat on "], width=16)
    crossing = Bridge(words("byte_bpe"), words("char"))(batch)
    for b, (prompt, text) in enumerate((("the ", "cat sat"), ("sat on ", "the mat"))):
        theirs = crossing.batch["input_ids"][b][crossing.batch["attention_mask"][b].bool()]
        assert said("char", theirs) == prompt + text
        learnt = crossing.batch["labels"][b]
        assert said("char", learnt[learnt != -100]) == text
        assert "".join(ours for ours, _ in pairs_of(crossing, batch, b, ("byte_bpe", "char"))) == text


def test_ends_are_matched_by_what_they_mean():
    student, teacher = words("byte_bpe"), words("metaspace")
    batch = rows(["cat", "mat"], width=8)
    for b in range(2):
        end = int(batch["attention_mask"][b].sum())
        for name, value in (
            ("input_ids", student.eos_token_id),
            ("attention_mask", 1),
            ("labels", student.eos_token_id),
        ):
            batch[name][b, end] = value
    crossing = Bridge(student, teacher)(batch)
    for b in range(2):
        last = int(crossing.mask[b].sum()) - 1
        i, j = int(crossing.student[b, last, 0]), int(crossing.teacher[b, last, 0])
        assert int(batch["input_ids"][b, i]) == student.eos_token_id
        assert int(crossing.batch["input_ids"][b, j]) == teacher.eos_token_id
    assert student.eos_token_id != teacher.eos_token_id


def test_a_special_token_that_the_teacher_lacks_is_refused():
    import copy

    student = copy.deepcopy(words("byte_bpe"))
    student.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    batch = rows(["the cat sat"])
    batch["input_ids"][0, 1] = student.convert_tokens_to_ids("<|user|>")
    with pytest.raises(UserError, match=r"special token '<\|user\|>'.*chat template"):
        Bridge(student, words("char"))(batch)
    both = copy.deepcopy(words("char"))
    both.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    crossing = Bridge(student, both)(batch)
    assert both.convert_tokens_to_ids("<|user|>") in crossing.batch["input_ids"][0].tolist()


def test_word_pieces_that_do_not_say_their_text_are_refused():
    batch = rows(["the cat"], kind="wordpiece")
    tokenizer = words("wordpiece")
    inner = [i for t, i in tokenizer.get_vocab().items() if t.startswith("##")][:2]
    batch["input_ids"][0, :2] = torch.tensor(inner)
    with pytest.raises(UserError, match="does not say the text of its tokens"):
        Bridge(tokenizer, words("char"))(batch)


def test_broken_characters_are_told_and_not_compared():
    """What a student writes may be bytes that are no text; rows of blocks begin and end inside characters."""
    student = words("byte_bpe")
    level = student.get_vocab()
    ids = [level["Ģ"], level["a"], level["Ã"], level["t"], level["e"], level["Ã"]]
    batch = {
        "id": torch.zeros(1, dtype=torch.int64), "view": 0, "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, 6, dtype=torch.int64), "labels": torch.tensor([ids]),
    }  # fmt: skip
    crossing = Bridge(student, words("char"))(batch)
    assert said("char", crossing.batch["input_ids"][0]) == f"a{UNREADABLE}te"
    assert pairs_of(crossing, batch, 0, ("byte_bpe", "char")) == [("t", "t"), ("e", "e")]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(2, 260), min_size=2, max_size=14),
    st.sampled_from(["char", "metaspace", "unigram", "wordpiece"]),
)
def test_any_tokens_that_a_student_writes_are_taken(ids, teacher):
    batch = {
        "id": torch.zeros(1, dtype=torch.int64), "view": 0, "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64), "labels": torch.tensor([ids]),
    }  # fmt: skip
    crossing = Bridge(words("byte_bpe"), words(teacher))(batch)
    last = 0
    for (i, j), there in zip(crossing.student[0].tolist(), crossing.mask[0].tolist(), strict=True):
        assert not there or (last <= i < j <= len(ids) and i >= 1)
        last = j if there else last
    width = crossing.batch["input_ids"].shape[1]
    assert int(crossing.teacher[0].max()) <= width


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join), min_size=2, max_size=4))
def test_a_row_is_the_same_in_any_batch(texts):
    bridge, batch = Bridge(words("byte_bpe"), words("metaspace")), rows(texts, width=60)
    whole = bridge(batch)
    fresh = Bridge(words("byte_bpe"), words("metaspace"))
    for b in range(len(texts)):
        alone = fresh({k: v[b : b + 1] if torch.is_tensor(v) else v for k, v in batch.items()})
        for side in ("student", "teacher"):
            ours, other = getattr(whole, side)[b][whole.mask[b]], getattr(alone, side)[0][alone.mask[0]]
            assert ours.tolist() == other.tolist()
        kept = whole.batch["attention_mask"][b].bool()
        assert whole.batch["input_ids"][b][kept].tolist() == alone.batch["input_ids"][0].tolist()[: int(kept.sum())]


def test_reading_goes_on_alike_on_both_sides():
    batch = rows(["the cat sat on the mat"])
    crossing = Bridge(words("byte_bpe"), words("char"))(batch)
    for (i, j), (k, m) in zip(crossing.student[0].tolist(), crossing.teacher[0].tolist(), strict=True):
        assert crossing.student_read[0, j - 1] == crossing.teacher_read[0, m - 1]
        assert crossing.student_read[0, i - 1] == crossing.teacher_read[0, k - 1]


def test_what_the_teacher_cannot_read_at_once_is_left_out():
    batch = rows(["the cat sat on the mat"])
    whole, short = (Bridge(words("byte_bpe"), words("char"), limit=limit)(batch) for limit in (None, 9))
    assert short.batch["input_ids"].shape[1] == 9 and int(short.teacher.max()) <= 9
    assert 0 < int(short.mask.sum()) < int(whole.mask.sum())


def test_by_position_the_learnt_tokens_are_paired_in_order():
    batch = rows(["cat sat"], prompts=["the "])
    crossing = Bridge(words("byte_bpe"), words("char"), by="position")(batch)
    first = int((batch["labels"][0] != -100).nonzero()[0])
    assert crossing.student[0, 0].tolist() == [first, first + 1]
    assert crossing.teacher[0, 0].tolist() == [4, 5], "after the four characters of the prompt"
    assert crossing.teacher[0, :, 0].diff().eq(1).all() and crossing.student[0, :, 0].diff().eq(1).all()


def test_rows_of_one_tokenizer_are_taken_token_by_token():
    batch = rows(["the cat sat", "mat"], width=12)
    crossing = straight(batch)
    assert crossing.batch is batch
    assert crossing.mask.sum(1).tolist() == (batch["labels"][:, 1:] != -100).sum(1).tolist()
    assert crossing.single.equal(crossing.mask)


def test_sums_and_places_of_spans():
    values = torch.arange(1.0, 11.0).view(2, 5)
    spans = torch.tensor([[[1, 3], [3, 4], [5, 6]], [[2, 6], [1, 1], [1, 1]]])
    values.requires_grad_(True)
    sums = span_sums(values, spans)
    assert sums.tolist() == [[3.0, 3.0, 5.0], [7 + 8 + 9 + 10, 0.0, 0.0]]
    (gradient,) = torch.autograd.grad(sums.sum(), values)
    assert gradient.tolist() == [[1, 1, 1, 0, 1], [0, 1, 1, 1, 1]]
    assert at(values, spans[..., 0]).tolist() == [[1.0, 3.0, 5.0], [7.0, 6.0, 6.0]]
