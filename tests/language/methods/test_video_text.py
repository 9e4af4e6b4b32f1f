import pytest
import torch

from limbeck.data.masked import masked_text
from limbeck.data.scenes import scenes
from limbeck.data.text import text
from limbeck.engine.method import Clock, Parts
from limbeck.errors import UserError
from limbeck.language.methods.video_text import VideoText
from limbeck.models.encoder import encoder

SIZES = {"train_size": 12, "test_size": 4, "things": 5}


@pytest.fixture(scope="module")
def data():
    return scenes(part="videos", **SIZES)


def ready(data, **arguments):
    torch.manual_seed(1)
    method = VideoText(**{"dim": 6, "width": 3, **arguments})
    sizes = {"vocab_size": data.spec.vocab_size, "context": data.spec.shape[0]}
    student = encoder(hidden=16, layers=1, heads=2, task="masked_lm", data=data, **sizes).eval()
    method.setup(Parts(student, {}, data.spec, streams={"data": data.train}))
    return method


def batch_of(data):
    batch = data.train.batch(torch.arange(4))
    batch["attention_mask"][1, 6:] = 0
    batch["label"][1, 6:] = -100
    return batch


def unit(vector):
    return vector.double() / vector.double().norm()


@pytest.mark.parametrize("level", ["token", "sentence"])
def test_the_loss_is_the_cards_formula(data, level):
    method, batch = ready(data, level=level, margin=0.3, mlm_weight=0.7, video_weight=2.0), batch_of(data)
    terms = method.terms(batch)
    signals = method.student(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
    )
    there, maps = batch["attention_mask"].bool(), method.learners["maps"].maps
    films = [unit(v.detach()) for v in maps["video"](batch["video"])]
    texts = []
    for b, states in enumerate(signals.hidden_states[-1]):
        rows = states if level == "token" else states[there[b]].mean(0, keepdim=True)
        texts.append([unit(v.detach()) for v in maps["text"](rows)])
    total, count = 0.0, 0
    for i in range(4):
        for t in range(len(texts[i])):
            if level == "token" and not there[i, t]:
                continue
            count += 1
            own = texts[i][t] @ films[i]
            away = [max(0.0, 0.3 - float(own - texts[i][t] @ films[j])) for j in range(4) if j != i]
            back = [
                max(0.0, 0.3 - float(own - texts[j][t] @ films[i]))
                for j in range(4)
                if j != i and (level == "sentence" or there[j, t])
            ]
            total += sum(sum(side) / len(side) for side in (away, back) if side)
    assert float(terms["video"].sum.detach()) == pytest.approx(total, rel=1e-4)
    assert int(terms["video"].count) == count == int(method.count(batch)[terms["video"].unit])
    hidden = batch["label"] != -100
    mlm = -torch.log_softmax(signals.logits.double(), -1)[hidden, batch["label"][hidden]].sum()
    assert float(terms["mlm"].sum.detach()) == pytest.approx(float(mlm.detach()), rel=1e-5)
    assert int(terms["mlm"].count) == int(hidden.sum())
    assert (terms["mlm"].weight, terms["video"].weight) == (0.7, 2.0)


@pytest.mark.parametrize("level", ["token", "sentence"])
def test_what_stands_in_padding_does_not_matter(data, level):
    method, batch = ready(data, level=level), batch_of(data)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][1, 6:] = 7
    for name, term in method.terms(batch).items():
        torch.testing.assert_close(method.terms(other)[name].sum, term.sum, rtol=1e-4, atol=1e-5)


def test_encoder_and_maps_learn_and_the_student_stays_plain(data):
    method = ready(data)
    (update,) = method.updates(batch_of(data), Clock(0, 10))
    assert update.roles == ("student", "maps")
    method.terms(batch_of(data))["video"].sum.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.learners["maps"].parameters())
    assert type(method.student).__name__ == "BertForMaskedLM"
    assert not any("maps" in name for name in method.student.state_dict())
    assert method.couples_samples


def test_a_weight_of_zero_leaves_its_term_out(data):
    blind = ready(scenes(**SIZES), video_weight=0.0)
    assert list(blind.learners) == ["student"]
    assert not blind.couples_samples
    assert list(blind.terms(scenes(**SIZES).train.batch(torch.arange(4)))) == ["mlm"]
    assert list(ready(data, mlm_weight=0.0).terms(batch_of(data))) == ["video"]


def test_what_cannot_be_learnt_so_is_refused():
    with pytest.raises(UserError, match="the data has no films: take data 'scenes' with part: videos"):
        ready(masked_text(corpus="grammar", characters=4000, context=24))
    with pytest.raises(UserError, match="'video_text' fills in hidden words"):
        ready(text(corpus="grammar", characters=4000, context=24))
    for wrong in ({"margin": 0.0}, {"video_weight": -1.0}, {"mlm_weight": 0.0, "video_weight": 0.0}, {"dim": 0}):
        with pytest.raises(UserError, match="video_text: margin, dim, width and one weight must be above 0"):
            VideoText(**wrong)
