"""Conversations as token rows, written by the tokenizer's own chat template; only the assistant's words are learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck.data import tokenizer as tokenizers
from limbeck.data.base import Data, DataSpec
from limbeck.data.corpora import json_lines
from limbeck.data.text import TokenRows
from limbeck.errors import UserError
from limbeck.losses import IGNORE
from limbeck.registry import register

Message = dict[str, str]
ROLES = ("system", "user", "assistant", "tool")


@register("data")
def chat(
    *,
    path: Path,
    tokenizer_path: Path,
    test_path: Path | None = None,
    context: int = 512,
    val_fraction: float = 0.05,
    test_fraction: float = 0.1,
    only_last: bool = False,
    system: str | None = None,
    licence: str | None = None,
) -> Data:
    """Conversations from JSON lines, in the form that a chat model was trained with.

    A line has ``messages`` (a list of ``role`` and ``content``), or ``instruction``, ``output`` and perhaps ``input``
    and ``history`` (Alpaca's fields), or ``prompt`` and ``completion``. The text of a row is what the tokenizer's chat
    template makes of it, so no token that the template does not write (a second beginning of the text, say) gets in.
    What the assistant says is learnt, with the mark that ends its turn; all else is prompt.

    Rows are padded to ``context``; longer ones are cut, and dropped where no learnt token is left. How many were
    dropped is in ``Data.extra["dropped"]``.

    Args:
        path: .jsonl or .jsonl.gz.
        tokenizer_path: a folder with a tokenizer and its chat template.
        test_path: a file of its own for the test part.
        context: tokens in a row.
        val_fraction, test_fraction: shares of the lines, taken from the end.
        only_last: learn the last turn alone.
        system: put this before conversations that have no system message.
        licence: of the text, as its owner states it.

    Raises:
        UserError: a file, a field or the chat template is missing; a line is no conversation that ends with the
            assistant; or the template does not keep what it wrote when a turn is added, so that nobody could say
            which tokens are the assistant's.
    """
    if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise UserError("data 'chat': val_fraction and test_fraction must be >= 0 and leave some lines to train on")
    words = tokenizers.load_tokenizer(tokenizer_path)
    if not getattr(words, "chat_template", None):
        says = f"the tokenizer at {tokenizer_path} has no chat template"
        raise UserError(f"data 'chat': {says}; use one of a chat model, or data 'text' with prompts and completions")
    spec = DataSpec(
        task="language",
        shape=(context,),
        vocab_size=len(words),
        tokenizer_hash=tokenizers.tokenizer_hash(words),
        licence=licence,
    )
    lines = [messages_of(row, f"{path} line {n}", system) for n, row in json_lines(path)]
    held_out = 0.0 if test_path else test_fraction
    a, b = (round(len(lines) * share) for share in (1 - val_fraction - held_out, 1 - held_out))
    parts = {"train": lines[:a], "val": lines[a:b], "test": lines[b:]}
    if test_path:
        parts["test"] = [messages_of(row, f"{test_path} line {n}", system) for n, row in json_lines(test_path)]
    rows, dropped, first = {}, 0, 0
    for name, conversations in parts.items():
        if conversations:
            rows[name] = chat_rows(conversations, first, spec, words, only_last)
            dropped += len(conversations) - len(rows[name])
        first += len(conversations)
    if not rows.get("train") or not len(rows["train"]):
        raise UserError(f"data 'chat': {path} has no conversation to train on that fits into {context} tokens")
    extra = {"tokenizer": words, "dropped": dropped}
    return Data(spec, train=rows["train"], val=rows.get("val"), test=rows.get("test"), extra=extra)


def messages_of(row: Mapping[str, Any], where: str, system: str | None = None) -> list[Message]:
    """The conversation of a line, from whichever of the three layouts it has.

    Raises:
        UserError: it has none of them, a message is not one, or the assistant does not have the last word.
    """
    if "messages" in row:
        found = _checked(row["messages"], where)
    elif "instruction" in row:
        found = _alpaca(row, where)
    elif "prompt" in row:
        found = _turn(row.get("prompt"), row.get("completion"), where)
    else:
        had = ", ".join(sorted(row)) or "nothing"
        raise UserError(f"{where}: no conversation: expected messages, instruction or prompt; the line has {had}")
    if not found or found[-1]["role"] != "assistant":
        raise UserError(f"{where}: the conversation must end with the assistant, whose words are learnt")
    if system is not None and found[0]["role"] != "system":
        found = [{"role": "system", "content": system}, *found]
    return found


def chat_rows(
    conversations: Sequence[list[Message]], first: int, spec: DataSpec, words: Any, only_last: bool = False
) -> TokenRows:
    """One row per conversation, cut at the context; a row's id is its number over all parts."""
    context = spec.shape[0]
    pad = words.eos_token_id if words.pad_token_id is None else words.pad_token_id
    found = [tokens_of(messages, words, only_last) for messages in conversations]
    kept = [i for i, (_, learnt) in enumerate(found) if any(learnt[1:context])]
    input_ids = torch.full((len(kept), context), int(pad or 0), dtype=torch.int32)
    labels = torch.full_like(input_ids, IGNORE)
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, i in enumerate(kept):
        tokens, learnt = (torch.tensor(part[:context]) for part in found[i])
        input_ids[row, : len(tokens)] = tokens.int()
        labels[row, : len(tokens)] = torch.where(learnt, tokens, IGNORE).int()
        mask[row, : len(tokens)] = True
    return TokenRows(input_ids, labels, mask, first + torch.tensor(kept, dtype=torch.int64), spec, words)


def tokens_of(messages: list[Message], words: Any, only_last: bool = False) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and which of them are the assistant's words or the end of its turn.

    Raises:
        UserError: the template fails on the conversation, or rewrites earlier text when a turn is added.
    """
    text, spans = _render(messages, words), []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or (only_last and i + 1 < len(messages)):
            continue
        before, after = _render(messages[:i], words, prompt=True), _render(messages[: i + 1], words)
        if not (after.startswith(before) and text.startswith(after)):
            raise UserError(
                "data 'chat': the chat template rewrites earlier text when a turn is added (it drops reasoning, say), "
                "so the assistant's tokens are not known; use only_last: true, or another template"
            )
        spans.append((len(before), len(after)))
    encoding = words.backend_tokenizer.encode(text, add_special_tokens=False)
    learnt = [any(a <= start and end <= b and end > start for a, b in spans) for start, end in encoding.offsets]
    return list(encoding.ids), learnt


def _render(messages: list[Message], words: Any, prompt: bool = False) -> str:
    if not messages:
        raise UserError("data 'chat': a conversation cannot begin with the assistant, there is no prompt to answer")
    try:
        return str(words.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # templates raise whatever jinja does
        first = str(error).strip().split("\n")[0]
        raise UserError(f"data 'chat': the chat template refuses a conversation: {first}") from error


def _checked(messages: Any, where: str) -> list[Message]:
    if not isinstance(messages, list):
        raise UserError(f"{where}: messages must be a list, got {type(messages).__name__}")
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES or not isinstance(message.get("content"), str):
            raise UserError(f"{where}: message {i} must have a role ({', '.join(ROLES)}) and a text as its content")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _alpaca(row: Mapping[str, Any], where: str) -> list[Message]:
    asked = row["instruction"]
    given = row.get("input")
    turns = [_turn(question, answer, where) for question, answer in row.get("history") or []]
    whole = f"{asked}\n\n{given}" if given else asked
    return [message for turn in [*turns, _turn(whole, row.get("output"), where)] for message in turn]


def _turn(asked: Any, said: Any, where: str) -> list[Message]:
    if not isinstance(asked, str) or not isinstance(said, str):
        raise UserError(f"{where}: a question and its answer must both be text")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
