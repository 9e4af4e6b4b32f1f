import json

import pytest
import torch

from limbeck.data.chat import chat, messages_of, tokens_of
from limbeck.data.tokenizer import bpe_tokenizer, char_tokenizer
from limbeck.errors import UserError

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}<|assistant|>...{% else %}"
    "<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK = [
    {"role": "user", "content": "What is 1+1?"},
    {"role": "assistant", "content": "It is 2, naïvely: ½+1½ 👩‍👩‍👧."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


@pytest.fixture(scope="module", params=["char", "bpe"])
def words(request):
    alphabet = "".join(chr(i) for i in range(32, 127)) + "ïé½👩‍👧\n"
    made = (
        char_tokenizer([alphabet])
        if request.param == "char"
        else bpe_tokenizer(["yes it is 2, sure? what is"] * 9, 300)
    )
    made.chat_template = TEMPLATE
    return made


def learnt_text(words, tokens, learnt):
    return words.decode([t for t, kept in zip(tokens, learnt, strict=True) if kept])


def test_only_what_the_assistant_says_is_learnt_with_the_end_of_its_turn(words):
    tokens, learnt = tokens_of(TALK, words)
    assert words.decode(tokens) == words.apply_chat_template(TALK, tokenize=False)
    wanted = "".join(m["content"] + words.eos_token for m in TALK if m["role"] == "assistant")
    assert learnt_text(words, tokens, learnt) == wanted
    tokens, learnt = tokens_of(TALK, words, only_last=True)
    assert learnt_text(words, tokens, learnt) == "Yes." + words.eos_token


def test_no_mark_is_put_around_what_the_template_writes(words):
    tokens, _ = tokens_of(TALK, words)
    assert tokens.count(words.eos_token_id) == len(TALK)


def test_a_template_that_rewrites_the_past_is_refused_but_for_the_last_turn(words):
    kept, words.chat_template = words.chat_template, FORGETFUL
    try:
        with pytest.raises(UserError, match="rewrites earlier text"):
            tokens_of(TALK, words)
        assert learnt_text(words, *tokens_of(TALK, words, only_last=True)) == "Yes."
    finally:
        words.chat_template = kept


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, ["Add.\n\n1 2", "3"]),
        ({"instruction": "And?", "output": "c", "history": [["a", "b"]]}, ["a", "b", "And?", "c"]),
        ({"prompt": "a", "completion": "b"}, ["a", "b"]),
        ({"messages": TALK}, [m["content"] for m in TALK]),
    ],
)
def test_every_layout_of_a_line_is_read(row, says):
    assert [m["content"] for m in messages_of(row, "here")] == says
    assert messages_of(row, "here", "Be kind.")[0] == {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a"}, "expected messages, instruction or prompt; the line has text"),
        ({"messages": "a"}, "must be a list"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "message 0 must have a role"),
        ({"messages": TALK[:1]}, "must end with the assistant"),
        ({"prompt": "a"}, "must both be text"),
    ],
)
def test_a_line_that_is_no_conversation_is_refused_by_its_place(row, says):
    with pytest.raises(UserError, match=f"file line 3: .*{says}"):
        messages_of(row, "file line 3")


def test_rows_are_padded_cut_and_split(words, tmp_path):
    words.save_pretrained(tmp_path / "words")
    lines = [{"prompt": f"What is {i}+1?", "completion": f"{i + 1}"} for i in range(20)]
    lines.append({"prompt": "long " * 99, "completion": "cut away"})
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = chat(path=tmp_path / "talk.jsonl", tokenizer_path=tmp_path / "words", context=64, test_fraction=0.2)
    assert data.extra["dropped"] == 1
    assert len(data.train) + len(data.val) + len(data.test) == 20
    batch = data.train.batch(torch.arange(3))
    for row in range(3):
        there, labels = batch["attention_mask"][row].bool(), batch["labels"][row]
        text = data.extra["tokenizer"].decode(batch["input_ids"][row][there])
        assert text == f"<|user|>What is {row}+1?<eos><|assistant|>{row + 1}<eos>"
        assert data.extra["tokenizer"].decode(labels[labels != -100]) == f"{row + 1}<eos>"
        assert (labels[~there] == -100).all()


def test_a_tokenizer_without_a_template_is_refused(tmp_path):
    char_tokenizer(["ab"]).save_pretrained(tmp_path / "words")
    with pytest.raises(UserError, match="no chat template"):
        chat(path=tmp_path / "talk.jsonl", tokenizer_path=tmp_path / "words")
