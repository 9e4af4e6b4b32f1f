import pytest
import torch

from limbeck.language.graphs import graph_distance, signatures
from limbeck.language.methods.infigfusion import InfiGFusion
from toolkit.tokens import gradient, padded, ready, rows_of, terms_of


@pytest.mark.parametrize("teachers", [("char",), ("char", "bpe")])
def test_the_loss_is_the_cards_formula(teachers):
    """Graphs built in full, one row at a time; the sorted distance is that of uld."""
    method, batch = ready(InfiGFusion(uld_weight=0.3, graph_weight=0.7, k=4), *teachers), rows_of(count=3)
    terms = terms_of(method, batch)
    ends = [""] if len(teachers) == 1 else [f"/{role}" for role in method.teachers]
    assert set(terms) == {"ce"} | {f"{name}{end}" for name in ("uld", "graph") for end in ends}
    for end, role in zip(ends, method.teachers, strict=True):
        crossing = method.cross(batch, role)
        theirs = (
            method.teachers[role]
            .module(input_ids=crossing.batch["input_ids"], attention_mask=crossing.batch["attention_mask"])
            .logits
        )
        ours, wanted = method.student(input_ids=batch["input_ids"]).logits, []
        for b in (0, 2):
            sides = [
                by_hand(x[b, :-1][y[b, 1:] != -100].double(), 4)
                for x, y in ((ours, batch["labels"]), (theirs, crossing.batch["labels"]))
            ]
            width = max(map(len, sides))
            a, c = (torch.cat([s, s.new_zeros(width - len(s))]).sort().values for s in sides)
            wanted.append(((a - c) ** 2).mean())
        term = terms[f"graph{end}"]
        torch.testing.assert_close((term.sum / term.count).double(), sum(wanted) / 2, rtol=1e-4, atol=1e-6)
        assert term.weight == pytest.approx(0.7 / len(teachers))
        assert terms[f"uld{end}"].weight == pytest.approx(0.3 / len(teachers))


def by_hand(logits, k):
    graph = torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.float64)
    for row in logits:
        kept = torch.zeros_like(row)
        for i in row.argsort(descending=True)[:k]:
            kept[i] = row[i]
        graph += torch.outer(kept, kept)
    return graph.sum(1) / graph.norm()


@pytest.mark.parametrize("reduction", ["token_mean", "seq_mean", "max_len"])
def test_neither_cutting_nor_padding_changes_the_gradient(reduction):
    method, batch = ready(InfiGFusion(reduction=reduction), "char", "bpe"), rows_of()
    whole = gradient(method, batch, 6)
    for other, size in ((batch, 1), (batch, 4), (padded(batch), 6)):
        torch.testing.assert_close(gradient(method, other, size), whole, rtol=1e-4, atol=1e-6)
    counts = method.count(batch)
    assert all(int(counts[t.unit]) == int(t.count) for t in terms_of(method, batch).values())


def test_a_teacher_that_is_the_student_has_its_graph():
    method, batch = ready(InfiGFusion(), "bpe"), rows_of()
    method.teacher.module = method.student
    assert float(terms_of(method, batch)["graph"].sum.detach()) == 0.0


def test_weights_of_zero_leave_the_text():
    method, batch = ready(InfiGFusion(uld_weight=0.0, graph_weight=0.0), "char"), rows_of()
    assert list(terms_of(method, batch)) == ["ce"]


def test_the_graph_alone_trains():
    method, batch = ready(InfiGFusion(), "char"), rows_of()
    optimizer = torch.optim.Adam(method.student.parameters(), lr=0.01)
    seen = []
    for _ in range(20):
        term = terms_of(method, batch)["graph"]
        optimizer.zero_grad()
        term.sum.backward()
        optimizer.step()
        seen.append(float(term.sum.detach()))
    assert seen[-1] < 0.7 * seen[0]
    assert graph_distance(torch.zeros(1, 3), torch.zeros(1, 5)).tolist() == [0.0]
    assert signatures(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool), 2).tolist() == [[0.0] * 3]
