"""Structure-free graph condensation: its loss and gradients in float64, what it starts from, and what it delivers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from limbeck.condensation.graphs.nodes import Structure, SyntheticNodes
from limbeck.condensation.methods.sfgc import SFGC
from limbeck.data.graph_nodes import graph_nodes
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError

SMALL = {"hidden": 5, "experts": 2, "expert_states": 4, "every": 2, "ahead": 2, "starts": 2, "steps": 3}


@pytest.fixture
def nodes():
    return graph_nodes(nodes=90, classes=3, per_class=6, val_size=30, test_size=20, words=6, degree=5.0, clarity=0.6)


def ready(data, edges=False, held_out=True, **args) -> SFGC:
    torch.manual_seed(5)
    labels = torch.arange(3).repeat_interleave(2)
    student = SyntheticNodes(torch.rand(6, 18), labels, Structure(18, 8) if edges else None)
    method = SFGC(**{**SMALL, "keep": None, **args})
    streams = {"held_out": {"data": data.val}} if held_out else {}
    method.setup(Parts(student, data=data.spec, streams={"data": data.train}, quiet=True, **streams))
    return method


def loss(method: SFGC, clock: Clock) -> torch.Tensor:
    (update,) = method.updates({"id": torch.arange(1), "view": 0}, clock)
    (term,) = update.evaluate().values()
    assert (update.roles, term.count, term.weight) == (("student", "rate"), 1, 1.0)
    return term.sum


@pytest.mark.parametrize("checkpoint", [True, False])
def test_loss_and_gradients_are_the_papers_in_float64(nodes, checkpoint):
    method = ready(nodes, checkpoint=checkpoint, inner_lr=0.3)
    clock = Clock(1, 10, seed=3)
    found = loss(method, clock)
    found.backward()
    expert, state = method.segment(clock)
    begin, target = (w.double() for w in method.expert_weights(clock, expert, [state, state + 2], torch.device("cpu")))
    features = method.nodes.features.detach().double().requires_grad_()
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    w, sizes = begin.clone().requires_grad_(), [18 * 5, 5, 5 * 3, 3]
    for _ in range(3):
        first, bias, second, offset = w.split(sizes)
        hidden = (features @ first.view(5, 18).T + bias).relu()
        logits = hidden @ second.view(3, 5).T + offset
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, method.nodes.labels), w, create_graph=True)
        w = w - rate * slope
    wanted = (w - target).square().sum() / (begin - target).square().sum()
    by_features, by_rate = torch.autograd.grad(wanted, (features, rate))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert torch.allclose(method.nodes.features.grad.double(), by_features, rtol=1e-3, atol=1e-6)
    assert float(method.learners["rate"].raw.grad) == pytest.approx(float(by_rate), rel=1e-3)


def test_segments_start_at_kept_states_up_to_the_latest(nodes):
    method = ready(nodes)
    drawn = {method.segment(Clock(step, 100)) for step in range(60)}
    assert drawn == {(expert, state) for expert in (0, 1) for state in (0, 1, 2)}


def test_the_best_score_is_delivered(nodes):
    method = ready(nodes, score_every=2)
    scores = {}
    for step in range(6):
        torch.manual_seed(step)
        with torch.no_grad():
            method.nodes.features.copy_(torch.rand(6, 18))
        if step % 2:
            scores[method.score(method.nodes.features, method.nodes.labels)] = method.nodes.features.detach().clone()
        method.after_step(Clock(step, 6))
    assert len(scores) == 3
    assert torch.equal(method.nodes.features, scores[min(scores)])


def test_without_scores_the_last_nodes_are_delivered(nodes):
    method = ready(nodes, score_every=0, held_out=False)
    before = method.nodes.features.detach().clone()
    method.after_step(Clock(9, 10))
    assert torch.equal(method.nodes.features, before)
    assert method.state_dict() == {}


def test_a_resumed_run_remembers_the_best(nodes):
    one, other = ready(nodes), ready(nodes)
    one.after_step(Clock(0, 10))
    best = one.nodes.features.detach().clone()
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        other.nodes.features.zero_()
    other.after_step(Clock(9, 10))
    assert torch.equal(other.nodes.features, best)


def test_what_cannot_be_is_refused(nodes):
    with pytest.raises(UserError, match="of 4 states none is 2 after the one with number 3"):
        SFGC(**{**SMALL, "starts": 3})
    with pytest.raises(UserError, match="of 4 states none is 5 after the one with number 0"):
        SFGC(**{**SMALL, "starts": None, "ahead": 5})
    with pytest.raises(UserError, match="inner_lr above 0"):
        SFGC(**SMALL, inner_lr=0.0)
    with pytest.raises(UserError, match="structure: none"):
        ready(nodes, edges=True)
    with pytest.raises(UserError, match="score_every: 0"):
        ready(nodes, held_out=False)
