import pytest
import torch

from limbeck.data.labelled import labelled_text
from limbeck.data.masked import masked_text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.information import interpolated_bound
from limbeck.language.methods.distiller import Distiller, distance
from limbeck.language.mixup import partners
from limbeck.models.encoder import encoder

CLOCK = Clock(step=3, total=10, seed=5)


@pytest.fixture(scope="module")
def data():
    return labelled_text(corpus="topics", train_size=12, test_size=4, context=20)


def network(data, seed, layers, hidden=16):
    torch.manual_seed(seed)
    sizes = {"vocab_size": data.spec.vocab_size, "context": 20, "classes": 4}
    return encoder(hidden=hidden, layers=layers, heads=2, data=data, **sizes).eval()


def ready(data, width=16, **arguments):
    method = Distiller(**arguments)
    sure = network(data, 1, 4)
    sure.classifier.weight.data.mul_(100)
    teacher = Teacher(sure, {"logits", "hidden_states"}, "teacher")
    method.setup(Parts(network(data, 0, 2, width), {"teacher": teacher}, data.spec))
    return method


def outputs(method, batch):
    given = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    return [m(**given, output_hidden_states=True) for m in (method.student, method.teacher.module)]


def by_hand(kind, h, g, heat):
    """The distance of one position's states in float64."""
    if kind == "mse":
        return float((h - g).square().mean())
    if kind == "cosine":
        return 1 - float(h @ g / h.norm() / g.norm())
    q, p = torch.softmax(h / heat, 0), torch.softmax(g / heat, 0)
    return heat**2 * float((p * (p.log() - q.log())).sum())


@pytest.mark.parametrize("internal", ["mse", "cosine", "ce"])
@pytest.mark.parametrize("width", [16, 8])
def test_the_loss_is_the_cards_formula(data, internal, width):
    arguments = {"ce_weight": 0.5, "kd_weight": 2.0, "temperature": 3.0, "internal_weight": 0.7}
    method, batch = ready(data, width, internal=internal, **arguments), data.train.batch(torch.arange(5))
    assert set(method.learners) == ({"student"} if width == 16 else {"student", "projectors"})
    terms = method.terms(batch)
    student, teacher = outputs(method, batch)
    ce, kd, inner = 0.0, 0.0, 0.0
    for b in range(5):
        q, p = (torch.softmax(x.logits[b].double() / 3, -1) for x in (student, teacher))
        kd += 9 * float((p * (p.log() - q.log())).sum().detach())
        ce -= float(torch.log_softmax(student.logits[b].double(), -1)[batch["label"][b]].detach())
        for n, (i, j) in enumerate(((1, 2), (2, 4))):
            h = student.hidden_states[i][b]
            h = h if width == 16 else method.learners["projectors"].maps[str(n)](h)
            for t in range(int(batch["attention_mask"][b].sum())):
                inner += by_hand(internal, h[t].double(), teacher.hidden_states[j][b, t].double(), 3.0)
    for name, value, weight, count in (
        ("ce", ce, 0.5, 5), ("kd", kd, 2.0, 5), ("internal", inner, 0.7, int(batch["attention_mask"].sum()))
    ):  # fmt: skip
        assert float(terms[name].sum.detach()) == pytest.approx(value, rel=1e-4)
        assert (int(terms[name].count), terms[name].weight) == (count, weight)


def test_pkd_is_that_of_the_first_token(data):
    h, g = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    found = distance("pkd", h, g)
    for b in range(3):
        apart = h[b, 0] / h[b, 0].norm() - g[b, 0] / g[b, 0].norm()
        assert float(found[b]) == pytest.approx(float(apart.square().sum()))
    term = ready(data, internal="pkd").terms(data.train.batch(torch.arange(5)))["internal"]
    assert (term.count, term.unit) == (5, "samples")


@pytest.mark.parametrize(("layers", "pairs"), [("skip", [(1, 2), (2, 4)]), ("emb_last", [(0, 0), (2, 4)])])
def test_mutual_information_is_minus_the_bound_of_the_mean_states(data, layers, pairs):
    method = ready(data, 8, internal="mi", alpha=0.3, baseline="learned", layers=layers, critic_width=12)
    batch = data.train.batch(torch.arange(6))
    student, teacher = outputs(method, batch)
    expected = 0.0
    for (i, j), critic in zip(pairs, method.learners["critics"].critics, strict=True):
        means = [
            torch.stack([h[b, : int(batch["attention_mask"][b].sum())].mean(0) for b in range(6)])
            for h in (student.hidden_states[i], teacher.hidden_states[j])
        ]
        expected -= interpolated_bound(*critic(*means), 0.3)
    term = method.terms(batch)["internal"]
    assert float(term.sum.detach()) == pytest.approx(float(expected.sum()), rel=1e-5)
    assert method.couples_samples and not ready(data, internal="mse").couples_samples
    term.sum.backward()
    assert all(p.grad is not None for p in method.learners["critics"].parameters()), "the critic learns"
    assert all(p.grad is None for p in method.teacher.module.parameters())


def test_padding_says_nothing(data):
    for internal in ("mse", "mi"):
        method, batch = ready(data, internal=internal), data.train.batch(torch.arange(5))
        length = int(batch["attention_mask"].sum(1).max())
        short = {**batch, **{k: batch[k][:, :length] for k in ("input_ids", "attention_mask", "token_type_ids")}}
        long, cut = method.terms(batch), method.terms(short)
        for name in long:
            assert torch.allclose(long[name].sum, cut[name].sum, rtol=1e-5)
            assert int(long[name].count) == int(cut[name].count)


def test_mixed_texts_are_averages_of_embeddings_and_of_labels(data):
    method, batch = ready(data, internal="mse", mixup=0.5), data.train.batch(torch.arange(5))
    mixture = method.mixture(batch, CLOCK)
    share, other = mixture["share"], mixture["other"]
    assert ((share > 0.5) & (share <= 1)).all() and not (other["input_ids"] == batch["input_ids"]).all(1).any()
    terms = method.terms(mixture)
    logits = []
    for module in (method.student, method.teacher.module):
        embed = module.get_input_embeddings()
        vectors = share[:, None, None] * embed(batch["input_ids"]) + (1 - share)[:, None, None] * embed(
            other["input_ids"]
        )
        mask = batch["attention_mask"] | other["attention_mask"]
        logits.append(module(inputs_embeds=vectors, attention_mask=mask, token_type_ids=batch["token_type_ids"]).logits)
    logs = torch.log_softmax(logits[0].double(), 1)
    ce = -sum(share[b] * logs[b, batch["label"][b]] + (1 - share[b]) * logs[b, other["label"][b]] for b in range(5))
    assert float(terms["ce"].sum.detach()) == pytest.approx(float(ce), rel=1e-5)
    q, p = (torch.softmax(x.double() / 2, 1) for x in logits)
    assert float(terms["kd"].sum.detach()) == pytest.approx(4 * float((p * (p / q).log()).sum()), rel=1e-4)
    after = method.student(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
    assert torch.equal(after, outputs(method, batch)[0].logits), "and only within the step"


def test_partners_do_not_depend_on_the_order_of_the_batch(data):
    rows = torch.arange(8)
    turned = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    one, two = (partners(data.train.batch(r), CLOCK)["input_ids"] for r in (rows, turned))
    assert torch.equal(one[turned], two)
    later = Clock(step=4, total=10, seed=5)
    assert not torch.equal(partners(data.train.batch(rows), later)["input_ids"], one)


def test_what_cannot_be_is_refused(data):
    with pytest.raises(UserError, match=r"alpha and mixup must be in \[0, 1\], not 1.5 and 0"):
        Distiller(alpha=1.5)
    hidden = masked_text(corpus="grammar", characters=2000, context=20)
    method = Distiller()
    teacher = Teacher(network(data, 1, 2), {"logits", "hidden_states"}, "teacher")
    with pytest.raises(UserError, match="teaches classes of texts"):
        method.setup(Parts(network(data, 0, 2), {"teacher": teacher}, hidden.spec))
