import pytest
import torch

from limbeck.data.commands import commands
from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.alexa_teacher import AlexaTeacher, soft_cross_entropy
from limbeck.models.encoder import encoder
from limbeck.models.tagger import tagger


@pytest.fixture(scope="module")
def data():
    return commands(train_size=12, test_size=4, values=5)


@pytest.fixture(scope="module")
def text():
    return commands(part="mix", train_size=12, test_size=4, values=5, rate=0.4)


def student(data, hidden=16, layers=2):
    torch.manual_seed(0)
    sizes = {"hidden": hidden, "layers": layers, "heads": 2, "vocab_size": data.spec.vocab_size, "context": 20}
    return tagger(**sizes, classes=data.spec.classes, data=data).eval()


def language_model(data, hidden=16, layers=4):
    torch.manual_seed(1)
    sizes = {"hidden": hidden, "layers": layers, "heads": 2, "vocab_size": data.spec.vocab_size, "context": 20}
    made = encoder(**sizes, task="masked_lm", data=data).eval()
    made.cls.predictions.decoder.weight.data.mul_(20)
    return made


def ready(data, width=16, teacher=None, **arguments):
    method = AlexaTeacher(**arguments)
    teacher = language_model(data, width) if teacher is None else teacher
    method.setup(Parts(student(data), {"teacher": Teacher(teacher, {"logits", "hidden_states"}, "teacher")}, data.spec))
    return method


@pytest.mark.parametrize("width", [16, 24])
def test_the_loss_is_the_cards_formula(data, text, width):
    arguments = {"mlm_weight": 0.5, "soft_weight": 2.0, "temperature": 2.0, "hidden_weight": 0.3, "joint_weight": 0.7}
    method = ready(data, width, slot_weight=3.0, **arguments)
    assert set(method.learners) == ({"student"} if width == 16 else {"student", "projectors"})
    batch = {"commands": data.train.batch(torch.arange(4)), "text": text.train.batch(torch.arange(5))}
    terms = method.terms(batch)
    given = {k: batch["text"][k] for k in ("input_ids", "attention_mask")}
    own, theirs = (m(**given, output_hidden_states=True) for m in (method.student.encoder, method.teacher.module))
    sums = dict.fromkeys(("mlm", "soft", "hidden", "intent", "slots"), 0.0)
    for b in range(5):
        for t in range(int(given["attention_mask"][b].sum())):
            for n, (i, j) in enumerate(((1, 2), (2, 4))):
                h = own.hidden_states[i][b, t]
                h = h if width == 16 else method.learners["projectors"].maps[str(n)](h)
                sums["hidden"] += float((h - theirs.hidden_states[j][b, t]).square().mean().detach())
            if (label := int(batch["text"]["label"][b, t])) >= 0:
                logits = own.logits[b, t].double()
                sums["mlm"] -= float(logits.log_softmax(-1)[label].detach())
                p = (theirs.logits[b, t].double() / 2).softmax(-1)
                sums["soft"] -= 4 * float((p * (logits / 2).log_softmax(-1)).sum().detach())
    said = method.student(**{k: batch["commands"][k] for k in ("input_ids", "attention_mask")})
    for b in range(4):
        sums["intent"] -= float(said["logits"][b].double().log_softmax(-1)[batch["commands"]["label"][b]].detach())
        for t, mark in enumerate(batch["commands"]["slots"][b].tolist()):
            sums["slots"] -= (
                float(said["slot_logits"][b, t].double().log_softmax(-1)[mark].detach()) if mark >= 0 else 0.0
            )
    weights = {"mlm": 0.5, "soft": 2.0, "hidden": 0.3, "intent": 0.7, "slots": 2.1}
    assert {name: term.weight for name, term in terms.items()} == pytest.approx(weights)
    counts = method.count(batch)
    for name, term in terms.items():
        assert float(term.sum.detach()) == pytest.approx(sums[name], rel=1e-4), name
        assert int(term.count) == int(counts[term.unit]), name
    assert (int(terms["intent"].count), int(terms["slots"].count)) == (4, int((batch["commands"]["slots"] >= 0).sum()))


def test_soft_cross_entropy_is_the_divergence_and_the_teachers_entropy():
    q, p = torch.randn(2, 3, 5, dtype=torch.float64)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    kl, entropy = (log_p.exp() * (log_p - log_q)).sum(-1), -(log_p.exp() * log_p).sum(-1)
    assert torch.allclose(soft_cross_entropy(q, p), kl + entropy)


def test_a_phase_learns_from_the_streams_whose_weights_it_keeps(data, text):
    batch = {"commands": data.train.batch(torch.arange(4)), "text": text.train.batch(torch.arange(5))}
    assert set(ready(data, joint_weight=0.0).terms(batch)) == {"mlm", "soft"}
    assert set(ready(data, mlm_weight=0.0, soft_weight=0.0).terms(batch)) == {"intent", "slots"}
    assert set(ready(data).terms(batch["text"])) == {"mlm", "soft"}, "a single stream, too"


def test_padding_says_nothing(data, text):
    method = ready(data, hidden_weight=1.0)
    for source in (data.train, text.train):
        batch = source.batch(torch.arange(4))
        length = int(batch["attention_mask"].sum(1).max())
        short = {k: v[:, :length] if isinstance(v, torch.Tensor) and v.dim() == 2 else v for k, v in batch.items()}
        long, cut = method.terms(batch), method.terms(short)
        for name, term in long.items():
            assert torch.allclose(term.sum, cut[name].sum, rtol=1e-5), name


def test_the_second_stage_goes_on_from_the_first(data):
    first = language_model(data, 16, 2)
    method = ready(data, teacher=first, from_teacher=True)
    theirs = first.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in method.student.encoder.state_dict().items())


def test_what_cannot_be_is_refused(data, text):
    with pytest.raises(
        UserError, match=r"from_teacher needs a student of the teacher's shape.*\(16, 2, 2\) and \(24, 4, 2\)"
    ):
        ready(data, 24, from_teacher=True)
    with pytest.raises(UserError, match="temperature must be above 0, not 0"):
        AlexaTeacher(temperature=0)
    method = AlexaTeacher()
    teacher = Teacher(language_model(data), {"logits", "hidden_states"}, "teacher")
    method.setup(Parts(language_model(data, 16, 2), {"teacher": teacher}, data.spec))
    with pytest.raises(UserError, match="marks no slots"):
        method.terms(data.train.batch(torch.arange(3)))
