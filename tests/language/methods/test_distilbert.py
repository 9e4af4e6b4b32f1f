import pytest
import torch

from limbeck.data.masked import masked_text
from limbeck.data.text import text
from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.distilbert import DistilBERT
from limbeck.models.encoder import encoder


@pytest.fixture(scope="module")
def data():
    return masked_text(corpus="grammar", characters=4000, context=24)


def network(data, seed, layers, hidden=16):
    torch.manual_seed(seed)
    sizes = {"vocab_size": data.spec.vocab_size, "context": 24}
    return encoder(hidden=hidden, layers=layers, heads=2, task="masked_lm", data=data, **sizes).eval()


def ready(data, width=16, **arguments):
    method = DistilBERT(**arguments)
    teacher = Teacher(network(data, 1, 4), {"logits", "hidden_states"}, "teacher")
    method.setup(Parts(network(data, 0, 2, width), {"teacher": teacher}, data.spec))
    return method


def batch_of(data):
    batch = data.train.batch(torch.arange(4))
    batch["attention_mask"][1, 15:] = 0
    batch["label"][1, 15:] = -100
    return batch


def test_the_loss_is_the_cards_formula(data):
    method, batch = ready(data, from_teacher=False), batch_of(data)
    terms = method.terms(batch)
    given = {k: batch[k] for k in ("input_ids", "attention_mask")}
    student, teacher = (m(**given, output_hidden_states=True) for m in (method.student, method.teacher.module))
    soft, hard, cosine, hidden, there = 0.0, 0.0, 0.0, 0, 0
    for b in range(4):
        for t in range(24):
            if batch["label"][b, t] != -100:
                q, p = (torch.softmax(x.logits[b, t].double() / 2, -1) for x in (student, teacher))
                soft += 4 * float((p * (p.log() - q.log())).sum())
                hard += -float(torch.log_softmax(student.logits[b, t].double(), -1)[batch["label"][b, t]])
                hidden += 1
            if batch["attention_mask"][b, t]:
                h, g = (x.hidden_states[-1][b, t].double() for x in (student, teacher))
                cosine += 1 - float(h @ g / h.norm() / g.norm())
                there += 1
    for name, value, count, weight in (
        ("soft", soft, hidden, 5),
        ("hard", hard, hidden, 2),
        ("cosine", cosine, there, 1),
    ):
        assert float(terms[name].sum.detach()) == pytest.approx(value, rel=1e-4)
        assert int(terms[name].count) == count == int(method.count(batch)[terms[name].unit])
        assert terms[name].weight == weight


def test_the_student_begins_with_every_second_layer(data):
    method = ready(data)
    own, theirs = method.student.state_dict(), method.teacher.module.state_dict()
    layers = "bert.encoder.layer."
    for name, value in own.items():
        source = name
        if name.startswith(layers):
            source = f"{layers}{2 * int(name[len(layers)])}{name[len(layers) + 1 :]}"
        assert torch.equal(value, theirs[source]), name
    assert not torch.equal(
        next(ready(data, from_teacher=False).student.parameters()), next(method.student.parameters())
    )


def test_what_stands_in_padding_does_not_matter(data):
    method, batch = ready(data), batch_of(data)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][1, 15:] = 7
    for name, term in method.terms(batch).items():
        torch.testing.assert_close(method.terms(other)[name].sum, term.sum, rtol=1e-4, atol=1e-5)


def test_all_positions_teach_where_asked(data):
    batch = batch_of(data)
    assert int(ready(data, soft_on="all").terms(batch)["soft"].count) == int(batch["attention_mask"].sum())


def test_unlike_widths_and_other_data_are_refused(data):
    with pytest.raises(UserError, match="32 wide and the teacher 16"):
        ready(data, width=32)
    assert set(ready(data, width=32, cosine_weight=0.0, from_teacher=False).terms(batch_of(data))) == {"soft", "hard"}
    plain = text(corpus="grammar", characters=4000, context=24)
    with pytest.raises(UserError, match="fills in hidden tokens"):
        DistilBERT().setup(Parts(network(data, 0, 2), {"teacher": ready(data).teacher}, plain.spec))
