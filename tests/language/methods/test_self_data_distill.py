import pytest
import torch

from limbeck.data.arithmetic import arithmetic
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.self_data_distill import SelfDataDistill
from limbeck.models.causal import causal_lm


@pytest.fixture(scope="module")
def data():
    return arithmetic(train_size=12, test_size=4, working=False, context=20)


class Parrot(torch.nn.Module):
    """Continues what it is given by a text, whatever it says; notes what it was given."""

    def __init__(self, words, says):
        super().__init__()
        self.words, self.says, self.heard = words, says, []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask=None):
        logits = torch.full((*input_ids.shape, len(self.words)), -9.0)
        for i, (row, there) in enumerate(zip(input_ids, attention_mask.bool(), strict=True)):
            text = self.words.decode(row[there])
            asked = next((k for k in self.says if text.startswith(k)), None)
            done = text[len(asked) :] if asked is not None else ""
            if asked is None:
                self.heard.append(text)
            answer = self.says.get(asked, "")
            following = self.words.eos_token_id
            if len(done) < len(answer):
                following = self.words.convert_tokens_to_ids(answer[len(done)])
            logits[i, :, following] = 9.0
        return logits


def ready(data, says, **arguments):
    torch.manual_seed(0)
    words = data.extra["tokenizer"]
    student = causal_lm(architecture="llama", hidden=16, layers=1, heads=2, vocab_size=len(words), context=20)
    teacher = Teacher(Parrot(words, says), {"logits"}, "teacher")
    method = SelfDataDistill(**{"template": "{prompt}{answer} {prompt}", **arguments})
    method.setup(Parts(student, {"teacher": teacher}, data.spec, streams={"data": data.train}))
    return method


def pairs(data, rows):
    """Prompt and answer of each row, as text."""
    words, batch = data.extra["tokenizer"], data.train.batch(torch.arange(rows))
    found = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        kept = labels != -100
        start = int(kept.nonzero()[0])
        found.append((words.decode(ids[:start]), words.decode(labels[kept], skip_special_tokens=True)))
    return batch, found


def read(data, rows):
    words = data.extra["tokenizer"]
    return [words.decode(labels[labels != -100], skip_special_tokens=True) for labels in rows["labels"]]


def asked(prompt, answer):
    return f"{prompt}{answer} {prompt}"


def test_an_answer_that_agrees_is_learnt_as_it_was_put_and_the_reference_elsewhere(data):
    batch, given = pairs(data, 3)
    (p0, a0), (p1, a1), (p2, a2) = given
    says = {
        asked(p0, a0): f"1+1=2 ={a0}",  # another way to the same number
        asked(p1, a1): f"={int(a1) + 1}",  # a wrong number
        asked(p2, a2): f"0+0=0 0+0=0 0+0=0 ={a2}",  # the right one, but there is no room for it
    }
    method = ready(data, says)
    rows = method.rows(batch)
    assert read(data, rows) == [f"1+1=2 ={a0}", a1, a2]
    assert method.teacher.module.heard == []
    words = data.extra["tokenizer"]
    for i, (prompt, _) in enumerate(given):
        ids, there = rows["input_ids"][i], rows["attention_mask"][i].bool()
        assert words.decode(ids[there], skip_special_tokens=True) == prompt + read(data, rows)[i]
        assert ids[there][-1] == words.eos_token_id and rows["labels"][i][there][-1] == words.eos_token_id
        assert (rows["labels"][i][: len(prompt)] == -100).all()
    found = method.health(batch, Clock(0, 1))["rewritten"]
    assert (float(found.sum), int(found.count)) == (1.0, 3)


@pytest.mark.parametrize(("agree", "kept"), [("number", False), ("text", False), ("any", True)])
def test_what_counts_as_agreement(data, agree, kept):
    batch, ((prompt, answer), *_) = pairs(data, 1)
    wrong = ready(data, {asked(prompt, answer): "=0"}, agree=agree)
    assert (read(data, wrong.rows(batch)) == ["=0"]) == kept
    # the reference stands in it, and is not its last number
    around = ready(data, {asked(prompt, answer): f"{answer}= 3"}, agree=agree)
    assert (read(data, around.rows(batch)) == [f"{answer}= 3"]) == (agree != "number")


def test_an_answer_without_an_end_is_not_kept(data):
    batch, ((prompt, answer), *_) = pairs(data, 1)
    method = ready(data, {asked(prompt, answer): answer}, new_tokens=len(answer), agree="any")
    method.rows(batch)
    assert method.health(batch, Clock(0, 1))["rewritten"].sum == 0
    method = ready(data, {asked(prompt, answer): answer}, new_tokens=len(answer) + 1)
    assert method.health(batch, Clock(0, 1))["rewritten"].sum == 1


def test_the_loss_is_the_cross_entropy_of_the_rewritten_rows_and_each_is_written_once(data):
    batch, given = pairs(data, 4)
    method = ready(data, {asked(p, a): f"0 ={a}" for p, a in given})
    rows, counts = method.rows(batch), method.count(batch)
    term = method.terms(batch)["ce"]
    logits = method.student(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits.double()
    picked = [
        -torch.log_softmax(logits[b, t], -1)[rows["labels"][b, t + 1]]
        for b in range(4)
        for t in range(19)
        if rows["labels"][b, t + 1] != -100
    ]
    torch.testing.assert_close(term.sum.double() / counts["tokens"], torch.stack(picked).mean(), rtol=1e-5, atol=1e-6)
    method.teacher.module.says = {}
    pieces = [{k: v[i : i + 1] for k, v in batch.items() if k != "view"} for i in (3, 0)]
    for piece, i in zip(pieces, (3, 0), strict=True):
        assert torch.equal(method.rows(piece)["labels"][0], rows["labels"][i])


def test_drawn_answers_do_not_depend_on_the_batch(data):
    batch, _ = pairs(data, 6)
    found = []
    for cuts in (6, 4):
        method = ready(data, {}, heat=1.0, agree="any", template="{prompt}")
        torch.manual_seed(1)
        words = data.extra["tokenizer"]
        method.teachers["teacher"] = Teacher(
            causal_lm(hidden=16, layers=1, heads=2, vocab_size=len(words), context=40), {"logits"}, "teacher"
        )
        for part in torch.arange(6).split(cuts):
            method.rows({k: v[part] for k, v in batch.items() if k != "view"})
        found.append(method._rewritten)
    assert found[0] == found[1] and len({tuple(v[0]) for v in found[0].values()}) > 1


def test_what_it_cannot_do_without_is_said(data):
    with pytest.raises(UserError, match=r"must have \{prompt\}"):
        ready(data, {}, template="{answer}")
    method = SelfDataDistill()
    with pytest.raises(UserError, match="tokenizer"):
        method.setup(Parts(torch.nn.Linear(1, 1), {}, data.spec, streams={}))
