import pytest
import torch

from limbeck.data.ciphers import ciphers
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.methods.mt_llm import StackingMTLLM, retold
from limbeck.language.models.stacked import pooled_lm, stacked_lm
from limbeck.models.causal import causal_lm
from limbeck.models.encoder import encoder
from limbeck.registry import Block

LLAMA = {"architecture": "llama", "hidden": 16, "layers": 1, "heads": 2}
BERT = {"hidden": 12, "layers": 1, "heads": 2, "task": "masked_lm"}
BODY, READS = Block("causal_lm", LLAMA), Block("encoder", BERT)


@pytest.fixture(scope="module")
def world():
    words, pieces = (ciphers(train_size=6, test_size=4, tokens=kind) for kind in ("words", "pieces"))
    return words, pieces


def sizes(data):
    return {"vocab_size": data.spec.vocab_size, "context": data.spec.shape[0]}


@pytest.fixture(scope="module")
def teachers(world):
    words, pieces = world
    torch.manual_seed(0)
    made = {
        "teacher": causal_lm(**LLAMA, **sizes(pieces)),
        "encoder": encoder(**BERT, **sizes(words)),
        "tuned": pooled_lm(body=BODY, rank=2, classes=4, **sizes(pieces)),
    }
    for role in ("teacher", "tuned"):
        made[role].tokenizer = pieces.extra["tokenizer"]
    return {role: Teacher(module, {"hidden_states"}, role) for role, module in made.items()}


def ready(stage, teachers, data, student=None):
    torch.manual_seed(1)
    student = student or stacked_lm(encoder=READS, body=BODY, rank=2, classes=4, **sizes(data))
    method = StackingMTLLM(stage=stage)
    method.setup(Parts(student, teachers, data.spec, streams={"data": data.train}))
    return method, data.train.batch(torch.arange(3))


def test_a_text_is_told_again_in_other_tokens(world):
    words, pieces = world
    batch = retold(words.train.batch(torch.arange(6)), words.extra["tokenizer"], pieces.extra["tokenizer"])
    whole = pieces.train.batch(torch.arange(6))
    width = batch["input_ids"].shape[1]
    assert torch.equal(batch["attention_mask"], whole["attention_mask"][:, :width])
    there = batch["attention_mask"].bool()
    assert torch.equal(batch["input_ids"][there], whole["input_ids"][:, :width][there])
    assert int(whole["attention_mask"].sum()) == int(there.sum())


@pytest.mark.parametrize("stage", ["general", "task"])
def test_the_loss_is_the_cards_formula(stage, world, teachers):
    method, batch = ready(stage, teachers, world[0])
    term = method.terms(batch)["mse"]
    total = 0.0
    for row in range(3):
        text = world[0].extra["tokenizer"].decode(batch["input_ids"][row][batch["attention_mask"][row].bool()])
        ids = torch.tensor([world[1].extra["tokenizer"](text)["input_ids"]])
        own_ids = batch["input_ids"][row][batch["attention_mask"][row].bool()][None]
        if stage == "general":
            states = teachers["teacher"].module(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        else:
            states = teachers["tuned"].module.body(input_ids=ids).last_hidden_state
        read = method.student.encoder(input_ids=own_ids).last_hidden_state
        own = method.student.body(inputs_embeds=method.student.up(read)).last_hidden_state
        total += float((states[0].double().mean(0) - own[0].double().mean(0)).square().mean().detach())
    assert float(term.sum.detach()) == pytest.approx(total, rel=1e-4)
    assert (int(term.count), term.weight, term.unit) == (3, 1.0, "samples")


def test_labels_tune_the_language_models_adapters_and_head(world, teachers):
    student = pooled_lm(body=BODY, rank=2, classes=4, **sizes(world[1]))
    method, batch = ready("general", {"teacher": teachers["teacher"]}, world[1], student)
    terms = method.terms(batch)
    logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])["logits"].double()
    ce = -logits.log_softmax(-1)[torch.arange(3), batch["label"]].sum()
    assert list(terms) == ["ce"]
    assert float(terms["ce"].sum.detach()) == pytest.approx(float(ce.detach()), rel=1e-5)
    theirs = teachers["teacher"].module.model
    assert torch.equal(student.body.base.embed_tokens.weight, theirs.embed_tokens.weight)


def test_the_head_is_the_tuned_models_and_stays(world, teachers):
    method, batch = ready("task", teachers, world[0])
    head = teachers["tuned"].module.head
    assert torch.equal(method.student.head.weight, head.weight)
    next(method.updates(batch, Clock(0, 1))).terms["mse"].sum.backward()
    taught = {name for name, p in method.student.named_parameters() if p.grad is not None}
    assert "up.weight" in taught
    assert not any(name.startswith(("head", "encoder")) for name in taught)


def test_a_stage_goes_on_from_the_one_before(world, teachers):
    method, _ = ready("general", teachers, world[0])
    student = method.student
    student.up.weight.data.fill_(0.25)
    ready("task", teachers, world[0], student)
    assert (student.up.weight == 0.25).all()


def test_what_is_missing_is_named(world, teachers):
    with pytest.raises(UserError, match="stage 'task' needs a teacher called 'tuned'"):
        ready("task", {k: v for k, v in teachers.items() if k != "tuned"}, world[0])
    with pytest.raises(UserError, match="it teaches a student 'stacked_lm'"):
        ready("general", teachers, world[0], causal_lm(**LLAMA, **sizes(world[1])))
    with pytest.raises(UserError, match="the tuned model has no head"):
        ready("task", {**teachers, "tuned": teachers["teacher"]}, world[0])
    silent = Teacher(causal_lm(**LLAMA, **sizes(world[1])), {"hidden_states"}, "teacher")
    with pytest.raises(UserError, match="teacher has no tokenizer"):
        ready("general", {**teachers, "teacher": silent}, world[0])
