import pytest
import torch

from limbeck.data.labelled import labelled_text
from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.layers import layer_map
from limbeck.language.methods.pkd import PatientKD
from limbeck.models.encoder import encoder


@pytest.fixture(scope="module")
def data():
    return labelled_text(corpus="topics", train_size=12, test_size=4, context=20)


def network(data, seed, layers, hidden=16):
    torch.manual_seed(seed)
    sizes = {"vocab_size": data.spec.vocab_size, "context": 20, "classes": 4}
    return encoder(hidden=hidden, layers=layers, heads=2, data=data, **sizes).eval()


def ready(data, layers=3, width=16, **arguments):
    method = PatientKD(**arguments)
    sure = network(data, 1, 6)
    sure.classifier.weight.data.mul_(100)  # of small differences float32 keeps few digits
    teacher = Teacher(sure, {"logits", "hidden_states"}, "teacher")
    method.setup(Parts(network(data, 0, layers, width), {"teacher": teacher}, data.spec))
    return method


def test_the_loss_is_the_cards_formula(data):
    method, batch = (
        ready(data, alpha=0.7, temperature=4.0, beta=20.0, from_teacher=False),
        data.train.batch(torch.arange(5)),
    )
    terms = method.terms(batch)
    given = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    student, teacher = (m(**given, output_hidden_states=True) for m in (method.student, method.teacher.module))
    ce, kd, patient = 0.0, 0.0, 0.0
    for b in range(5):
        q, p = (torch.softmax(x.logits[b].double() / 4, -1) for x in (student, teacher))
        kd += 16 * float((p * (p.log() - q.log())).sum())
        ce += -float(torch.log_softmax(student.logits[b].double(), -1)[batch["label"][b]])
        for i, j in ((1, 2), (2, 4)):
            h, g = student.hidden_states[i][b, 0].double(), teacher.hidden_states[j][b, 0].double()
            patient += float((h / h.norm() - g / g.norm()).square().sum())
    for name, value, weight in (("ce", ce, 0.3), ("kd", kd, 0.7), ("patient", patient, 20.0)):
        assert float(terms[name].sum.detach()) == pytest.approx(value, rel=1e-4)
        assert (int(terms[name].count), terms[name].weight) == (5, pytest.approx(weight))


def test_the_student_begins_with_the_teachers_first_layers(data):
    method = ready(data)
    theirs = method.teacher.module.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in method.student.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "last", "pairs"),
    [
        ("skip", True, [(1, 2), (2, 4), (3, 6)]),
        ("skip", False, [(1, 2), (2, 4)]),
        ("last", True, [(1, 4), (2, 5), (3, 6)]),
        ("last", False, [(1, 4), (2, 5)]),
        ("emb_last", True, [(0, 0), (3, 6)]),
        ({1: 5, 3: 0}, True, [(1, 5), (3, 0)]),
    ],
)
def test_layers_are_mapped_as_named(kind, last, pairs):
    assert layer_map(kind, 3, 6, last=last) == pairs


def test_maps_that_cannot_be_are_refused(data):
    with pytest.raises(UserError, match="cannot be mapped onto a teacher of 2"):
        layer_map("skip", 3, 2)
    with pytest.raises(UserError, match="no pair of layers 4: 1"):
        layer_map({4: 1}, 3, 6)
    with pytest.raises(UserError, match="32 wide and the teacher 16"):
        ready(data, width=32)
