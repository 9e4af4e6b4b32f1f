import pytest
import torch

from limbeck.data.arithmetic import arithmetic
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.mgsr import MGSR, Quantiles, clipped, relation, worst_token
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return arithmetic(train_size=24, test_size=5, digits=1, context=16)


def network(data, seed):
    torch.manual_seed(seed)
    net = causal_lm(architecture="llama", hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=16)
    for p in net.parameters():
        p.data.mul_(2.0 if p.dim() > 1 else 1.0)
    return net.eval()


def ready(data, **arguments):
    method = MGSR(new_tokens=8, **{"student_share": 1.0, **arguments})
    teacher = Teacher(network(data, 1), {"logits", "text"}, "teacher")
    method.setup(Parts(network(data, 0), {"teacher": teacher}, data.spec, streams={"data": data.train}))
    method.before_step(Clock(0, 10))
    return method


def test_the_worst_token_is_where_both_differ_most():
    p, q = torch.randn(2, 3, 4, 5).log_softmax(-1)
    tokens = p.argmax(-1)
    tokens[0, 1], tokens[0, 3], tokens[1, 2] = (p[0, 1].argmax() + 1) % 5, (p[0, 3].argmax() + 2) % 5, -100
    place, better = worst_token(p, q, tokens)
    kl = (p.exp() * (p - q)).sum(-1)
    wanted = 1 if kl[0, 1] > kl[0, 3] else 3
    assert place.tolist() == [wanted, -1, -1] and int(better[0]) == int(p[0, wanted].argmax())


def test_the_teacher_corrects_one_token_and_the_student_goes_on(data):
    method, batch = ready(data), data.train.batch(torch.arange(12))
    plain = method.written(method.student, batch, Clock(0, 10)).batch
    edited = method.rows(batch).batch
    corrected = 0
    for row in range(12):
        before, after = plain["labels"][row], edited["labels"][row]
        prompt = int((before == -100).long().cumprod(0).sum())
        a, b = (x["input_ids"][row][x["attention_mask"][row].bool()].tolist() for x in (plain, edited))
        assert a[:prompt] == b[:prompt] and len(b) <= prompt + 8
        assert (after[:prompt] == -100).all() and after[prompt : len(b)].tolist() == b[prompt:]
        teacher = method.teacher.module(input_ids=torch.tensor([a])).logits[0].argmax(-1)
        student = torch.log_softmax(method.student(input_ids=torch.tensor([a])).logits[0], -1)
        law = torch.log_softmax(method.teacher.module(input_ids=torch.tensor([a])).logits[0], -1)
        kl = (law.exp() * (law - student)).sum(-1)
        wrong = [t for t in range(prompt, len(a)) if a[t] != int(teacher[t - 1])]
        if not wrong:
            assert a == b
            continue
        corrected += 1
        place = max(wrong, key=lambda t: float(kl[t - 1].detach()))
        assert b[:place] == a[:place] and b[place] == int(teacher[place - 1])
        if b[place] == data.extra["tokenizer"].eos_token_id:
            assert len(b) == place + 1
    assert corrected > 3
    assert torch.equal(ready(data, correct=False).rows(batch).batch["input_ids"], plain["input_ids"])


def test_correcting_does_not_depend_on_the_batch(data):
    method, batch = ready(data), data.train.batch(torch.arange(12))
    whole = method.rows(batch).batch
    part = method.rows(data.train.batch(torch.arange(4, 7))).batch
    width = part["input_ids"].shape[1]
    assert torch.equal(whole["input_ids"][4:7, :width] * whole["attention_mask"][4:7, :width], part["input_ids"])


def test_the_clipped_distribution_by_loops():
    log_p = torch.randn(3, 6, dtype=torch.float64).log_softmax(-1)
    quantiles, target = torch.tensor([[0.1, 0.9], [0.0, 0.5], [0.3, 0.6]], dtype=torch.float64), torch.tensor([5, 0, 2])
    found, kept = clipped(log_p, quantiles, target, softness=0.05)
    for b in range(3):
        p = log_p[b].exp()
        order = p.argsort(descending=True).tolist()
        gates, mass = [0.0] * 6, 0.0
        for v in order:
            middle = mass + float(p[v]) / 2
            low, high = quantiles[b].tolist()
            gate = torch.sigmoid(torch.tensor([(middle - low) / 0.05, (high - middle) / 0.05])).prod()
            gates[v], mass = float(gate), mass + float(p[v])
        gates[int(target[b])] = 1.0
        weights = p * torch.tensor(gates, dtype=torch.float64)
        torch.testing.assert_close(found[b].exp(), weights / weights.sum(), rtol=1e-5, atol=1e-7)
        assert float(kept[b]) == pytest.approx(float(weights.sum()), rel=1e-5)


def test_nothing_is_clipped_at_the_start_and_the_network_learns(data):
    net = Quantiles(5, 8)
    low, high = net(torch.rand(2, 5), torch.rand(2, 5)).unbind(-1)
    assert (low < 0.02).all() and (high > 0.98).all()
    method, batch = ready(data), data.train.batch(torch.arange(6))
    (update,) = method.updates(batch, Clock(0, 10))
    assert update.roles == ("student", "clip")
    terms = update.evaluate()
    terms["kd"].sum.backward()
    assert sum(float(p.grad.abs().sum()) for p in method.learners["clip"].parameters() if p.grad is not None) > 0
    assert float(method.health(batch, Clock(0, 10))["kept_mass"].sum.detach()) > 0
    (update,) = ready(data, clip_hidden=0).updates(batch, Clock(0, 10))
    assert update.roles == ("student",)


def test_the_relation_by_loops_and_only_inside_words(data):
    p, q = torch.rand(2, 2, 4, 3).softmax(-1)
    within = torch.tensor([[True, False, True], [False, True, True]])
    found = relation(p, q, within)
    for b in range(2):
        for t in range(3):
            wanted = sum(float(p[b, t, v] * p[b, t + 1, v] - q[b, t, v] * q[b, t + 1, v]) ** 2 for v in range(3))
            assert float(found[b, t]) == pytest.approx(wanted if within[b, t] else 0.0, abs=1e-6)
    method = ready(data)
    words = data.extra["tokenizer"]
    space, three = words.convert_tokens_to_ids([" ", "3"])
    assert method._begins(torch.tensor([space, three])).tolist() == [True, False]


def test_counts_and_a_negative_width(data):
    method, batch = ready(data), data.train.batch(torch.arange(6))
    counts = method.count(batch)
    for term in method.terms(batch).values():
        assert int(counts[term.unit]) == int(term.count)
    with pytest.raises(UserError, match="clip_hidden"):
        ready(data, clip_hidden=-1)
