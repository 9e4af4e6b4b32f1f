import pytest
import torch

from limbeck.engine.method import Clock
from limbeck.errors import UserError
from limbeck.language.methods.uld import ULD
from toolkit.tokens import gradient, padded, reading, ready, rows_of, terms_of, total

TEACHERS = ["char", "bpe"]


def by_hand(method, batch):
    """CE plus the sorted distance where both models have read the same text, one place at a time."""
    student, teacher = method.student, method.teacher.module
    words, letters = reading("bpe").extra["tokenizer"], reading("char").extra["tokenizer"]
    ce, distance, tokens = [], [], 0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        q = torch.softmax(student(input_ids=ids[None]).logits[0].double(), -1)
        given = int((labels == -100).long().cumprod(0).sum())
        said = [words.decode(part) for part in (ids[:given], ids[given:])]
        theirs = [letters(part, add_special_tokens=False)["input_ids"] for part in said]
        p = torch.softmax(teacher(input_ids=torch.tensor([theirs[0] + theirs[1]])).logits[0].double(), -1)
        for t in range(1, len(ids)):
            if labels[t] == -100:
                continue
            tokens += 1
            ce.append(-q[t - 1, labels[t]].log())
            read = len(words.decode(ids[:t]))
            a, b = (x.sort(descending=True).values for x in (q[t - 1], p[read - 1]))
            b = torch.cat([b, b.new_zeros(len(a) - len(b))])
            distance.append((a - b).abs().sum())
    return sum(ce) / tokens, sum(distance) / tokens


def test_the_loss_is_the_cards_formula():
    method, batch = ready(ULD(weight=1.5), "char"), rows_of(count=3)
    batch["labels"][1] = batch["input_ids"][1]
    ce, distance = by_hand(method, batch)
    terms = terms_of(method, batch)
    values = {name: term.sum / term.count for name, term in terms.items()}
    torch.testing.assert_close(values["ce"].double(), ce, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values["uld"].double(), distance, rtol=1e-5, atol=1e-6)
    assert terms["uld"].weight == 1.5 and terms["ce"].weight == 1.0


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("reduction", ["token_mean", "seq_mean", "max_len"])
def test_neither_cutting_nor_padding_changes_the_gradient(teacher, reduction):
    method, batch = ready(ULD(reduction=reduction), teacher), rows_of()
    whole = gradient(method, batch, 6)
    for other, size in ((batch, 1), (batch, 4), (padded(batch), 6)):
        torch.testing.assert_close(gradient(method, other, size), whole, rtol=1e-4, atol=1e-6)
    counts = method.count(batch)
    assert all(int(counts[t.unit]) == int(t.count) for t in terms_of(method, batch).values())


def test_by_position_the_tokens_meet_in_their_order():
    """The paper's pairing: what both have read is not the same text from the second token on."""
    method, batch = ready(ULD(align="position"), "char"), rows_of(count=2)
    batch["labels"][0] = batch["input_ids"][0]
    crossing = method.cross(batch)
    assert crossing.student[0, :, 0].tolist() == crossing.teacher[0, :, 0].tolist() == list(range(1, 16))
    spans = ready(ULD(), "char").cross(batch)
    assert spans.teacher[0, -1, 0] > spans.student[0, -1, 0]


def test_a_teacher_of_the_same_tokens_is_read_as_it_is():
    method, batch = ready(ULD(), "bpe"), rows_of()
    assert not method.bridges and method.cross(batch).batch is batch
    method.teacher.module = method.student
    assert float(terms_of(method, batch)["uld"].sum.detach()) == 0.0
    assert not method.health(batch, Clock(0, 10)) and not method.alarms()


def test_training_brings_the_distance_down():
    method, batch = ready(ULD(weight=1.0), "char"), rows_of()
    optimizer = torch.optim.Adam(method.student.parameters(), lr=0.01)
    seen = []
    for _ in range(20):
        term = terms_of(method, batch)["uld"]
        optimizer.zero_grad()
        term.sum.backward()
        optimizer.step()
        seen.append(float(term.sum.detach() / term.count))
    assert seen[-1] < 0.6 * seen[0]


def test_what_can_be_compared_is_measured_and_little_is_warned_of():
    method, batch = ready(ULD(), "char"), rows_of()
    share = method.health(batch, Clock(0, 10))["compared"]
    assert 0.9 < float(share.sum / share.count) <= 1
    from limbeck.engine.health import Seen

    (alarm,) = method.alarms()
    assert alarm({"compared": [Seen(0, 9.0, 10.0)]}) is None and alarm({}) is None
    assert "20% of the learnt tokens" in alarm({"compared": [Seen(0, 2.0, 10.0)]})


def test_a_teacher_that_lost_its_tokenizer_is_refused():
    from limbeck.engine.method import Parts

    method = ready(ULD(), "char")
    teacher, data = method.teacher, reading("bpe")
    teacher.module.tokenizer = None
    with pytest.raises(UserError, match=r"another tokenizer than the student.*tokenizer\.json"):
        ULD().setup(Parts(method.student, {"teacher": teacher}, data.spec, {}, {"data": data.train}))
    teacher.module.tokenizer = reading("char").extra["tokenizer"]
    with pytest.raises(UserError, match="data does not say its tokenizer"):
        ULD().setup(Parts(method.student, {"teacher": teacher}, data.spec))


def test_the_methods_that_are_not_made_for_it_still_refuse():
    from limbeck.language.methods.word_kd import WordKD

    with pytest.raises(UserError, match="different tokenizers"):
        ready(WordKD(), "char")


def test_the_weight_can_be_scheduled():
    method, batch = ready(ULD(), "char"), rows_of()
    before = float(total(terms_of(method, batch), method.count(batch)).detach())
    method.weight = 3.0
    assert float(total(terms_of(method, batch), method.count(batch)).detach()) > before
