import pytest
import torch

from limbeck.data.text import text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.medusa import Medusa
from limbeck.language.speculative.models import MedusaLM, medusa_heads
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=2000, context=12)


def network(data, seed=1):
    torch.manual_seed(seed)
    made = causal_lm(architecture="llama", hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=12)
    for p in made.parameters():
        p.data.mul_(3.0 if p.dim() > 1 else 1.0)
    return made.eval()


def ready(data, student=None, **arguments):
    method = Medusa(**arguments)
    student = student or medusa_heads(hidden=16, vocab_size=data.spec.vocab_size, count=2)
    teacher = Teacher(network(data), {"logits", "hidden_states"}, "teacher")
    method.setup(Parts(student, {"teacher": teacher}, data.spec, streams={"data": data.train}))
    method.before_step(Clock(2, 10))
    return method


def terms(method, batch):
    (update,) = method.updates(batch, Clock(2, 10))
    return update.evaluate()


@pytest.mark.parametrize("learn", ["tokens", "distribution"])
def test_each_head_learns_the_token_that_many_places_further_on(data, learn):
    """The card's loss in float64 loops: sum_k decay^k CE(x_{t+k+1}, W2 (SiLU(W1 h) + h))."""
    method, batch = ready(data, learn=learn, decay=0.7, head_weight=0.5), data.train.batch(torch.arange(3))
    batch["labels"][0, :5] = -100
    torch.nn.init.normal_(method.student.heads[1].inner.weight)
    target = method.teacher.module(input_ids=batch["input_ids"], output_hidden_states=True)
    found = terms(method, batch)
    for k in (1, 2):
        head = method.student.heads[k - 1].double()
        wanted, count = torch.zeros((), dtype=torch.float64), 0
        for b in range(3):
            for t in range(12 - k - 1):
                if batch["labels"][b, t + k + 1] == -100:
                    continue
                h = target.hidden_states[-1][b, t].double()
                z = h @ head.inner.weight.T + head.inner.bias
                log_q = ((z / (1 + (-z).exp()) + h) @ head.out.weight.T).log_softmax(-1)
                if learn == "tokens":
                    wanted = wanted - log_q[batch["labels"][b, t + k + 1]]
                else:
                    p = target.logits[b, t + k].double().softmax(-1)
                    wanted = wanted + (p * (p.log() - log_q)).sum()
                count += 1
        term = found[f"head_{k}"]
        assert int(term.count) == count == int(method.count(batch)[term.unit])
        assert term.weight == pytest.approx(0.5 * 0.7**k)
        torch.testing.assert_close(term.sum.double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_head_starts_as_the_targets_own_output_layer(data):
    method, batch = ready(data), data.train.batch(torch.arange(3))
    target = method.teacher.module(input_ids=batch["input_ids"], output_hidden_states=True)
    for head in method.student(target.hidden_states[-1]).unbind(-2):
        torch.testing.assert_close(head, target.logits)


def test_a_model_that_learns_along_keeps_to_the_text_or_to_what_it_was(data):
    batch = data.train.batch(torch.arange(3))
    method = ready(data, MedusaLM(network(data, 5), 2))
    found = terms(method, batch)
    logits = method.teacher.module(input_ids=batch["input_ids"]).logits
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert set(found) == {"head_1", "head_2", "ce"}
    assert float(found["ce"].sum.detach() / found["ce"].count) == pytest.approx(float(wanted), rel=1e-4)
    found["head_1"].sum.backward()
    assert any(p.grad is not None for p in method.student.base.parameters()), "the model learns from its heads"
    written = ready(data, MedusaLM(network(data, 5), 2), teacher_share=1.0)
    found = terms(written, batch)
    assert set(found) == {"head_1", "head_2", "kd"} and abs(float(found["kd"].sum)) < 1e-4, "it starts as the teacher"
    assert int(found["kd"].count) == int(written.count(batch)["ahead_1"]) < int(method.count(batch)["ahead_1"])


def test_what_does_not_fit_is_refused(data):
    with pytest.raises(UserError, match=r"must be medusa_heads or medusa_lm, not LlamaForCausalLM"):
        ready(data, network(data))
    with pytest.raises(UserError, match=r"a head is \[vocab_size, hidden\] = \[4, 8\]"):
        ready(data, medusa_heads(hidden=8, vocab_size=4))
    with pytest.raises(UserError, match="11 heads need rows of 13 tokens, not 12"):
        ready(data, medusa_heads(hidden=16, vocab_size=data.spec.vocab_size, count=11))
