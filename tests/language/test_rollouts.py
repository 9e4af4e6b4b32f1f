import pytest
import torch

from limbeck.data.text import text
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.generate import Written
from limbeck.language.methods.gkd import GKD
from limbeck.language.rollouts import joined, prompts_of
from limbeck.models.causal import causal_lm


def network(data, seed):
    torch.manual_seed(seed)
    return causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=16, data=data)


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=4000, context=16)


def ready(data, **arguments):
    method = GKD(**arguments)
    teacher = Teacher(network(data, 1), {"logits"}, "teacher")
    method.setup(Parts(network(data, 0), {"teacher": teacher}, data.spec, streams={"data": data.train}))
    return method


def rows(*labels):
    labels = torch.tensor(labels)
    there = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    return {"input_ids": torch.arange(1, 13).view(2, 6) * there, "attention_mask": there, "labels": labels}


def test_a_prompt_is_what_stands_before_the_first_label():
    batch = rows([-100, -100, -100, 4, 5, 6], [-100, 8, -100, 10, -100, -100])
    tokens, mask = prompts_of(batch)
    assert [row[kept].tolist() for row, kept in zip(tokens, mask.bool(), strict=True)] == [[1, 2, 3], [7]]


def test_the_prompt_of_plain_text_is_its_beginning():
    batch = rows([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, -100, -100])
    tokens, mask = prompts_of(batch)
    assert [row[kept].tolist() for row, kept in zip(tokens, mask.bool(), strict=True)] == [[1, 2, 3], [7, 8]]
    tokens, mask = prompts_of(batch, prompt=5)
    assert mask.sum(1).tolist() == [5, 3]


def test_what_was_written_follows_its_prompt_and_is_labelled_with_its_log_probabilities():
    prompts, mask = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    written = Written(
        torch.tensor([[7, 8, 0], [9, 9, 9]]),
        torch.tensor([[1, 1, 0], [1, 1, 1]]).bool(),
        torch.tensor([[-0.5, -0.6, 0.0], [-0.1, -0.2, -0.3]]),
    )
    batch = {"id": torch.tensor([0, 1]), "view": 0, "labels": prompts, "input_ids": prompts, "attention_mask": mask}
    found = joined(prompts, mask, written, batch, context=10)
    assert found.batch["input_ids"].tolist() == [[1, 2, 3, 7, 8], [4, 9, 9, 9, 0]]
    assert found.batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert found.batch["labels"].tolist() == [[-100, -100, -100, 7, 8], [-100, 9, 9, 9, -100]]
    wanted = torch.tensor([[0.0, 0.0, 0.0, -0.5, -0.6], [0.0, -0.1, -0.2, -0.3, 0.0]])
    torch.testing.assert_close(found.logprobs, wanted)


def test_what_does_not_fit_into_the_context_is_left_out():
    prompts, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3).bool()
    written = Written(torch.tensor([[7, 8, 9]]), torch.ones(1, 3).bool(), torch.zeros(1, 3))
    batch = {"id": torch.tensor([0]), "view": 0, "labels": prompts, "input_ids": prompts, "attention_mask": mask}
    found = joined(prompts, mask, written, batch, context=5)
    assert found.batch["input_ids"].tolist() == [[1, 2, 3, 7, 8]]
    assert found.batch["labels"].tolist() == [[-100, -100, -100, 7, 8]]


def test_each_source_is_taken_as_often_as_asked(data):
    method = ready(data, student_share=0.5, teacher_share=0.3)
    drawn = [method.source(Clock(step, 1000, seed=3)) for step in range(1000)]
    shares = [drawn.count(name) / 1000 for name in ("student", "teacher", "data")]
    assert max(abs(a - b) for a, b in zip(shares, [0.5, 0.3, 0.2], strict=True)) < 0.05


@pytest.mark.parametrize(("share", "role"), [({"student_share": 1.0}, "student"), ({"teacher_share": 1.0}, "teacher")])
def test_rows_are_continued_by_the_one_whose_turn_it_is(data, share, role):
    method, batch = ready(data, **{"student_share": 0.0, **share}), data.train.batch(torch.arange(3))
    method.before_step(Clock(0, 10))
    found = method.rows(batch)
    assert found.source == role
    writer = method.student if role == "student" else method.teacher.module
    labels, tokens = found.batch["labels"][:, 1:], found.batch["input_ids"]
    log_q = torch.log_softmax(writer.eval()(input_ids=tokens).logits[:, :-1].double(), -1)
    own = log_q.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(
        found.logprobs[:, 1:][labels != -100].double(), own[labels != -100].detach(), rtol=1e-4, atol=1e-5
    )


def test_rows_are_written_once_a_step_and_anew_in_the_next(data):
    method, batch = ready(data, student_share=1.0), data.train.batch(torch.arange(3))
    method.before_step(Clock(0, 10))
    first = method.rows(batch)
    assert method.rows(batch) is first
    method.before_step(Clock(1, 10))
    assert not torch.equal(method.rows(batch).batch["input_ids"], first.batch["input_ids"])


def test_writing_leaves_the_students_mode_as_it_was(data):
    method, batch = ready(data, student_share=1.0), data.train.batch(torch.arange(3))
    method.student.train()
    method.rows(batch)
    assert all(m.training for m in method.student.modules())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"student_share": 0.8, "teacher_share": 0.3}, "at most 1 together"),
        ({"new_tokens": 0}, "new_tokens"),
        ({"prompt": 0}, "prompt must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(data, arguments, says):
    with pytest.raises(UserError, match=says):
        ready(data, **arguments)
