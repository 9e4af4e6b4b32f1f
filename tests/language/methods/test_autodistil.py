import pytest
import torch

from limbeck.data.masked import masked_text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.autodistil import AutoDistil
from limbeck.language.methods.minilm import MiniLM
from limbeck.language.subnets import Relations, held_out_losses
from limbeck.language.supernet import exported
from limbeck.models.encoder import encoder
from limbeck.training import start_student
from toolkit.benches import bench_of, trained


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


def ready(data, student=None, teacher=None, **arguments):
    method = AutoDistil(**arguments)
    above = Teacher(network(data, 1, **(teacher or {})), {"logits", "hidden_states"}, "teacher")
    method.setup(Parts(network(data, 0, **(student or {})), {"teacher": above}, data.spec))
    return method


def padded(data):
    batch = data.train.batch(torch.arange(4))
    mask = batch["attention_mask"].clone()
    mask[1, 8:] = 0
    return {**batch, "attention_mask": mask}


@pytest.mark.parametrize("arguments", [{}, {"teacher_layer": 1, "relation_heads": 2, "choose": "even"}])
@pytest.mark.parametrize("step", [0, 3])
def test_the_loss_of_a_sampled_subnet_is_minilms_of_the_exported_one(data, arguments, step):
    method, batch, clock = ready(data, from_teacher=False, **arguments), padded(data), Clock(step, 9, seed=5)
    (update,) = method.updates(batch, clock)
    terms = update.evaluate()
    (architecture,) = method.drawn(clock).values()
    assert architecture != method.space.architectures[-1]
    given = {k: v for k, v in arguments.items() if k != "choose"}
    minilm = MiniLM(**given)
    minilm.setup(Parts(exported(method.student, architecture), dict(method.teachers), data.spec))
    wanted = minilm.terms(batch)
    assert list(terms) == list(wanted) == ["queries", "keys", "values"]
    for name, term in wanted.items():
        torch.testing.assert_close(terms[name].sum, term.sum, rtol=1e-4, atol=1e-5)
        assert (int(terms[name].count), terms[name].weight) == (int(term.count), 1.0)
        assert int(method.count(batch)[terms[name].unit]) == int(batch["attention_mask"].sum())


def test_the_sandwich_is_the_mean_of_three_subnets(data):
    method, batch, clock = ready(data, from_teacher=False, sampling="sandwich"), padded(data), Clock(3, 9, seed=5)
    subnets = method.drawn(clock)
    known = method.space.architectures
    assert (subnets["_largest"], subnets["_smallest"]) == (known[-1], known[0])
    terms = method.subnet_terms(batch, subnets)
    assert len(terms) == 9
    for name, architecture in subnets.items():
        for part, term in method.subnet_terms(batch, {"": architecture}).items():
            torch.testing.assert_close(terms[part + name].sum, term.sum)
            assert terms[part + name].weight == pytest.approx(1 / 3)
    assert subnets[""] == ready(data, from_teacher=False).drawn(clock)[""], "the same draw as without it"


def test_only_the_sampled_part_takes_a_gradient(data):
    method = ready(data, from_teacher=False, layers=[2], heads=[2], ratios=[1.0])
    (update,) = method.updates(padded(data), Clock(0, 9))
    sum(term.sum for term in update.evaluate().values()).backward()
    layers = method.student.bert.encoder.layer
    inside, last = layers[0].intermediate.dense.weight.grad, layers[1].attention.self.query.weight.grad
    assert inside[:8, :8].abs().min() > 0 and inside[8:].abs().sum() == inside[:, 8:].abs().sum() == 0
    assert last[:8, :8].abs().min() > 0 and last[8:].abs().sum() == 0
    # No relation of the last layer's own sees what comes after its projections.
    assert layers[1].output.dense.weight.grad is None and layers[2].attention.self.query.weight.grad is None


def test_draws_belong_to_the_step_and_reach_every_subnet_alike(data):
    method = ready(data, layers=[1, 4], heads=[1, 4], ratios=[1.0])
    drawn = [method.drawn(Clock(step, 400, seed=1))[""] for step in range(400)]
    assert drawn == [method.drawn(Clock(step, 900, seed=1))[""] for step in range(400)]
    assert drawn != [method.drawn(Clock(step, 400, seed=2))[""] for step in range(400)]
    counts = [drawn.count(a) for a in method.space.architectures]
    assert len(counts) == 4 and min(counts) > 70, counts  # 100 each, four standard deviations are 35


def test_the_largest_subnet_begins_as_the_teacher(data):
    method = ready(data)
    theirs = method.teacher.module.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in method.student.state_dict().items())
    terms = method.subnet_terms(padded(data), {"": method.space.architectures[-1]})
    assert all(abs(float(term.sum.detach())) < 1e-4 for term in terms.values())
    shallow = ready(data, student={"layers": 2})
    own, above = shallow.student.bert.encoder.layer[1], shallow.teacher.module.bert.encoder.layer[2]
    assert torch.equal(own.output.dense.weight, above.output.dense.weight)


def test_what_does_not_fit_is_refused(data):
    with pytest.raises(UserError, match="8 wide and the teacher 16"):
        ready(data, student={"hidden": 8}, relation_heads=2)
    with pytest.raises(UserError, match="8 relation_heads do not share a subnet's width 12 evenly"):
        ready(data, relation_heads=8)
    with pytest.raises(UserError, match="no part of a super-network of 4 layers"):
        ready(data, layers=[6])
    with pytest.raises(UserError, match="5 layers cannot begin"):
        ready(data, student={"layers": 5})


def test_a_training_moves_every_subnet_towards_the_teacher(tmp_path):
    bench = bench_of("autodistil")
    recipe = bench.varied(method={"from_teacher": False}, train={"steps": 60, "optimizer": {"lr": 0.01}})
    run = trained(recipe, tmp_path, keep=False)
    space, teacher = run.loop.method.space, run.ingredients.teachers["teacher"]
    batches = [batch for (batch,) in run.loop.stream.batches(0, 2)]
    begun, learnt = start_student(recipe, run.ingredients, 0).module, run.loop.learners["student"].plain
    before, after = (held_out_losses(net, Relations(teacher), space.architectures, batches) for net in (begun, learnt))
    assert all(b < 0.9 * a for a, b in zip(before, after, strict=True)), (before, after)
