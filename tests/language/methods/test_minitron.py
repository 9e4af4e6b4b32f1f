import pytest
import torch

from limbeck.data.text import text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.minitron import Minitron, matched
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=4000, context=16)


def network(data, seed, hidden=16, layers=2):
    torch.manual_seed(seed)
    made = causal_lm(hidden=hidden, layers=layers, heads=2, vocab_size=data.spec.vocab_size, context=16)
    for p in made.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    return made.eval()


def ready(data, hidden=16, **arguments):
    method = Minitron(**arguments)
    teacher = Teacher(network(data, 1, layers=4), {"logits", "hidden_states"}, "teacher")
    torch.manual_seed(3)
    method.setup(Parts(network(data, 0, hidden), {"teacher": teacher}, data.spec))
    return method


def batch_of(data, rows=3):
    batch = data.train.batch(torch.arange(rows))
    batch["labels"][0, 3:] = -100
    return batch


def total(terms, counts):
    return sum(t.weight * t.sum / counts[t.unit] for t in terms.values())


@pytest.mark.parametrize("hidden", [16, 12])
def test_the_loss_is_the_cards_formula(data, hidden):
    method, batch = ready(data, hidden, intermediate=0.7, temperature=2.0), batch_of(data)
    given = {k: batch[k] for k in ("input_ids", "attention_mask")}
    own = method.student(**given, output_hidden_states=True)
    theirs = method.teacher.module(**given, output_hidden_states=True)
    loss, tokens = 0.0, 0
    for b in range(3):
        for t in range(15):
            if batch["labels"][b, t + 1] == -100:
                continue
            p, q = (torch.softmax(o.logits[b, t].double() / 2, -1) for o in (theirs, own))
            apart = []
            for i, j in ((0, 1), (1, 3)):  # blocks at half and at all of the depth
                s, h = own.hidden_states[i + 1][b, t].double(), theirs.hidden_states[j + 1][b, t].double()
                if hidden != 16:
                    s = method.learners["maps"].maps[str(i)].map.weight.double() @ s
                apart.append(1 - s @ h / (s.norm() * h.norm()))
            loss = loss + 4 * (p * (p.log() - q.log())).sum() + 0.7 * sum(apart) / 2
            tokens += 1
    found = total(method.terms(batch), method.count(batch))
    torch.testing.assert_close(found.double(), loss / tokens, rtol=1e-4, atol=1e-6)


def test_the_text_itself_teaches_nothing(data):
    method, batch = ready(data), batch_of(data)
    (update,) = method.updates(batch, Clock(0, 1))
    assert update.roles == ("student",) and set(update.terms) == {"kd"}
    method.teacher.module = method.student
    method.terms(batch)["kd"].sum.backward()
    assert max(p.grad.abs().max() for p in method.student.parameters()) < 1e-4


def test_maps_learn_beside_a_narrower_student_and_are_none_of_it(data):
    method, batch = ready(data, 12, intermediate=1.0), batch_of(data)
    before = set(method.student.state_dict())
    (update,) = method.updates(batch, Clock(0, 1))
    assert update.roles == ("student", "maps")
    total(update.terms, method.count(batch)).backward()
    assert all(p.grad is not None and p.grad.any() for p in method.learners["maps"].parameters())
    assert set(method.student.state_dict()) == before
    assert "maps" not in ready(data, intermediate=1.0).learners


@pytest.mark.parametrize("reduction", ["token_mean", "seq_mean"])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(data, reduction):
    method, batch = ready(data, intermediate=0.5, reduction=reduction), batch_of(data, 6)
    counts = method.count(batch)
    tensors = {k: v for k, v in batch.items() if k != "view"}

    def gradient(cuts):
        method.student.zero_grad()
        for rows in torch.arange(6).split(cuts):
            total(method.terms({**{k: v[rows] for k, v in tensors.items()}, "view": 0}), counts).backward()
        return torch.cat([p.grad.flatten() for p in method.student.parameters()])

    torch.testing.assert_close(gradient(4), gradient(6), rtol=1e-4, atol=1e-6)


def test_padding_changes_nothing(data):
    method, batch = ready(data, intermediate=0.5), data.train.batch(torch.arange(2))
    short = {k: v[:, :10] if getattr(v, "ndim", 0) == 2 else v for k, v in batch.items()}
    padded = {k: v.clone() if hasattr(v, "clone") else v for k, v in batch.items()}
    padded["attention_mask"][:, 10:], padded["labels"][:, 10:] = 0, -100
    torch.testing.assert_close(*[total(method.terms(b), method.count(b)) for b in (short, padded)])


def test_blocks_are_compared_at_the_same_share_of_the_depth():
    assert matched(3, 6) == {0: 1, 1: 3, 2: 5}
    assert matched(2, 5) == {0: 1, 1: 4} and matched(4, 4) == {0: 0, 1: 1, 2: 2, 3: 3}


def test_hidden_states_of_a_model_that_does_not_say_its_size_are_refused(data):
    method = Minitron(intermediate=1.0)
    teacher = Teacher(network(data, 1), {"logits"}, "teacher")
    with pytest.raises(UserError, match="student does not say how deep"):
        method.setup(Parts(torch.nn.Linear(2, 2), {"teacher": teacher}, data.spec))
