import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.language.methods.gold import GOLD
from toolkit.tokens import gradient, padded, ready, rows_of, terms_of


def sides(method, batch, row):
    """Probabilities [T, V] of both models on a row, and its spans."""
    crossing = method.cross(batch)
    found = []
    for module, own in ((method.student, batch), (method.teacher.module, crossing.batch)):
        logits = module(input_ids=own["input_ids"], attention_mask=own["attention_mask"]).logits[row]
        found.append((torch.softmax(logits.double(), -1), own["input_ids"][row]))
    kept = crossing.mask[row]
    return found, list(zip(crossing.student[row][kept].tolist(), crossing.teacher[row][kept].tolist(), strict=True))


def mass(p, ids, span, merge):
    """The distribution at one token of a span times the chance of its other tokens."""
    i, j = span
    kept = j - 1 if merge == "last" else i
    others = [p[t - 1, ids[t]] for t in range(i, j) if t != kept]
    return p[kept - 1] * torch.stack([*others, p.new_ones(())]).prod()


def jsd(a, b):
    m = (a + b) / 2
    return 0.5 * (a * (a / m).log()).nansum() + 0.5 * (b * (b / m).log()).nansum()


@pytest.mark.parametrize("merge", ["last", "first"])
def test_sorted_masses_of_spans_are_the_cards_formula(merge):
    method, batch = ready(GOLD(student_share=0.0, merge=merge), "char"), rows_of(count=3)
    wanted = []
    for row in range(3):
        ((q, ours), (p, theirs)), spans = sides(method, batch, row)
        for first, second in spans:
            a, b = (
                x.sort(descending=True).values for x in (mass(q, ours, first, merge), mass(p, theirs, second, merge))
            )
            wanted.append((a[: len(b)] - b).abs().sum() + a[len(b) :].sum())
    term = terms_of(method, batch)["uld"]
    assert len(wanted) == int(term.count)
    torch.testing.assert_close((term.sum / term.count).double(), sum(wanted) / len(wanted), rtol=1e-4, atol=1e-6)


def test_the_hybrid_compares_matched_tokens_and_the_text_of_spans():
    method, batch = ready(GOLD(student_share=0.0, hybrid=True, matched=0.6), "char"), rows_of(count=3)
    assert len(method.pairs) > 20
    wanted, longer = [], 0
    for row in range(3):
        ((q, ours), (p, theirs)), spans = sides(method, batch, row)
        for (i, j), (k, m) in spans:
            if (j - i, m - k) == (1, 1):
                a, b = q[i - 1][method.pairs[:, 0]], p[k - 1][method.pairs[:, 1]]
            else:
                longer += 1
                a = torch.stack([q[t - 1, ours[t]] for t in range(i, j)]).prod()[None]
                b = torch.stack([p[t - 1, theirs[t]] for t in range(k, m)]).prod()[None]
            wanted.append(jsd(*(torch.cat([x, 1 - x.sum()[None]]) for x in (a, b))))
    assert 0 < longer < len(wanted)
    terms = terms_of(method, batch)
    same = terms["matched"]
    torch.testing.assert_close((same.sum / same.count).double(), sum(wanted) / len(wanted), rtol=1e-3, atol=1e-5)
    assert same.weight == pytest.approx(0.6)
    # Every character of the teacher is a token of the student: nothing of the teacher is left to sort.
    assert terms["uld"].weight == pytest.approx(0.4) and float(terms["uld"].sum.detach()) > 0
    assert list(terms_of(ready(GOLD(student_share=0.0, hybrid=True), "char"), batch)) == ["matched"]


@pytest.mark.parametrize("merge", ["last", "first"])
def test_masses_are_merged_as_in_trl(merge):
    """trl's are the same but for a floor of 1e-8; its divergence of them is another, see the class."""
    loss = pytest.importorskip("trl.experimental.gold.gold_trainer").ULDLoss
    method, batch = ready(GOLD(student_share=0.0, merge=merge), "char"), rows_of(count=3)
    theirs = object.__new__(loss)
    theirs.token_merge_strategy = {"last": "bayesian", "first": "observed"}[merge]
    crossing = method.cross(batch)
    logits = method.asked(crossing).logits[:, :-1]
    own, _ = method.merged(logits, crossing.batch, crossing.teacher)
    for row in (0, 2):
        (_, (p, ids)), spans = sides(method, batch, row)
        groups = [list(range(k - 1, m - 1)) for _, (k, m) in spans]
        merged = theirs._merge_probabilities_with_alignment_groups(p[:-1], groups, ids[1:].tolist())
        torch.testing.assert_close(own[row][crossing.mask[row]].exp().double(), merged, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("teacher", ["char", "bpe"])
def test_neither_cutting_nor_padding_changes_the_gradient(teacher, hybrid):
    method = ready(GOLD(student_share=0.0, hybrid=hybrid, data_weight=0.5, reduction="seq_mean"), teacher)
    batch = rows_of()
    whole = gradient(method, batch, 6)
    for other, size in ((batch, 1), (batch, 4), (padded(batch), 6)):
        method.before_step(Clock(0, 10))
        torch.testing.assert_close(gradient(method, other, size), whole, rtol=1e-4, atol=1e-6)


def test_what_the_student_writes_is_compared_however_broken_it_is():
    method, batch = ready(GOLD(student_share=1.0, hybrid=True, new_tokens=8), "char"), rows_of()
    terms, counts = terms_of(method, batch), method.count(batch)
    assert all(int(counts[t.unit]) == int(t.count) for t in terms.values())
    assert torch.isfinite(terms["matched"].sum) and int(terms["matched"].count) > 0
    written = method.rows(batch).batch
    assert written["input_ids"].shape != batch["input_ids"].shape or not written["input_ids"].equal(batch["input_ids"])
    share = method.health(batch, Clock(0, 10))["compared"]
    assert 0 < float(share.sum / share.count) <= 1


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_teacher_that_is_the_student_is_at_no_distance(hybrid):
    method, batch = ready(GOLD(student_share=0.0, hybrid=hybrid), "bpe"), rows_of()
    method.teacher.module = method.student
    assert all(abs(float(t.sum.detach())) < 1e-4 for t in terms_of(method, batch).values())


def test_training_brings_the_spans_to_the_teachers():
    method, batch = ready(GOLD(student_share=0.0, hybrid=True), "char"), rows_of()
    optimizer = torch.optim.Adam(method.student.parameters(), lr=0.01)
    seen = []
    for _ in range(20):
        term = terms_of(method, batch)["matched"]
        optimizer.zero_grad()
        term.sum.backward()
        optimizer.step()
        seen.append(float(term.sum.detach()))
    assert 0 <= seen[-1] < 0.5 * seen[0]


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="another tokenizer cannot continue"):
        ready(GOLD(student_share=0.0, teacher_share=0.5), "char")
    with pytest.raises(UserError, match="matched must be between 0 and 1"):
        ready(GOLD(matched=2.0), "char")
