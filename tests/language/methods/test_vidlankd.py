import pytest
import torch

from limbeck.data.scenes import scenes
from limbeck.data.text import text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.vidlankd import VidLanKD
from limbeck.models.encoder import encoder

CLOCK = Clock(2, 10, seed=5)
SIZES = {"train_size": 9, "test_size": 3, "things": 5}
ONE = {"mlm_weight": 0.0, "nst_weight": 0.0, "contrast_weight": 0.0}


@pytest.fixture(scope="module")
def data():
    return scenes(**SIZES)


def network(data, seed, hidden):
    torch.manual_seed(seed)
    sizes = {"vocab_size": data.spec.vocab_size, "context": data.spec.shape[0]}
    return encoder(hidden=hidden, layers=1, heads=2, task="masked_lm", data=data, **sizes).eval()


def ready(data, **arguments):
    method = VidLanKD(**arguments)
    teacher = Teacher(network(data, 1, 12), {"logits", "hidden_states"}, "teacher")
    method.setup(Parts(network(data, 0, 8), {"teacher": teacher}, data.spec, streams={"data": data.train}))
    return method


def batch_of(data):
    batch = data.train.batch(torch.arange(4))
    batch["attention_mask"][1, 6:] = 0
    batch["label"][1, 6:] = -100
    return batch


def states_of(method, batch):
    given = {k: batch[k] for k in ("input_ids", "attention_mask")}
    return [m(**given, output_hidden_states=True) for m in (method.student, method.teacher.module)]


def head(method, name, states):
    return method.learners["heads"].maps[name](states).detach().double()


def unit(vectors):
    return vectors / vectors.norm(dim=-1, keepdim=True)


def value(term):
    return float(term.sum.detach())


@pytest.mark.parametrize("degree", [2, 3])
def test_selectivity_is_matched_behind_a_head_and_without_padding(data, degree):
    method, batch = ready(data, **{**ONE, "nst_weight": 0.7}, degree=degree), batch_of(data)
    terms = method.terms(batch, CLOCK)
    student, teacher = (s.hidden_states[-1] for s in states_of(method, batch))
    total = 0.0
    for b in range(4):
        long = int(batch["attention_mask"][b].sum())
        s, t = (unit(x[b, :long].T) for x in (head(method, "nst", student), teacher.detach().double()))
        kernels = [float(((x @ y.T) ** degree).mean()) for x, y in ((s, s), (t, t), (s, t))]
        total += kernels[0] + kernels[1] - 2 * kernels[2]
    assert value(terms["nst"]) == pytest.approx(total, rel=1e-4)
    assert (list(terms), int(terms["nst"].count), terms["nst"].weight) == (["nst"], 4, 0.7)


@pytest.mark.parametrize("contrast", ["hinge", "xent"])
def test_the_contrast_within_the_batch_is_the_cards_formula(data, contrast):
    made = {**ONE, "contrast_weight": 3.0, "contrast": contrast, "margin": 0.8, "tau": 0.3}
    method, batch = ready(data, **made), batch_of(data)
    term = method.terms(batch, CLOCK)["contrast"]
    states = [s.hidden_states[-1] for s in states_of(method, batch)]
    student, teacher = (unit(head(method, side, x)) for side, x in zip(("student", "teacher"), states, strict=True))
    there, total = batch["attention_mask"].bool(), 0.0
    for i in range(4):
        for t in range(12):
            others = [j for j in range(4) if j != i and there[j, t]]
            if not there[i, t] or not others:
                continue
            s, g, own = student[i, t], teacher[i, t], student[i, t] @ teacher[i, t]
            if contrast == "hinge":
                away = [float((0.8 - own + s @ teacher[j, t]).clamp(min=0)) for j in others]
                back = [float((0.8 - own + student[j, t] @ g).clamp(min=0)) for j in others]
                total += (sum(away) + sum(back)) / len(others)
            else:
                for anchor in (s, g):
                    rest = [x[j, t] for x in (student, teacher) for j in others]
                    logits = torch.stack([own, *[anchor @ v for v in rest]]) / 0.3
                    total -= float(torch.log_softmax(logits, 0)[0]) / 2
    assert value(term) == pytest.approx(total, rel=1e-4)
    assert int(term.count) == int(there.sum()) == int(method.count(batch)[term.unit])
    assert term.weight == 3.0


MEMORY = {**ONE, "contrast_weight": 3.0, "contrast": "memory", "negatives": 6, "tau": 0.3, "momentum": 0.2}


def test_the_contrast_with_a_memory_is_the_cards_formula(data):
    method, batch = ready(data, **MEMORY), batch_of(data)
    banks = method.memory.banks.clone().double()
    term = method.terms(batch, CLOCK)["contrast"]
    there = batch["attention_mask"].bool()
    vectors = []
    for side, signals in zip(("student", "teacher"), states_of(method, batch), strict=True):
        means = torch.stack([x[kept].mean(0) for x, kept in zip(signals.hidden_states[-1], there, strict=True)])
        vectors.append(unit(head(method, side, means)))
    rows = method.memory.draw(batch["id"], CLOCK, 6)
    assert all(len(set(row.tolist())) > 1 and int(row[0]) == b for b, row in enumerate(rows))
    total = 0.0
    for side in (0, 1):
        e = torch.stack([torch.exp(banks[1 - side][rows[b]] @ vectors[side][b] / 0.3) for b in range(4)])
        g = e / (9 * e.mean())
        h = g / (g + 6 / 9)
        total -= float((h[:, 0].log() + (1 - h[:, 1:]).log().sum(1)).sum())
    assert value(term) == pytest.approx(total, rel=1e-4)
    assert (int(term.count), term.weight) == (4, 3.0)
    assert torch.equal(method.memory.banks.double(), banks)
    method.after_step(CLOCK)
    moved = unit(0.2 * banks[:, :4] + 0.8 * torch.stack(vectors))
    torch.testing.assert_close(method.memory.banks[:, :4].double(), moved, rtol=1e-4, atol=1e-5)
    assert torch.equal(method.memory.banks[:, 4:].double(), banks[:, 4:])


def test_the_state_holds_the_memory(data):
    batch, method, other = batch_of(data), ready(data, **MEMORY), ready(data, **MEMORY)
    method.terms(batch, CLOCK)
    method.after_step(CLOCK)
    for role, module in method.learners.items():
        other.learners[role].load_state_dict(module.state_dict())
    later = Clock(3, 10, seed=5)
    assert value(other.terms(batch, later)["contrast"]) != value(method.terms(batch, later)["contrast"])
    other.load_state_dict(method.state_dict())
    assert value(other.terms(batch, later)["contrast"]) == value(method.terms(batch, later)["contrast"])
    assert "banks" not in ready(data).state_dict()


def test_hidden_words_soft_labels_and_distances_are_the_cards_formulas(data):
    made = {**ONE, "mlm_weight": 0.5, "soft_weight": 2.0, "temperature": 1.5, "l2_weight": 0.3}
    method, batch = ready(data, **made), batch_of(data)
    terms = method.terms(batch, CLOCK)
    student, teacher = states_of(method, batch)
    hidden, there = batch["label"] != -100, batch["attention_mask"].bool()
    hard = -torch.log_softmax(student.logits.double(), -1)[hidden, batch["label"][hidden]].sum()
    q, p = (torch.log_softmax(s.logits[hidden].double() / 1.5, -1) for s in (student, teacher))
    soft = 1.5**2 * (p.exp() * (p - q)).sum()
    far = (head(method, "l2", student.hidden_states[-1]) - teacher.hidden_states[-1].double())[there]
    l2 = far.square().sum() / 12
    for name, wanted, count, weight in (
        ("mlm", hard, hidden.sum(), 0.5),
        ("soft", soft, hidden.sum(), 2.0),
        ("l2", l2, there.sum(), 0.3),
    ):
        assert value(terms[name]) == pytest.approx(float(wanted.detach()), rel=1e-4), name
        assert int(terms[name].count) == int(count) == int(method.count(batch)[terms[name].unit])
        assert terms[name].weight == weight
    assert list(terms) == ["mlm", "soft", "l2"]


@pytest.mark.parametrize("contrast", ["hinge", "xent", "memory"])
def test_what_stands_in_padding_does_not_matter(data, contrast):
    method, batch = ready(data, contrast=contrast, soft_weight=1.0, l2_weight=1.0), batch_of(data)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][1, 6:] = 7
    one, two = method.terms(batch, CLOCK), method.terms(other, CLOCK)
    assert set(one) == {"mlm", "nst", "contrast", "soft", "l2"}
    for name, term in one.items():
        torch.testing.assert_close(two[name].sum, term.sum, rtol=1e-4, atol=1e-5)


def test_student_and_heads_learn_and_the_teacher_does_not(data):
    method = ready(data, l2_weight=1.0)
    (update,) = method.updates(batch_of(data), CLOCK)
    assert update.roles == ("student", "heads")
    assert method.couples_samples
    sum(term.sum for term in update.evaluate().values()).backward()
    assert all(p.grad is not None for p in method.learners["heads"].parameters())
    assert all(p.grad is None for p in method.teacher.module.parameters())
    assert method.student.bert.embeddings.word_embeddings.weight.grad.any()
    plain = ready(data, **{**ONE, "soft_weight": 1.0})
    assert list(plain.learners) == ["student"]
    assert not plain.couples_samples


def test_what_cannot_be_learnt_so_is_refused():
    with pytest.raises(UserError, match="'vidlankd' fills in hidden words"):
        ready(text(corpus="grammar", characters=4000, context=24))
    with pytest.raises(UserError, match="a contrast with a memory needs more than one sample"):
        ready(scenes(**{**SIZES, "train_size": 1}), contrast="memory")
    for wrong in ({"margin": 0.0}, {"tau": 0.0}, {"temperature": 0.0}, {"degree": 0}, {"negatives": 0}):
        with pytest.raises(UserError, match="vidlankd: margin, tau, temperature, degree and negatives are above 0"):
            VidLanKD(**wrong)
    with pytest.raises(UserError, match=r"momentum in \[0, 1\]"):
        VidLanKD(momentum=1.1)
    for wrong in (ONE, {"nst_weight": -1.0}):
        with pytest.raises(UserError, match="no weight may be below 0, and one must be above"):
            VidLanKD(**wrong)
