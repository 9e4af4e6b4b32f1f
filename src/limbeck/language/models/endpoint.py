"""A teacher behind an OpenAI-compatible server, of which the log-probabilities of the likeliest tokens are known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.data.tokenizer import encode, tokenizer_hash
from limbeck.engine.checkpoint import write_json
from limbeck.errors import UserError
from limbeck.language.generate import Written
from limbeck.models.remote import Client, side_by_side
from limbeck.paths import cache_root
from limbeck.registry import register
from limbeck.truncated import TopK, topk_from_logprobs

ID = "token_id:"
"""What servers write before a number where they name tokens by their ids."""


@register("model", gives={"logits_topk", "text"}, trained=True)
def endpoint(
    *,
    url: str,
    model: str,
    k: int = 20,
    api: Literal["echo", "prompt_logprobs"] = "echo",
    key: str | None = None,
    at_once: int = 8,
    retries: int = 6,
    timeout: float = 120.0,
    context: int | None = None,
    data: Any = None,
) -> nn.Module:
    """A language model on a server, asked what it would have said at every position of a text, or to write.

    Texts are sent as token ids, so the server's model must have the data's tokenizer: what it says of the text is read
    back into ids and refused where it is other text. Answers are kept on disk as they come, so no text is asked for
    twice, in this run or another.

    Args:
        url: of the server, such as ``http://localhost:8000/v1``.
        model: its name there. Answers and caches are kept under this name: give another to another model.
        k: likeliest tokens to ask for; servers often have a limit of 5 or 20.
        api: ``echo`` is completions with ``echo`` and ``logprobs``, ``prompt_logprobs`` is vLLM's own, by ids.
        key: of the server, ``${env:NAME}``.
        at_once: requests at the same time.
        retries: of a request that fails for a reason that may pass.
        timeout: seconds an answer may take.
        context: longest text, in tokens; of no use to the server.
        data: the built data, for its tokenizer.

    Raises:
        UserError: no tokenizer, a key that is written out, or numbers out of range.
    """
    words = getattr(data, "extra", {}).get("tokenizer")
    if words is None:
        raise UserError("model 'endpoint' needs data with a tokenizer, such as data 'text'")
    if k < 1 or at_once < 1 or retries < 0:
        raise UserError("model 'endpoint': k and at_once must be at least 1, retries at least 0")
    if key and key not in os.environ.values():
        raise UserError("model 'endpoint': the key is written out; write key: ${env:NAME} and set that variable")
    return Endpoint(Client(url, key, retries, timeout), model, words, k=k, api=api, at_once=at_once)


class Endpoint(nn.Module):
    """Gives ``logits_topk`` [B, T, k] of rows of tokens; it has no parameters.

    Args:
        client: of the server.
        model: its name there.
        tokenizer: of the texts.
        k, api, at_once: see :func:`endpoint`.
        folder: where answers are kept; by default under the cache folder.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        tokenizer: Any,
        *,
        k: int = 20,
        api: Literal["echo", "prompt_logprobs"] = "echo",
        at_once: int = 8,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.client, self.model, self.tokenizer = client, model, tokenizer
        self.k, self.api, self.at_once = k, api, at_once
        self.tokenizer_hash = tokenizer_hash(tokenizer)
        name = hashlib.blake2b(repr((model, k, self.tokenizer_hash)).encode(), digest_size=8).hexdigest()
        self.folder = folder or cache_root() / "endpoints" / name

    def extra_repr(self) -> str:
        """What it depends on: its content hash is made of this. Neither address nor key."""
        return f"{self.model}, k={self.k}, tokenizer={self.tokenizer_hash}"

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, TopK]:
        """What the server's model says of the next token at each position, int64 [B, T] -> ``logits_topk``.

        The last position of a text, and padding, hold an even distribution: nothing is asked of them.

        Raises:
            UserError: the server fails, tells of fewer tokens than k, or has another tokenizer.
        """
        size, classes = input_ids.shape, len(self.tokenizer)
        mask = torch.ones(size, dtype=torch.bool) if attention_mask is None else attention_mask.bool().cpu()
        texts = [row[here].tolist() for row, here in zip(input_ids.cpu(), mask, strict=True)]
        ids = torch.arange(self.k).clamp(max=classes - 1).expand(*size, self.k).clone()
        logprobs = torch.full((*size, self.k), -float(torch.tensor(float(classes)).log()))
        for row, (found, values) in enumerate(side_by_side(self.answer, texts, self.at_once)):
            at = mask[row].nonzero()[:-1, 0]
            ids[row, at], logprobs[row, at] = found, values
        topk = topk_from_logprobs(ids, logprobs, classes=classes)
        return {"logits_topk": topk.to(input_ids.device)}

    def answer(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities [n - 1, k] of what may follow each token but the last, likeliest first."""
        if len(tokens) < 2:
            return torch.zeros(0, self.k, dtype=torch.int64), torch.zeros(0, self.k)
        name = hashlib.blake2b(repr(list(tokens)).encode(), digest_size=16).hexdigest()
        path = self.folder / name[:2] / f"{name}.safetensors"
        try:
            kept = load_file(path)
            return kept["ids"].long(), kept["logprobs"]
        except (OSError, SafetensorError, KeyError):
            pass
        found = self._asked(tokens)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{name}.{os.getpid()}.tmp")
        save_file({"ids": found[0].int(), "logprobs": found[1]}, temporary)
        temporary.replace(path)
        return found

    def _asked(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        request: dict[str, Any] = {"model": self.model, "prompt": list(tokens), "max_tokens": 1, "temperature": 0}
        request |= {"echo": True, "logprobs": self.k} if self.api == "echo" else {"prompt_logprobs": self.k}
        answer = self.client.post("completions", request)
        try:
            choice = answer["choices"][0]
            read = self._echoed(choice, tokens) if self.api == "echo" else self._numbered(choice, answer, tokens)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            hint = "prompt_logprobs" if self.api == "echo" else "echo"
            raise UserError(
                f"{self._where} gives no log-probabilities of the text ({type(error).__name__}: {error}): set api: "
                f"{hint}, or start the server with them"
            ) from None
        return self._best(read)

    @torch.no_grad()
    def write(
        self,
        prompts: Tensor,
        steps: int,
        *,
        context: int,
        mask: Tensor | None = None,
        temperature: float = 1.0,
        ids: Tensor | None = None,
        key: Sequence[Any] = (0,),
        vocab_size: int | None = None,
        end: int | None = None,
        top_p: float = 1.0,
    ) -> Written:
        """As :func:`limbeck.language.generate.write`, by the server.

        Its text is read by the data's tokenizer, so it may be any server's, and probabilities are not known (0). The
        number that is sent as ``seed`` is a function of key and id; whether the text depends on nothing else is the
        server's affair. Texts are kept on disk as they come.

        Raises:
            UserError: the server fails, or answers without a text.
        """
        there = torch.ones_like(prompts, dtype=torch.bool) if mask is None else mask.bool()
        rows = torch.arange(len(prompts)) if ids is None else ids.cpu()
        requests: list[dict[str, Any]] = [
            {
                "model": self.model,
                "prompt": row[here].tolist()[-context:],
                "max_tokens": steps,
                "temperature": temperature,
                "top_p": top_p,
                "seed": _seed(key, int(number)),
            }
            for row, here, number in zip(prompts.cpu(), there.cpu(), rows, strict=True)
        ]
        tokens = torch.zeros(len(prompts), steps, dtype=torch.long)
        kept = torch.zeros(len(prompts), steps, dtype=torch.bool)
        for row, (text, finished) in enumerate(side_by_side(self._written, requests, self.at_once)):
            said = [i for i in encode(self.tokenizer, [text])[0] if vocab_size is None or i < vocab_size]
            said = [*said, end] if finished and end is not None else said
            tokens[row, : len(said)] = torch.tensor(said[:steps], dtype=torch.long)
            kept[row, : len(said)] = True
        device = prompts.device
        return Written(tokens.to(device), kept.to(device), torch.zeros(tokens.shape, device=device))

    def _written(self, request: Mapping[str, Any]) -> tuple[str, bool]:
        """A text, and whether it came to its end, from disk or from the server."""
        name = hashlib.blake2b(json.dumps(request, sort_keys=True).encode(), digest_size=16).hexdigest()
        path = self.folder / "texts" / name[:2] / f"{name}.json"
        try:
            known = json.loads(path.read_text(encoding="utf8"))
            return str(known["text"]), bool(known["finished"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        answer = self.client.post("completions", request)
        try:
            choice = answer["choices"][0]
            text, finished = str(choice["text"]), choice.get("finish_reason") == "stop"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(f"{self._where} answers without a text ({type(error).__name__}: {error})") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"text": text, "finished": finished})
        return text, finished

    @property
    def _where(self) -> str:
        return f"endpoint {self.client.url} (model {self.model})"

    def _best(self, read: Sequence[Mapping[int, float]]) -> tuple[Tensor, Tensor]:
        fewest = min(len(each) for each in read)
        if fewest < self.k:
            raise UserError(f"{self._where} tells of {fewest} tokens where k: {self.k} were asked for: set k: {fewest}")
        best = [sorted(each.items(), key=lambda pair: (-pair[1], pair[0]))[: self.k] for each in read]
        values = torch.tensor([[value for _, value in each] for each in best])
        if not (values <= 1e-3).all() or values.isnan().any():
            raise UserError(f"{self._where} gives log-probabilities above 0 or NaN")
        return torch.tensor([[i for i, _ in each] for each in best]), values.clamp(max=0.0)

    def _numbered(self, choice: Mapping[str, Any], answer: Mapping[str, Any], tokens: Sequence[int]) -> list[Any]:
        """vLLM's ``prompt_logprobs``: by id, with the text's own token among them."""
        given = choice.get("prompt_logprobs") or answer["prompt_logprobs"]
        if len(given) != len(tokens):
            raise self._foreign(f"it counts {len(given)} tokens in a text of {len(tokens)}")
        read = []
        for place, (entry, own) in enumerate(zip(given[1:], tokens[1:], strict=True), 1):
            here = {int(i): float(v["logprob"]) for i, v in entry.items()}
            if own not in here or max(here) >= len(self.tokenizer):
                raise self._foreign(f"its token {place} is not {own}, that of the text, or is none of its vocabulary")
            read.append(here)
        return read

    def _echoed(self, choice: Mapping[str, Any], tokens: Sequence[int]) -> list[Any]:
        """OpenAI's ``echo``: by the tokens' texts, the text's own first."""
        given, tops = choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"]
        if len(given) < len(tokens) or len(tops) < len(tokens):
            raise self._foreign(f"it counts {len(given)} tokens in a text of {len(tokens)}")
        names = self._names(given, tokens)
        read = []
        for entry in tops[1 : len(tokens)]:
            here = {}
            for name, value in entry.items():
                here[self._id(name, names)] = float(value)
            read.append(here)
        return read

    def _names(self, given: Sequence[str], tokens: Sequence[int]) -> Mapping[str, int]:
        """The way of naming tokens under which the server's copy of the text is the text."""
        for names in self._spellings:
            if all(_numbered(g, names) == own for g, own in zip(given, tokens, strict=False)):
                return names
        # Where the best of the ways first goes wrong.
        pairs = list(zip(given, tokens, strict=False))
        ways = [[_numbered(g, names) == own for g, own in pairs] for names in self._spellings]
        place = max(right.index(False) for right in ways)
        own = self.tokenizer.convert_ids_to_tokens(tokens[place])
        raise self._foreign(f"its token {place} is {given[place]!r}, that of the text is {own!r}")

    def _id(self, name: str, names: Mapping[str, int]) -> int:
        found = _numbered(name, names)
        if found is None or not 0 <= found < len(self.tokenizer):
            raise self._foreign(f"it tells of a token {name!r}, which is none, or more than one, of the vocabulary")
        return found

    def _foreign(self, says: str) -> UserError:
        return UserError(
            f"{self._where} has another tokenizer than the data: {says}; use a model with the data's tokenizer, or "
            "api: prompt_logprobs, which names tokens by their ids"
        )

    @cached_property
    def _spellings(self) -> tuple[dict[str, int], dict[str, int]]:
        """Ids by the text that a token stands for, without those that share one, and ids by their own names."""
        pieces = dict(self.tokenizer.get_vocab())
        texts: dict[str, list[int]] = {}
        for i in pieces.values():
            texts.setdefault(self.tokenizer.decode([i]), []).append(i)
        return {text: ids[0] for text, ids in texts.items() if len(ids) == 1}, pieces


def _seed(key: Sequence[Any], number: int) -> int:
    """A whole number below 2^31 for a row of a key."""
    digest = hashlib.blake2b(repr((tuple(key), number)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def _numbered(name: str, names: Mapping[str, int]) -> int | None:
    if name.startswith(ID) and name[len(ID) :].isdigit():
        return int(name[len(ID) :])
    return names.get(name)
