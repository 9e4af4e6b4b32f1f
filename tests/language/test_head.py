import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from limbeck.data.text import text
from limbeck.engine.method import Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language import head
from limbeck.language.head import Body, UnfitError
from limbeck.language.methods.word_kd import WordKD
from limbeck.models.causal import causal_lm
from limbeck.models.forward import Signals, forward

IDS = torch.arange(24).view(2, 12) % 13


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=4000, context=16)


def network(data, seed, extra=0, **options):
    torch.manual_seed(seed)
    return causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size + extra, context=16, **options)


def ready(data, chunked, student=None, teacher=None, **arguments):
    method = WordKD(chunked=chunked, **arguments)
    theirs = Teacher(teacher or network(data, 1).double(), {"logits"}, "teacher")
    method.setup(Parts(student or network(data, 0).double(), {"teacher": theirs}, data.spec))
    return method


def batch_of(data, rows=6):
    batch = data.train.batch(torch.arange(rows))
    batch["labels"][0, 3:] = -100
    batch["labels"][1] = -100
    return batch


def gradients(method, batch, counts=None):
    counts = counts or method.count(batch)
    terms = method.terms(batch)
    sum(t.weight * t.sum / counts[t.unit] for t in terms.values()).backward()
    return terms, {n: p.grad.clone() for n, p in method.student.named_parameters()}


def agree(plain, chunked, batch):
    (a, x), (b, y) = gradients(plain, batch), gradients(chunked, batch)
    assert a.keys() == b.keys() and x.keys() == y.keys()
    for n, term in a.items():
        assert (term.weight, term.unit, int(term.count)) == (b[n].weight, b[n].unit, int(b[n].count))
        torch.testing.assert_close(term.sum, b[n].sum)
    for n, grad in x.items():
        torch.testing.assert_close(grad, y[n], msg=n)


@pytest.mark.parametrize("reduction", ["token_mean", "seq_mean", "max_len"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_word_kd_in_chunks_is_word_kd(data, alpha, reduction):
    made = [ready(data, c, alpha=alpha, reduction=reduction, temperature=2.0) for c in (False, True)]
    agree(*made, batch_of(data))


@pytest.mark.parametrize("options", [{}, {"tie": False}, {"architecture": "llama"}, {"extra": 5}])
def test_any_head_gets_its_gradient_also_one_that_is_the_embedding(data, options):
    made = [ready(data, c, student=network(data, 0, **options).double(), direction="jsd") for c in (False, True)]
    agree(*made, batch_of(data))


def test_a_teacher_with_a_padded_vocabulary(data):
    made = [ready(data, c, teacher=network(data, 1, extra=9).double(), direction="reverse") for c in (False, True)]
    agree(*made, batch_of(data))


def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(data):
    method, batch = ready(data, True), batch_of(data)
    whole, counts = gradients(method, batch)[1], method.count(batch)
    method.student.zero_grad()
    tensors = {k: v for k, v in batch.items() if k != "view"}
    for rows in torch.arange(6).split(1):
        parts = gradients(method, {**{k: v[rows] for k, v in tensors.items()}, "view": 0}, counts)[1]
    for n, grad in whole.items():
        torch.testing.assert_close(parts[n], grad)


def test_no_logits_of_all_positions_are_computed(data):
    method, batch = ready(data, True), batch_of(data)
    shapes = []
    for model in (method.student, method.teacher.module):
        model.lm_head.register_forward_hook(lambda m, i, out: shapes.append(out.shape[1]))
    method.terms(batch)
    assert shapes == [1, 1]


def test_it_is_chosen_where_the_logits_are_large(data, monkeypatch):
    method, batch = ready(data, None), batch_of(data)
    used = []
    monkeypatch.setattr(head, "fused_sums", lambda *a, call=head.fused_sums, **k: used.append(1) or call(*a, **k))
    method.terms(batch)
    monkeypatch.setattr(head, "WORTH", 6 * 16 * data.spec.vocab_size)
    method.terms(batch)
    assert used == [1]


CONFIGS = {
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_an_architecture_does_to_its_logits_is_done_too(data, name):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": data.spec.vocab_size, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, f"{name}Config")(num_key_value_heads=2, **sizes, **words, **CONFIGS[name])
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(getattr(transformers, f"{name}ForCausalLM")(config).double())
        models[-1].lm_head.weight.data.mul_(30)
    made = [ready(data, c, *models, temperature=1.5) for c in (False, True)]
    batch = batch_of(data)
    first = gradients(made[0], batch)[1]
    made[0].student.zero_grad()
    for n, grad in gradients(made[1], batch)[1].items():
        torch.testing.assert_close(grad, first[n], msg=n)


class Doubled(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out

    forward.__signature__ = inspect.signature(transformers.LlamaForCausalLM.forward)


def test_logits_that_are_not_the_heads_are_found_out(data, capsys, monkeypatch):
    torch.manual_seed(0)
    student = Doubled(network(data, 0, architecture="llama").config).double()
    student.lm_head.weight.data.mul_(30)
    plain = ready(data, False, student=student)
    wanted = plain.terms(batch_of(data))
    with pytest.raises(UserError, match="chunked: true is not possible here: Doubled does more to its logits"):
        ready(data, True, student=student).terms(batch_of(data))
    auto = ready(data, None, student=student)
    monkeypatch.setattr(head, "WORTH", 1)
    got = [auto.terms(batch_of(data)) for _ in range(2)]
    assert capsys.readouterr().err.count("computed as a whole, not in chunks: Doubled does more") == 1
    for terms in got:
        torch.testing.assert_close(terms["kd"].sum, wanted["kd"].sum)


def test_models_that_cannot_be_cut_are_refused_with_the_reason(data):
    with pytest.raises(UnfitError, match="Linear is no model of transformers"):
        Body(nn.Linear(2, 2))
    with pytest.raises(UserError, match="not possible here: Linear is no model"):
        WordKD(chunked=True).setup(
            Parts(network(data, 0), {"teacher": Teacher(nn.Linear(2, 2), {"logits"}, "teacher")}, data.spec)
        )
    with pytest.raises(UserError, match="direction alpha has no closed form"):
        ready(data, True, direction="alpha")
    with pytest.raises(UnfitError, match="no output layer"):
        Body(network(data, 0).transformer)

    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    odd = network(data, 0)
    odd.lm_head = Scaled(16, data.spec.vocab_size)
    with pytest.raises(UnfitError, match="a Scaled, not a plain linear one"):
        Body(odd)


def test_a_stored_teacher_takes_the_plain_path(data, monkeypatch):
    method, batch = ready(data, None), batch_of(data)
    monkeypatch.setattr(head, "WORTH", 1)
    wanted = method.terms(batch)["kd"].sum
    live = method.teacher.compute(batch)

    class Store:
        def serve(self, batch):
            return Signals(logits=live.logits)

    method.teacher.stored = Store()
    torch.testing.assert_close(method.terms(batch)["kd"].sum, wanted)
    assert "stored" in method.in_chunks.unfit


def test_the_head_of_a_model_with_adapters(data):
    peft = pytest.importorskip("peft")
    model = network(data, 0, architecture="llama").double()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    body, batch = Body(adapted), batch_of(data)
    found = body(lambda **more: forward(adapted, batch, **more))
    torch.testing.assert_close(found.hidden @ found.weight.t(), forward(adapted, batch).logits)
    on_head = peft.get_peft_model(
        network(data, 0, architecture="llama"), peft.LoraConfig(r=2, target_modules=["lm_head"])
    )
    with pytest.raises(UnfitError, match="not a plain linear one"):
        Body(on_head)


def test_two_processes_give_the_gradient_of_one(data, tmp_path):
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(
        [*command, str(here / "head_worker.py"), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    whole = gradients(ready(data, False), batch_of(data))[1]
    for strategy in ("ddp", "fsdp"):
        shared = load_file(tmp_path / f"{strategy}.safetensors")
        assert shared.keys() == whole.keys()
        for n, grad in whole.items():
            torch.testing.assert_close(shared[n], grad, msg=f"{strategy}: {n}")
