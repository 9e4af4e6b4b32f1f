"""A teacher behind a real HTTP server on this machine, with all that such servers do."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from limbeck.data.text import text
from limbeck.engine.cache import CacheSpec, fill_tokens
from limbeck.engine.method import Clock, Parts
from limbeck.engine.teacher import Teacher
from limbeck.errors import UserError
from limbeck.language.generate import write
from limbeck.language.methods.seq_kd import SeqKD
from limbeck.language.methods.word_kd import WordKD
from limbeck.language.models.endpoint import Endpoint, endpoint
from limbeck.models.causal import causal_lm
from limbeck.models.remote import Client, side_by_side
from limbeck.recipe import RecipeError, load_recipe
from limbeck.truncated import topk_of

K = 6


@pytest.fixture(scope="module")
def data():
    return text(corpus="grammar", characters=2000, context=12)


def network(data, seed=1):
    torch.manual_seed(seed)
    return causal_lm(hidden=16, layers=1, heads=2, vocab_size=data.spec.vocab_size, context=12).eval()


class Server:
    """Serves a model's log-probabilities; ``misbehave`` answers in its place while it has something left to say."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.requests, self.misbehave, self.most, self.names = (
            model,
            tokenizer,
            [],
            [],
            99,
            str,
        )
        self.pieces = {i: tokenizer.decode([i]) for i in range(len(tokenizer))}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, dict(self.headers), body))
                status, headers, content = outer.misbehave.pop(0) if outer.misbehave else (200, {}, None)
                content = json.dumps(outer.answer(body)).encode() if content is None else content
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    @torch.no_grad()
    def answer(self, body):
        ids = body["prompt"]
        if "echo" not in body and "prompt_logprobs" not in body:
            return self.continued(body)
        logprobs = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        k = min(body.get("logprobs") or body["prompt_logprobs"], self.most)
        values, best = logprobs.topk(k)
        if "echo" in body:
            names = [
                {self.pieces[i]: v for i, v in zip(b, w, strict=True)}
                for b, w in zip(best.tolist(), values.tolist(), strict=True)
            ]
            return {
                "choices": [
                    {"logprobs": {"tokens": [self.pieces[i] for i in ids] + ["x"], "top_logprobs": [None, *names]}}
                ]
            }
        entries = [
            {str(i): {"logprob": v} for i, v in [*zip(b, w, strict=True), (own, float(row[own]))]}
            for b, w, own, row in zip(best.tolist()[:-1], values.tolist()[:-1], ids[1:], logprobs[:-1], strict=True)
        ]
        return {"choices": [{"prompt_logprobs": [None, *entries]}]}

    def continued(self, body):
        end = self.tokenizer.eos_token_id
        ids = torch.tensor([body["prompt"]])
        key = (body["seed"],)
        given = {"context": 12, "temperature": body["temperature"], "key": key, "end": end, "top_p": body["top_p"]}
        found = write(self.model, ids, body["max_tokens"], **given)
        said = found.tokens[0][found.mask[0]].tolist()
        stopped = said[-1] == end
        text = self.tokenizer.decode(said[: len(said) - stopped])
        return {"choices": [{"text": text, "finish_reason": "stop" if stopped else "length"}]}


@pytest.fixture
def server(data):
    served = Server(network(data), data.extra["tokenizer"])
    yield served
    served.http.shutdown()
    served.http.server_close()


def remote(server, data, folder, api="echo", **kwargs):
    client = Client(server.url, retries=3, timeout=5, sleep=lambda s: server.requests.append(("sleep", s)))
    return Endpoint(client, "tiny", data.extra["tokenizer"], k=K, api=api, folder=folder, **kwargs)


def slept(server):
    return [request[1] for request in server.requests if request[0] == "sleep"]


@pytest.mark.parametrize("api", ["echo", "prompt_logprobs"])
def test_what_it_gives_is_what_the_model_says_itself(server, data, tmp_path, api):
    batch = data.train.batch(torch.arange(5))
    batch["attention_mask"][2, 7:] = 0
    given = remote(server, data, tmp_path, api)(batch["input_ids"], batch["attention_mask"])["logits_topk"]
    own = topk_of(server.model(input_ids=batch["input_ids"]).logits, K)
    here = batch["attention_mask"].bool()
    here = torch.cat([here[:, :-1] & here[:, 1:], torch.zeros(5, 1).bool()], 1)
    assert torch.equal(given.indices[here], own.indices[here])
    torch.testing.assert_close(given.logprobs[here], own.logprobs[here], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given.log_tail[here], own.log_tail[here], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(given.covered + given.log_tail.exp(), torch.ones(5, 12))


@pytest.mark.parametrize("api", ["echo", "prompt_logprobs"])
def test_word_kd_learns_from_it_as_from_the_model(server, data, tmp_path, api):
    batch = data.train.batch(torch.arange(4))
    far, near = (
        Teacher(remote(server, data, tmp_path, api), {"logits_topk"}, "teacher"),
        Teacher(network(data), {"logits"}, "teacher"),
    )
    losses = []
    for teacher in (far, near):
        method = WordKD(alpha=1.0)
        method.setup(Parts(network(data, 5), {"teacher": teacher}, data.spec))
        if teacher is near:
            teacher.compute = lambda b: {"logits_topk": topk_of(near.module(input_ids=b["input_ids"]).logits, K)}
        losses.append(float(method.terms(batch)["kd"].sum.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_answers_are_kept_and_a_broken_one_is_asked_for_again(server, data, tmp_path):
    batch, asked = data.train.batch(torch.arange(4)), lambda: sum(r[0] != "sleep" for r in server.requests)
    first = remote(server, data, tmp_path)(batch["input_ids"])["logits_topk"]
    assert asked() == 4
    again = remote(server, data, tmp_path)(batch["input_ids"])["logits_topk"]
    assert asked() == 4
    assert torch.equal(first.logprobs, again.logprobs)
    broken = next(tmp_path.glob("*/*.safetensors"))
    broken.write_bytes(broken.read_bytes()[:20])
    assert torch.equal(remote(server, data, tmp_path)(batch["input_ids"])["logits_topk"].logprobs, first.logprobs)
    assert asked() == 5


@pytest.mark.parametrize(
    "bad",
    [
        (429, {"Retry-After": "7"}, b"slow down"),
        (500, {}, b"oops"),
        (200, {}, b'{"choices": [{"logpr'),
        (200, {"Content-Length": "500"}, b'{"choices": ['),
        (200, {}, b"[1]"),
    ],
    ids=["429", "500", "cut json", "cut off", "list"],
)
def test_what_may_pass_is_tried_again(server, data, tmp_path, bad):
    tokens = data.train.batch(torch.arange(1))["input_ids"][0].tolist()
    whole = remote(server, data, tmp_path / "whole").answer(tokens)
    server.misbehave = [bad, bad]
    found = remote(server, data, tmp_path).answer(tokens)
    assert torch.equal(found[1], whole[1])
    pauses = slept(server)
    assert len(pauses) == 2
    assert pauses == [7.0, 7.0] if bad[0] == 429 else 0.5 <= pauses[0] <= 1 <= pauses[1] <= 2


def test_after_the_retries_and_for_what_does_not_pass_there_is_one_clear_line(server, data, tmp_path):
    model = remote(server, data, tmp_path)
    model.client.key = "top-secret"
    server.misbehave = [(500, {}, b"oops top-secret")] * 9
    with pytest.raises(UserError, match=r"answers 500: oops <key> \(4 attempts\)") as caught:
        model.answer([5, 6, 7])
    assert "top-secret" not in str(caught.value) + repr(model) + repr(model.client)
    server.misbehave, server.requests = [(401, {}, b"who are you top-secret")], []
    with pytest.raises(UserError, match="answers 401: who are you <key>; set key"):
        model.answer([5, 6, 7])
    assert len(server.requests) == 1
    assert server.requests[0][1]["Authorization"] == "Bearer top-secret"
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UserError, match="cannot be reached"):
        model.answer([5, 6, 7])
    with pytest.raises(UserError, match="http://"):
        Client("localhost:8000")


@pytest.mark.parametrize("api", ["echo", "prompt_logprobs"])
def test_fewer_log_probabilities_than_asked_for_are_refused(server, data, tmp_path, api):
    server.most = 3
    with pytest.raises(UserError, match=r"tells of [34] tokens where k: 6 were asked for: set k: [34]"):
        remote(server, data, tmp_path, api).answer(data.train.batch(torch.arange(1))["input_ids"][0].tolist())
    assert not list(tmp_path.glob("*/*"))


def test_another_tokenizer_is_refused_and_nothing_is_kept(server, data, tmp_path):
    tokens = data.train.batch(torch.arange(1))["input_ids"][0].tolist()
    size = len(data.extra["tokenizer"])
    server.pieces = {i: server.tokenizer.decode([(i + 1) % size]) for i in range(size)}
    with pytest.raises(UserError, match="another tokenizer than the data: its token 0 is"):
        remote(server, data, tmp_path).answer(tokens)
    server.pieces = {i: server.tokenizer.decode([i]) for i in range(size)}
    rare = set(range(size)) - set(tokens)
    server.pieces |= {i: f"strange {i}" for i in rare}
    with pytest.raises(UserError, match=r"tells of a token 'strange \d+', which is none"):
        remote(server, data, tmp_path).answer(tokens)
    server.answer = lambda body: {"choices": [{"prompt_logprobs": [None] + [{"0": {"logprob": -1.0}}] * 11}]}
    with pytest.raises(UserError, match="another tokenizer"):
        remote(server, data, tmp_path, "prompt_logprobs").answer(tokens)
    server.answer = lambda body: {"choices": [{"text": "no log-probabilities"}]}
    with pytest.raises(UserError, match=r"gives no log-probabilities of the text .* api: prompt_logprobs"):
        remote(server, data, tmp_path).answer(tokens)
    assert not list(tmp_path.glob("*/*"))


def test_tokens_that_are_named_by_their_ids_need_no_names(server, data, tmp_path):
    server.pieces = {i: f"token_id:{i}" for i in range(len(data.extra["tokenizer"]))}
    tokens = data.train.batch(torch.arange(1))["input_ids"][0].tolist()
    found, _ = remote(server, data, tmp_path).answer(tokens)
    with torch.no_grad():
        own = topk_of(server.model(input_ids=torch.tensor([tokens])).logits[0, :-1], K)
    assert torch.equal(found, own.indices)


def test_a_cache_is_filled_from_it_and_checked_against_it(server, data, tmp_path):
    teacher = Teacher(remote(server, data, tmp_path / "answers"), {"logits_topk"}, "teacher")
    with pytest.warns(UserWarning, match="cover"):
        cache = fill_tokens(tmp_path / "cache", teacher, data.train, CacheSpec(mode="packed", k=K, bits=8))
    cache.verify(teacher.compute, data.train)
    batch = data.train.batch(torch.arange(3))
    stored, live = cache.serve(batch).logits_topk, topk_of(server.model(input_ids=batch["input_ids"]).logits, K)
    assert torch.equal(stored.indices[:, :-1], live.indices.sort(-1).values[:, :-1])
    with pytest.raises(UserError, match=r"tells its 6 likeliest tokens .* to keep 5"):
        fill_tokens(tmp_path / "other", teacher, data.train, CacheSpec(mode="packed", k=K - 1))
    with pytest.raises(UserError, match="draws from whole distributions"):
        fill_tokens(tmp_path / "drawn", teacher, data.train, CacheSpec(mode="sampled", draws=3))
    other = remote(server, data, tmp_path / "others")
    server.model = network(data, 9)
    with pytest.raises(UserError, match="does not hold what the teacher gives now"):
        cache.verify(Teacher(other, {"logits_topk"}, "teacher").compute, data.train)


def test_recipes_take_it_for_methods_that_learn_from_a_truncated_teacher(monkeypatch, data):
    teacher = {"name": "endpoint", "url": "http://localhost:1/v1", "model": "m", "k": 5}
    tree = {"title": "t", "data": {"name": "text", "corpus": "grammar"}, "teacher": teacher}
    tree["student"] = {"name": "causal_lm", "hidden": 16, "layers": 1, "heads": 2}
    assert load_recipe({**tree, "method": {"name": "word_kd"}}).method.name == "word_kd"
    with pytest.raises(RecipeError, match="gkd needs a teacher that gives logits; endpoint gives logits_topk"):
        load_recipe({**tree, "method": {"name": "gkd"}})
    with pytest.raises(UserError, match="the key is written out"):
        endpoint(url="http://localhost:1", model="m", key="sk-123", data=data)
    monkeypatch.setenv("A_KEY", "sk-123")
    assert endpoint(url="http://localhost:1", model="m", key="sk-123", data=data).client.key == "sk-123"


def test_at_most_so_many_are_asked_at_once_and_results_keep_their_order():
    running, most, lock, gate = 0, 0, threading.Lock(), threading.Event()

    def ask(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 3:
                gate.set()
        gate.wait(5)
        with lock:
            running -= 1
        return number

    assert list(side_by_side(ask, range(12), 3)) == list(range(12))
    assert most == 3


def test_it_writes_what_the_model_writes_itself_and_asks_once(server, data, tmp_path):
    end = data.extra["tokenizer"].eos_token_id
    with torch.no_grad():
        server.model.get_output_embeddings().weight[end].mul_(4.0)  # so that some texts end early
    prompts = data.train.batch(torch.arange(6))["input_ids"][:, :4]
    mask = torch.ones_like(prompts, dtype=torch.bool)
    mask[1, 3:] = False
    given = {"context": 12, "mask": mask, "temperature": 0.0, "end": end}
    teacher = remote(server, data, tmp_path)
    found, own = teacher.write(prompts, 5, **given), write(server.model, prompts, 5, **given)
    width = own.tokens.shape[1]
    assert torch.equal(found.mask[:, :width], own.mask) and not found.mask[:, width:].any()
    assert torch.equal(found.tokens[:, :width], own.tokens)
    asked = len(server.requests)
    again = teacher.write(prompts, 5, **given)
    assert torch.equal(again.tokens, found.tokens) and len(server.requests) == asked
    teacher.write(prompts, 5, **given | {"temperature": 0.7, "ids": torch.arange(6), "key": (1, "a")})
    seeds = {body["seed"] for _, _, body in server.requests[asked:]}
    assert len(seeds) == 6 and all(0 <= n < 2**31 for n in seeds)


def test_seq_kd_learns_from_the_texts_of_a_server(server, data, tmp_path):
    method = SeqKD(search="greedy", new_tokens=4, prompt=6, keep=None)
    teacher = Teacher(remote(server, data, tmp_path), {"text"}, "teacher")
    method.setup(Parts(network(data, 2), {"teacher": teacher}, data.spec, streams={"data": data.train}, quiet=True))
    batch, clock = data.train.batch(torch.arange(4)), Clock(0, 4)
    method.before_step(clock)
    (update,) = method.updates(batch, clock)
    (term,) = update.evaluate().values()
    own = write(server.model, batch["input_ids"][:, :6], 4, context=12, temperature=0.0)
    rows = torch.cat([batch["input_ids"][:, :6], own.tokens], 1)
    law = method.student(input_ids=rows).logits[:, 5:-1].log_softmax(-1)
    expected = -law.gather(-1, own.tokens[..., None]).sum()
    assert float(term.sum.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


@pytest.mark.parametrize("answer", [b'{"choices": []}', b'{"other": 1}'])
def test_an_answer_without_a_text_is_one_line(server, data, tmp_path, answer):
    server.misbehave = [(200, {}, answer)]
    with pytest.raises(UserError, match="answers without a text"):
        remote(server, data, tmp_path).write(torch.tensor([[1, 2]]), 3, context=12)
