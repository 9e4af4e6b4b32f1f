import pytest
import torch

from limbeck.data.arithmetic import arithmetic
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.adaspec import AdaSPEC, keep_largest
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return arithmetic(train_size=12, test_size=4, digits=1)


def network(data, seed):
    torch.manual_seed(seed)
    made = causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=16, data=data)
    for p in made.parameters():
        p.data.mul_(3.0)
    return made


def ready(data, **arguments):
    method = AdaSPEC(**arguments)
    roles = {role: Teacher(network(data, seed), {"logits"}, role) for role, seed in (("teacher", 1), ("reference", 2))}
    method.setup(Parts(network(data, 0), roles, data.spec, streams={"data": data.train}))
    return method


def by_hand(method, batch):
    """KL(p || q) and KL(p || r) of every learnt token, in float64 loops: (row, place, gap, loss)."""
    laws = [
        torch.softmax(m(input_ids=batch["input_ids"]).logits.double(), -1)
        for m in (method.teacher.module, method.student, method.teachers["reference"].module)
    ]
    found = []
    for b in range(len(batch["labels"])):
        for t in range(batch["labels"].shape[1] - 1):
            if batch["labels"][b, t + 1] != -100:
                p, q, r = (each[b, t] for each in laws)
                of_q, of_r = (p * (p / q).log()).sum(), (p * (p / r).log()).sum()
                found.append((float((of_q - of_r).detach()), of_q))
    return found


@pytest.mark.parametrize("select", ["gap", "loss"])
def test_the_loss_is_over_the_tokens_with_the_largest_gap(data, select):
    method, batch = ready(data, share=0.3, select=select), data.train.batch(torch.arange(6))
    term = method.selected(batch, Clock(0, 10))["kd"]
    tokens = by_hand(method, batch)
    kept = round(0.3 * len(tokens))
    order = sorted(tokens, key=lambda item: -(item[0] if select == "gap" else float(item[1].detach())))
    assert int(term.count) == kept and 0 < kept < len(tokens)
    torch.testing.assert_close(term.sum.double(), torch.stack([v for _, v in order[:kept]]).sum(), rtol=1e-4, atol=1e-5)
    if select == "gap":
        other = sorted(tokens, key=lambda item: -float(item[1].detach()))
        assert [v for _, v in other[:kept]] != [v for _, v in order[:kept]], "the test says nothing: both agree"


def test_all_tokens_are_plain_distillation_and_random_ones_a_share_of_them(data):
    batch = data.train.batch(torch.arange(6))
    every = ready(data, share=1.0)
    tokens = by_hand(every, batch)
    term = every.selected(batch, Clock(0, 10))["kd"]
    assert int(term.count) == len(tokens)
    torch.testing.assert_close(term.sum.double(), torch.stack([v for _, v in tokens]).sum(), rtol=1e-4, atol=1e-5)
    random = ready(data, share=0.5, select="random")
    first, second = (random.selected(batch, Clock(step, 10))["kd"] for step in (0, 1))
    assert int(first.count) == int(second.count) == round(0.5 * len(tokens)) and first.sum != second.sum


def test_the_selection_takes_no_gradient(data):
    """The gradient is that of the loss over the kept tokens, held fixed."""
    method, batch = ready(data, share=0.3), data.train.batch(torch.arange(6))
    parameters = list(method.student.parameters())
    found = torch.autograd.grad(method.selected(batch, Clock(0, 10))["kd"].sum, parameters)
    tokens = sorted(by_hand(method, batch), key=lambda item: -item[0])
    kept = torch.stack([v for _, v in tokens[: round(0.3 * len(tokens))]]).sum()
    for a, b in zip(found, torch.autograd.grad(kept, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_only_masked_entries_are_ranked():
    values = torch.tensor([[9.0, 1.0, 2.0], [3.0, 8.0, 4.0]])
    mask = torch.tensor([[False, True, True], [True, False, True]])
    assert keep_largest(values, mask, 0.5).tolist() == [[False, False, False], [True, False, True]]
    assert keep_largest(values, mask, 0.01).sum() == 1
    assert not keep_largest(values, torch.zeros_like(mask), 0.5).any()


def test_a_share_that_is_none_is_refused(data):
    with pytest.raises(UserError, match=r"share must be in \(0, 1\], got 0"):
        ready(data, share=0.0)
