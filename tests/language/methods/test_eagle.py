import pytest
import torch

from limbeck.data.text import text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.eagle import Eagle
from limbeck.language.speculative.models import eagle_draft
from limbeck.language.speculative.session import Session
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=2000, context=10)


def network(data):
    torch.manual_seed(1)
    made = causal_lm(architecture="llama", hidden=16, layers=3, heads=2, vocab_size=data.spec.vocab_size, context=10)
    for p in made.parameters():
        p.data.mul_(3.0 if p.dim() > 1 else 1.0)
    return made.eval()


def ready(data, student=None, **arguments):
    method = Eagle(**arguments)
    torch.manual_seed(2)
    student = student or eagle_draft(hidden=16, heads=2, fused=3 if arguments.get("version") == "eagle3" else 1)
    teacher = Teacher(network(data), {"logits", "hidden_states"}, "teacher")
    method.setup(Parts(student, {"teacher": teacher}, data.spec, streams={"data": data.train}))
    method.before_step(Clock(2, 10))
    return method


def terms(method, batch):
    (update,) = method.updates(batch, Clock(2, 10))
    return update.evaluate()


def test_the_feature_after_the_next_token_is_regressed_and_read_by_the_targets_output_layer(data):
    """The card's loss, place by place: SmoothL1(f', f) + 0.1 CE(softmax(head f), softmax(head f'))."""
    method, batch = ready(data, noise=0.0), data.train.batch(torch.arange(2))
    batch["labels"][0, :4] = -100
    found = terms(method, batch)
    target = method.teacher.module(input_ids=batch["input_ids"], output_hidden_states=True)
    f, emb = target.hidden_states[-1], method.teacher.module.get_input_embeddings()(batch["input_ids"])
    seen = method.student.join(torch.cat([f[:, :-1], emb[:, 1:]], -1))
    imagined = method.student.body(inputs_embeds=seen).last_hidden_state
    feature, token, count = 0.0, 0.0, 0
    for b in range(2):
        for t in range(8):
            if batch["labels"][b, t + 2] == -100:
                continue
            far = (imagined[b, t] - f[b, t + 1]).abs()
            feature += float(torch.where(far < 1, 0.5 * far**2, far - 0.5).mean())
            p = target.logits[b, t + 1].double().softmax(-1)
            log_q = method.teacher.module.get_output_embeddings()(imagined[b, t]).double().log_softmax(-1)
            token += float((p * (p.log() - log_q)).sum())
            count += 1
    for name, wanted in (("feature", feature), ("token", token)):
        assert int(found[name].count) == count == int(method.count(batch)["ahead_2"])
        assert float(found[name].sum.detach()) == pytest.approx(wanted, rel=1e-4)
    assert (found["feature"].weight, found["token"].weight) == (1.0, 0.1)


def test_noise_is_of_the_sample_and_as_wide_as_asked(data):
    batch = data.train.batch(torch.arange(2))
    method = ready(data, noise=0.1)
    seen = []
    method.student.join.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][..., :16]))
    terms(method, batch)
    terms(method, {k: v[1:] if isinstance(v, torch.Tensor) else v for k, v in batch.items()})
    f = method.teacher.module(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[-1][:, :-2]
    noise = seen[0] - f
    assert 0.09 < float(noise.abs().max()) <= 0.1 + 1e-5
    torch.testing.assert_close(seen[1], seen[0][1:])


def test_the_unrolled_draft_sees_in_training_what_it_sees_in_decoding(data):
    """At every place and step, the logits are those of a draft that decodes from the target's features."""
    method, batch = ready(data, version="eagle3", steps=3, decay=0.5), data.train.batch(torch.arange(2))
    found = terms(method, batch)
    assert [found[f"step_{j}"].weight for j in (1, 2, 3)] == [1.0, 0.5, 0.25]
    target = method.teacher.module(input_ids=batch["input_ids"], output_hidden_states=True)
    features = method.student.features(target.hidden_states)
    emb = method.teacher.module.get_input_embeddings()(batch["input_ids"])
    sums = [0.0, 0.0, 0.0]
    with torch.no_grad():
        for b in range(2):
            for s in range(8):
                session = Session(method.student.body)
                given = method.student.joined(features[b, : s + 1], emb[b, 1 : s + 2])
                for j in range(3):
                    if s + j >= 8:
                        break
                    imagined = session.read(inputs_embeds=given[None]).last_hidden_state[0, -1]
                    p = target.logits[b, s + j + 1].double().softmax(-1)
                    log_q = method.teacher.module.get_output_embeddings()(imagined).double().log_softmax(-1)
                    sums[j] += float((p * (p.log() - log_q)).sum())
                    if s + j + 2 < 10:
                        given = method.student.joined(imagined[None], emb[b, s + j + 2][None])
    for j in range(3):
        term = found[f"step_{j + 1}"]
        assert float(term.sum.detach()) == pytest.approx(sums[j], rel=1e-4)
        assert int(term.count) == 2 * (8 - j) == int(method.count(batch)[term.unit])


def test_without_features_the_draft_is_blind_to_them(data):
    blind = eagle_draft(hidden=16, heads=2, look="tokens")
    emb = torch.randn(1, 4, 16)
    assert torch.equal(*(blind(torch.randn(1, 4, 16), emb).last_hidden_state for _ in range(2)))


def test_what_does_not_fit_is_refused(data):
    with pytest.raises(UserError, match="the draft has hidden 8, its target 16"):
        ready(data, eagle_draft(hidden=8, heads=2))
    with pytest.raises(UserError, match="its draft has fused 1"):
        ready(data, eagle_draft(hidden=16, heads=2, fused=3))
    with pytest.raises(UserError, match="leave room in the rows, got 9"):
        ready(data, version="eagle3", steps=9)
    with pytest.raises(UserError, match="must be eagle_draft"):
        ready(data, network(data))
