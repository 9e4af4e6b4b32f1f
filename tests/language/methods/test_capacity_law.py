import pytest
import torch

from limbeck.data.text import text
from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.language.methods.capacity_law import CapacityLaw
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=4000, context=16)


def ready(data, width, **arguments):
    torch.manual_seed(0)
    made = [
        causal_lm(hidden=h, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=16).eval() for h in (16, width)
    ]
    method = CapacityLaw(**arguments)
    method.setup(Parts(made[0], {"teacher": Teacher(made[1], {"logits"}, "teacher")}, data.spec))
    return method


def test_the_loss_is_the_cards_formula(data):
    method, batch = ready(data, 24, alpha=0.7, temperature=2.0), data.train.batch(torch.arange(2))
    student, teacher = (
        m(input_ids=batch["input_ids"]).logits[:, :-1].double() for m in (method.student, method.teacher.module)
    )
    q, p = (o.div(2).log_softmax(-1) for o in (student, teacher))
    ce = -student.log_softmax(-1).gather(-1, batch["labels"][:, 1:, None]).mean()
    kd = 4 * (p.exp() * (p - q)).sum(-1).mean()
    terms = method.terms(batch)
    found = sum(t.weight * t.sum / t.count for t in terms.values())
    torch.testing.assert_close(found.double(), 0.3 * ce + 0.7 * kd, rtol=1e-5, atol=1e-6)


def test_the_plan_says_how_far_the_sizes_are_from_the_law(data):
    method = ready(data, 32)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (method.teacher.module, method.student)]
    assert method.says() == [
        f"the teacher has {sizes[0] / sizes[1]:.1f} times the student's parameters; the law asks for about 2.5 times"
    ]
