import pytest
import torch
from torch import nn

from limbeck.data.labelled import labelled_text
from limbeck.data.masked import masked_text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.initialise import copy_around
from limbeck.language.methods.mobilebert import MobileBERT, decomposed_mse
from limbeck.models.mobilebert import mobilebert
from toolkit.benches import bench_of, trained


@pytest.fixture(scope="module")
def data():
    return labelled_text(corpus="topics", train_size=12, test_size=4, context=14)


def network(data, seed, **sizes):
    torch.manual_seed(seed)
    given = {"hidden": 16, "layers": 3, "heads": 2, "bottleneck": 8, "stacked": 2, **sizes}
    net = mobilebert(**given, vocab_size=data.spec.vocab_size, context=14, classes=data.spec.classes, data=data).eval()
    for block in net.mobilebert.encoder.layer:
        block.attention.self.query.weight.data.mul_(30)  # fresh attention is nearly uniform
        block.attention.self.key.weight.data.mul_(30)
    return net


def ready(data, student=None, **arguments):
    method = MobileBERT(**arguments)
    wide = network(data, 1, bottleneck=24, stacked=1, norm="layer_norm", activation="gelu")
    teacher = Teacher(wide, {"logits", "hidden_states"}, "teacher")
    method.setup(Parts(network(data, 0, **(student or {})), {"teacher": teacher}, data.spec))
    return method


def maps(net, batch):
    """Hidden states, and attention maps [B, 2, T, T] of every layer as transformers gives them."""
    net.set_attn_implementation("eager")
    given = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    out = net(**given, output_hidden_states=True, output_attentions=True)
    return [h.double() for h in out.hidden_states], [a.double() for a in out.attentions]


@pytest.mark.parametrize(("schedule", "step", "due"), [("progressive", 5, [1]), ("joint", 5, [0, 1, 2])])
def test_the_transfer_is_the_cards_formula(data, schedule, step, due):
    method, batch = ready(data, schedule=schedule, attention_weight=2.0), data.train.batch(torch.arange(5))
    (update,) = method.updates(batch, Clock(step, 9))
    terms = update.evaluate()
    (s, a), (t, b) = maps(method.student, batch), maps(method.teacher.module, batch)
    states = attention = 0.0
    for r in range(5):
        n = int(batch["attention_mask"][r].sum())
        for block in due:
            states += float((s[block + 1][r, :n] - t[block + 1][r, :n]).square().sum().detach()) / 16
            own, theirs = a[block][r, :, :n, :n], b[block][r, :, :n, :n]
            attention += float((theirs * (theirs / own).log()).sum().detach()) / 2
    for name, value, weight in (("states", states, 1.0), ("attention", attention, 2.0)):
        assert float(terms[name].sum.detach()) == pytest.approx(value, rel=1e-3)
        assert terms[name].weight == weight
        assert int(terms[name].count) == int(batch["attention_mask"].sum()) == int(method.count(batch)["positions"])


@pytest.mark.parametrize(("step", "block"), [(0, 0), (3, 0), (4, 1), (11, 2)])
def test_only_the_block_whose_time_it_is_takes_a_gradient(data, step, block):
    method = ready(data)
    (update,) = method.updates(data.train.batch(torch.arange(4)), Clock(step, 12))
    sum(term.sum for term in update.evaluate().values()).backward()
    moving = {name for name, p in method.student.named_parameters() if p.grad is not None}
    assert moving and all(f"encoder.layer.{block}." in name for name in moving)
    assert all(p.requires_grad for p in method.student.parameters())
    assert method.pace(Clock(step, 12)) == pytest.approx(step % 4 / 4)


def test_in_a_training_each_block_moves_in_its_time_alone(tmp_path):
    seen = []

    def watch(loop):
        def after_step(clock):
            student = loop.learners["student"].plain
            seen.append({name: value.clone() for name, value in student.state_dict().items()})

        loop.method.after_step = after_step

    run = trained(bench_of("mobilebert").recipe, tmp_path, watch=watch, keep=False)
    count = len(seen)
    assert count == 6 and len(run.loop.method.blocks) == 2
    for name, last in seen[-1].items():
        first, half, block = seen[0][name], seen[count // 2 - 1][name], name.split("encoder.layer.")[-1][0]
        assert torch.equal(half, last) == (block != "1") or "position_ids" in name, name
        assert block == "0" or torch.equal(first, half), name


def test_jointly_all_blocks_learn_and_what_is_around_them_does_not(data):
    method = ready(data, schedule="joint")
    (update,) = method.updates(data.train.batch(torch.arange(4)), Clock(3, 12))
    sum(term.sum for term in update.evaluate().values()).backward()
    named = dict(method.student.named_parameters())
    moving = {name.split("encoder.layer.")[-1][0] for name, p in named.items() if p.grad is not None}
    assert moving == {"0", "1", "2"}
    assert named["mobilebert.embeddings.word_embeddings.weight"].grad is None
    assert method.pace(Clock(3, 12)) == 0.25


def test_distillation_is_the_cards_formula_on_hidden_tokens():
    rows = masked_text(corpus="grammar", characters=3000, context=14)
    method, batch = ready(rows, stage="distil", alpha=0.3), rows.train.batch(torch.arange(4))
    (update,) = method.updates(batch, Clock(0, 1))
    terms, hidden = update.evaluate(), batch["label"] != -100
    given = {k: batch[k] for k in ("input_ids", "attention_mask")}
    s, t = (net(**given).logits.double().log_softmax(-1) for net in (method.student, method.teacher.module))
    ce = -s[hidden].gather(1, batch["label"][hidden][:, None]).sum()
    kd = (t.exp() * (t - s)).sum(-1)[hidden].sum()
    for name, value, weight in (("ce", ce, 0.3), ("kd", kd, 0.7)):
        assert float(terms[name].sum.detach()) == pytest.approx(float(value.detach()), rel=1e-4)
        assert (int(terms[name].count), terms[name].weight) == (int(hidden.sum()), pytest.approx(weight))


def test_texts_with_a_class_are_distilled_as_well(data):
    terms = ready(data, stage="distil").distil(data.train.batch(torch.arange(4)))
    assert {name: int(term.count) for name, term in terms.items()} == {"ce": 4, "kd": 4}


@pytest.mark.parametrize("states", ["plain", "decomposed"])
def test_padding_and_the_cut_do_not_matter(data, states):
    method, batch = ready(data, states=states), data.train.batch(torch.arange(4))
    # One token of padding is read by the embedding's window of three; what comes after it is not seen at all.
    far = batch["attention_mask"].roll(1, 1).bool() | batch["attention_mask"].bool()
    filled = {**batch, "input_ids": torch.where(far, batch["input_ids"], 7)}
    halves = [method.transfer({k: v[i : i + 2] for k, v in batch.items() if k != "view"}, [0, 2]) for i in (0, 2)]
    for name, term in method.transfer(batch, [0, 2]).items():
        torch.testing.assert_close(method.transfer(filled, [0, 2])[name].sum, term.sum, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(halves[0][name].sum + halves[1][name].sum, term.sum, rtol=1e-4, atol=1e-5)


def test_decomposed_states_are_normalised_beside_their_statistics():
    s, t = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    own, theirs = s[1, 2], t[1, 2]
    (m, v), (n, w) = ((x.mean(), ((x - x.mean()) ** 2).mean()) for x in (own, theirs))
    apart = ((own - m) / (v + 1e-5).sqrt() - (theirs - n) / (w + 1e-5).sqrt()).square().mean()
    torch.testing.assert_close(decomposed_mse(s, t)[1, 2], apart + (m - n).abs() + (v - w).abs())


def test_the_student_begins_with_what_is_around_the_teachers_blocks(data):
    method = ready(data)
    theirs = method.teacher.module.state_dict()
    for name, value in method.student.state_dict().items():
        if "encoder.layer" not in name:
            assert torch.equal(value, theirs[name]), name
    plain = ready(data, from_teacher=False).student.mobilebert.embeddings.word_embeddings.weight
    assert not torch.equal(plain, theirs["mobilebert.embeddings.word_embeddings.weight"])


def test_what_does_not_fit_is_refused(data):
    with pytest.raises(UserError, match="student are 16, 2, 2, of the teacher 16, 3, 2"):
        ready(data, {"layers": 2})
    with pytest.raises(UserError, match="no embedding or head"):
        copy_around(nn.Linear(2, 3), nn.Linear(3, 3, bias=False))
