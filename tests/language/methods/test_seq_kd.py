import pytest
import torch

from limbeck.data.arithmetic import arithmetic
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.generate import write
from limbeck.language.methods.seq_kd import SeqKD
from limbeck.language.rollouts import prompts_of
from limbeck.losses import cross_entropy
from limbeck.models.causal import causal_lm


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def data():
    return arithmetic(train_size=20, test_size=5, digits=1, context=16)


def network(data, seed):
    torch.manual_seed(seed)
    net = causal_lm(architecture="llama", hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=16)
    for p in net.parameters():
        p.data.mul_(3.0 if p.dim() > 1 else 1.0)
    return net.eval()


def ready(data, teacher=None, gives=("logits", "text"), **arguments):
    method = SeqKD(new_tokens=8, **arguments)
    taught = Teacher(teacher or network(data, 1), set(gives), "teacher")
    method.setup(Parts(network(data, 0), {"teacher": taught}, data.spec, streams={"data": data.train}, quiet=True))
    method.before_step(Clock(0, 4))
    return method


def text_of(method, batch):
    rows = method.rows(batch).batch
    return [row[row != -100].tolist() for row in rows["labels"]]


def greedy(data, teacher, batch):
    prompts, mask = prompts_of(batch)
    found = write(teacher, prompts, 8, mask=mask, context=16, temperature=0.0, end=1, vocab_size=data.spec.vocab_size)
    return [t[m].tolist() for t, m in zip(found.tokens, found.mask, strict=True)]


def test_the_loss_is_the_cross_entropy_with_the_teachers_text(data):
    method, batch = ready(data, search="greedy"), data.train.batch(torch.tensor([3, 11, 7]))
    assert text_of(method, batch) == greedy(data, method.teacher.module, batch)
    rows = method.rows(batch).batch
    logits, labels = method.next_tokens(rows)
    term = method.terms(batch)["text"]
    kept = labels != -100
    torch.testing.assert_close(term.sum / term.count, cross_entropy(logits[kept], labels[kept]).mean())
    prompts, mask = prompts_of(batch)
    for row, prompt, there in zip(rows["input_ids"], prompts, mask, strict=True):
        assert row[: int(there.sum())].tolist() == prompt[there].tolist()


def test_one_beam_is_greedy_and_several_are_likelier(data):
    batch = data.train.batch(torch.arange(8))
    one = ready(data, search="beam", beams=1)
    assert text_of(one, batch) == greedy(data, one.teacher.module, batch)
    five = ready(data, search="beam", beams=5, length_penalty=0.0)
    found = [r.logprobs.sum(1) for r in (one.rows(batch), five.rows(batch))]
    assert (found[1] >= found[0] - 1e-4).all() and (found[1] > found[0] + 1e-3).any()


def test_the_nearest_beam_is_more_like_the_datas_text(data):
    from limbeck.language.beams import bleu

    batch = data.train.batch(torch.arange(20))
    gold = [row[row != -100].tolist() for row in batch["labels"]]
    likeness = []
    for nearest in (False, True):
        texts = text_of(ready(data, search="beam", beams=6, nearest=nearest), batch)
        likeness.append(sum(bleu(t, g) for t, g in zip(texts, gold, strict=True)))
    assert likeness[1] > likeness[0]


def test_samples_differ_by_number_and_are_drawn_by_step(data):
    method, batch = ready(data, search="sample", per_prompt=4), data.train.batch(torch.arange(10))
    each = [method.responses.rows(batch, torch.full((10,), k)).batch["labels"].tolist() for k in range(4)]
    assert len({str(t) for t in each}) == 4
    seen = set()
    for step in range(12):
        method.before_step(Clock(step, 12))
        seen.add(str(text_of(method, batch)[0]))
    assert len(seen) > 1
    half = data.train.batch(torch.arange(5))
    whole = text_of(method, batch)
    method.before_step(method._clock)
    assert text_of(method, half) == whole[:5]


def test_the_texts_are_written_once_and_found_again(data, home):
    teacher = network(data, 1)
    ready(data, teacher=teacher, search="sample")
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    again = ready(data, teacher=teacher, search="sample")
    assert len(calls) <= 8 and list((home / "texts").glob("*/manifest.json"))  # two rows are written to know the pool
    del calls[:]
    other = ready(data, teacher=teacher, search="sample", text_seed=1)
    assert len(calls) > 8
    batch = data.train.batch(torch.arange(10))
    assert text_of(again, batch) != text_of(other, batch)


class Scribe(torch.nn.Module):
    """A teacher that only writes: it repeats the last token of a prompt."""

    def write(self, prompts, steps, *, mask, **_):
        from limbeck.language.generate import Written

        last = prompts.gather(1, mask.long().sum(1, keepdim=True) - 1)
        return Written(last.expand(-1, steps), torch.ones(len(last), steps).bool(), torch.zeros(len(last), steps))


def test_a_teacher_of_text_alone_will_do_but_not_for_beams(data):
    method = ready(data, teacher=Scribe(), gives={"text"}, search="greedy")
    batch = data.train.batch(torch.arange(3))
    prompts, mask = prompts_of(batch)
    assert text_of(method, batch) == [[int(p[m][-1])] * 8 for p, m in zip(prompts, mask, strict=True)]
    with pytest.raises(UserError, match="beams need the teacher's logits"):
        ready(data, teacher=Scribe(), gives={"text"})


def test_a_search_that_has_one_text_has_one_and_none_is_refused(data):
    method, batch = ready(data, search="greedy", per_prompt=3), data.train.batch(torch.arange(3))
    assert text_of(method, batch) == greedy(data, method.teacher.module, batch)
    with pytest.raises(UserError, match="per_prompt must be at least 1"):
        ready(data, search="sample", per_prompt=0)
