import pytest
import torch

from limbeck.data.markov import markov
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.losses import forward_kl
from limbeck.language.methods.teacher_hacking import TeacherHacking
from limbeck.language.models.markov_oracle import markov_oracle
from limbeck.models.causal import causal_lm


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def data():
    return markov(train_size=40, test_size=10, symbols=5, context=12)


def ready(data, oracle=True, **arguments):
    method = TeacherHacking(new_tokens=8, prompt=3, **arguments)
    torch.manual_seed(0)
    student, teacher = (causal_lm(hidden=16, layers=1, heads=2, vocab_size=5, context=12) for _ in range(2))
    roles = {"teacher": Teacher(teacher, {"logits", "text"}, "teacher")}
    if oracle:
        roles["oracle"] = Teacher(markov_oracle(data=data), {"logits", "text"}, "oracle")
    method.setup(Parts(student, roles, data.spec, {"data": data}, {"data": data.train}, quiet=True))
    method.before_step(Clock(0, 10))
    return method


def test_proxy_and_golden_are_the_divergences_on_the_students_own_text(data):
    method = ready(data)
    batch = data.train.batch(torch.arange(2))
    found = method.health(batch, Clock(3, 10))
    prompts = data.test.batch(torch.arange(10))
    rows = method.written(method.student, prompts, Clock(0, 1), name="judged").batch
    kept = rows["labels"][:, 1:] >= 0
    q = torch.log_softmax(method.student(input_ids=rows["input_ids"]).logits[:, :-1], -1)[kept]
    p = torch.log_softmax(method.teacher.module(input_ids=rows["input_ids"]).logits[:, :-1], -1)[kept]
    states = data.extra["chain"].states(rows["input_ids"])[:, :-1][kept]
    mu = data.extra["chain"].table()[states]
    for name, law in (("proxy", p), ("golden", mu)):
        torch.testing.assert_close(found[name].sum / found[name].count, forward_kl(law, q).mean())
    later = method.health(data.train.batch(torch.arange(5)), Clock(8, 10))
    assert torch.equal(later["golden"].sum, found["golden"].sum)
    assert set(ready(data, oracle=False).health(batch, Clock(0, 1))) == {"proxy"}


def rows_of(method, batch, step):
    method.before_step(Clock(step, 10))
    return method.rows(batch)


def test_offline_rows_are_always_the_same_and_online_ones_new(data):
    batch = data.train.batch(torch.arange(8))
    for arguments, same, source in (
        ({}, True, "teacher"),
        ({"teacher_share": 1.0}, False, "teacher"),
        ({"student_share": 1.0}, False, "student"),
    ):
        method = ready(data, **arguments)
        first, later = (rows_of(method, batch, step) for step in (0, 5))
        assert first.source == source
        assert (first.batch["labels"].tolist() == later.batch["labels"].tolist()) is same


def test_several_responses_take_turns(data):
    method, batch = ready(data, per_prompt=3), data.train.batch(torch.arange(8))
    seen = {str(rows_of(method, batch, step).batch["labels"].tolist()) for step in range(6)}
    assert len(seen) > 1
    each = [str(method.responses.rows(batch, torch.full((8,), k)).batch["labels"].tolist()) for k in range(3)]
    assert len(set(each)) == 3


def test_fewer_prompts_come_round_more_often(data):
    method, batch = ready(data, prompt_share=0.1), data.train.batch(torch.arange(20, 40))
    prompts = {str(row[:3].tolist()) for row in rows_of(method, batch, 0).batch["input_ids"]}
    known = {str(row[:3].tolist()) for row in data.train.batch(torch.arange(4))["input_ids"]}
    assert prompts <= known


def test_shares_out_of_range_are_refused(data):
    with pytest.raises(UserError, match="prompt_share"):
        ready(data, prompt_share=0.0)
