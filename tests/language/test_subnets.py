import itertools

import pytest
import torch

from limbeck.data.masked import masked_text
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.subnets import (
    Candidate,
    Relations,
    Space,
    Subnets,
    held_out_losses,
    marked,
    pareto,
    sizes_of,
    space_of,
)
from limbeck.language.supernet import Architecture, exported
from limbeck.metrics.efficiency import count_flops
from limbeck.models.encoder import encoder
from limbeck.models.forward import forward


@pytest.fixture(scope="module")
def data():
    return masked_text(corpus="grammar", characters=3000, context=12)


def network(data, seed, layers=4, heads=4, hidden=16):
    torch.manual_seed(seed)
    sizes = {"vocab_size": data.spec.vocab_size, "context": 12, "task": "masked_lm"}
    net = encoder(hidden=hidden, layers=layers, heads=heads, **sizes).eval()
    for layer in net.bert.encoder.layer:
        for part in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
            part.weight.data.mul_(20)  # fresh attention is nearly uniform
    return net


def teacher_of(data):
    return Teacher(network(data, 1, layers=3, heads=2, hidden=24), {"logits", "hidden_states"}, "teacher")


def padded(batch):
    """The batch with the last places of its first row padded."""
    mask = batch["attention_mask"].clone()
    mask[0, 7:] = 0
    return {**batch, "attention_mask": mask}


def test_a_space_is_all_combinations_each_once(data):
    net = network(data, 0)
    found = space_of(net, layers=[4, 2], heads=[3, 1], ratios=[1, 4.0, 1.5]).architectures
    told = itertools.product([2, 4], [1, 3], [1, 1.5, 4])
    assert found == [Architecture(tuple(range(n)), h, round(r * h * 4)) for n, h, r in told]
    assert len(space_of(net, ratios=[1.0, 1.01]).architectures) == 3 * 3, "two that are one count once"


def test_the_default_goes_from_half_of_the_network_up(data):
    found = space_of(network(data, 0)).architectures
    assert len(found) == 27
    assert found[0] == Architecture((0, 1), 2, 16) and found[-1] == Architecture((0, 1, 2, 3), 4, 64)


@pytest.mark.parametrize(
    ("choose", "count", "layers"),
    [
        ("first", 3, (0, 1, 2)),
        ("even", 1, (3,)),
        ("even", 2, (1, 3)),
        ("even", 3, (0, 1, 3)),
        ("even", 4, (0, 1, 2, 3)),
    ],
)
def test_which_layers_a_shallower_subnet_has(choose, count, layers):
    space = Space((count,), (1,), (1.0,), depth=4, width=4, choose=choose)
    assert [a.layers for a in space.architectures] == [layers]


def test_choices_that_the_network_does_not_have_are_refused(data):
    net = network(data, 0)
    for wrong in ({"layers": [5]}, {"heads": [5]}, {"ratios": [4.5]}):
        with pytest.raises(UserError, match="4 layers, 4 heads and 64 neurons"):
            space_of(net, **wrong)
    with pytest.raises(UserError, match="positive numbers"):
        space_of(net, heads=[0, 2])
    with pytest.raises(UserError, match="does not say its layers"):
        space_of(torch.nn.Linear(2, 2))


def test_subnets_give_the_last_layers_projections_of_the_exported_ones(data):
    net, batch = network(data, 0), padded(data.train.batch(torch.arange(3)))
    wanted = [Architecture((0, 2), 3, 20), Architecture((0, 1, 2, 3), 4, 64)]
    run = Subnets()
    for architecture, (q, k, v) in zip(wanted, run(net, wanted, batch), strict=True):
        plain = exported(net, architecture)
        states = forward(plain, batch, output_hidden_states=True).hidden_states[-2]
        own = plain.bert.encoder.layer[-1].attention.self
        for found, module in ((q, own.query), (k, own.key), (v, own.value)):
            torch.testing.assert_close(found, module(states), rtol=1e-4, atol=1e-5)
    assert "forward" not in vars(net), "the network's own forward is back"
    assert forward(net, batch).logits.shape == (3, 12, data.spec.vocab_size)


def brute_force(own, theirs, layers, batch, heads):
    """Sum over the real positions of all rows and of q, k, v of the KL of relations, in float64, and the positions."""
    kept = []
    for net, layer in ((own, -1), (theirs, layers)):
        states = forward(net, batch, output_hidden_states=True).hidden_states
        at = range(len(net.bert.encoder.layer))[layer]
        a = net.bert.encoder.layer[at].attention.self
        kept.append([m(states[at]).double() for m in (a.query, a.key, a.value)])
    total, count = 0.0, 0
    for row, n in enumerate(batch["attention_mask"].sum(1).tolist()):
        count += n
        for s, t in zip(*kept, strict=True):
            for h in range(heads):
                logs = []
                for x in (s, t):
                    d = x.shape[-1] // heads
                    part = x[row, :n, h * d : (h + 1) * d]
                    logs.append((part @ part.T / d**0.5).log_softmax(-1))
                total += float((logs[1].exp() * (logs[1] - logs[0])).sum()) / heads
    return total, count


@torch.no_grad()
def test_the_held_out_loss_is_the_mean_over_all_positions(data):
    """Of batches of unlike sizes with padding, against loops over exported subnets."""
    net, teacher = network(data, 0).train(), teacher_of(data)
    batches = [padded(data.val.batch(torch.arange(5))), data.val.batch(torch.arange(5, 7))]
    architectures = [Architecture((0,), 2, 10), Architecture((0, 1, 3), 4, 64)]
    found = held_out_losses(net, Relations(teacher, 1, heads=4), architectures, batches)
    assert net.training
    for architecture, value in zip(architectures, found, strict=True):
        sums = [brute_force(exported(net, architecture), teacher.module, 1, b, heads=4) for b in batches]
        assert value == pytest.approx(sum(s for s, _ in sums) / sum(n for _, n in sums), rel=1e-4)


def test_relation_heads_must_share_every_width(data):
    teacher = teacher_of(data)
    with pytest.raises(UserError, match="teacher's width 24"):
        Relations(teacher, heads=5)
    with pytest.raises(UserError, match="3 relation_heads do not share a subnet's width 8 evenly"):
        Relations(teacher, heads=3).check(space_of(network(data, 0)))
    Relations(teacher).check(space_of(network(data, 0)))


def test_sizes_are_those_of_the_exported_encoder(data):
    net, batch = network(data, 0), data.val.batch(torch.arange(4))
    architectures = [Architecture((0, 1), 2, 12), Architecture((0, 1, 2, 3), 4, 64)]
    row = data.val.batch(torch.arange(1))
    for architecture, (parameters, flops) in zip(architectures, sizes_of(net, architectures, batch), strict=True):
        plain = exported(net, architecture)
        assert parameters == sum(p.numel() for p in plain.parameters())
        assert flops == count_flops(lambda plain=plain: forward(plain, row)) > 0


def test_the_pareto_set_is_what_no_other_point_beats():
    points = torch.randint(0, 5, (60, 3), generator=torch.Generator().manual_seed(3))
    no_more = (points[:, None] <= points[None]).all(-1)
    less = (points[:, None] < points[None]).any(-1)
    wanted = ~(no_more & less).any(0)
    assert pareto(points.tolist()) == wanted.tolist()
    assert 0 < wanted.sum() < 60
    assert pareto([(1, 2), (1, 2)]) == [True, True] and pareto([]) == []


def test_candidates_are_marked_and_sorted():
    a = Architecture((0,), 1, 4)
    tried = [Candidate(a, 2.0, 10, 5), Candidate(a, 1.0, 20, 5), Candidate(a, 2.0, 20, 5), Candidate(a, 3.0, 9, 6)]
    found = marked(tried)
    assert [(c.loss, c.parameters, c.best) for c in found] == [
        (1.0, 20, True), (2.0, 10, True), (2.0, 20, False), (3.0, 9, True),
    ]  # fmt: skip
