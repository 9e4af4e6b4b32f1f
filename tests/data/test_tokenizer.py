import json

import pytest

from limbeck.data.tokenizer import (
    PIECE,
    bpe_tokenizer,
    char_tokenizer,
    encode,
    encode_long,
    end_of_text,
    load_tokenizer,
    tokenizer_hash,
)
from limbeck.errors import UserError

TEXT = "To be, or not to be:\n\tthat is  the question — naïve?\r\n 😀 'tis done .\n\n"


@pytest.fixture(scope="module")
def bpe():
    return bpe_tokenizer([TEXT * 20], 300)


def test_characters_decode_to_exactly_the_text_that_went_in():
    words = char_tokenizer([TEXT])
    ids = encode(words, [TEXT])[0]
    assert len(ids) == len(TEXT) and len(words) == len(set(TEXT)) + 3
    assert words.decode(ids) == TEXT


def test_bpe_decodes_to_exactly_the_text_and_knows_unseen_characters(bpe):
    unseen = TEXT + "Ω漢字"
    assert bpe.decode(encode(bpe, [unseen])[0]) == unseen
    assert len(bpe) == 300
    assert len(encode(bpe, [TEXT])[0]) < len(TEXT.encode())


def test_an_unknown_character_is_one_unknown_token():
    words = char_tokenizer(["abc"])
    assert encode(words, ["aΩb"])[0] == [words.get_vocab()["a"], words.unk_token_id, words.get_vocab()["b"]]


def test_a_long_text_gives_the_same_tokens_in_pieces(bpe):
    long = TEXT * (2 * PIECE // len(TEXT) + 1)
    for words in (char_tokenizer([TEXT]), bpe):
        assert encode_long(words, long) == encode(words, [long])[0]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_saved_tokenizer_is_the_same_in_plain_transformers(tmp_path, bpe, kind):
    from transformers import AutoTokenizer

    words = bpe if kind == "bpe" else char_tokenizer([TEXT])
    words.save_pretrained(tmp_path)
    for again in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert again(TEXT)["input_ids"] == encode(words, [TEXT])[0]
        assert again.decode(again(TEXT)["input_ids"]) == TEXT
        assert (again.pad_token_id, again.eos_token_id) == (0, 1)
        assert tokenizer_hash(again) == tokenizer_hash(words)


def test_the_hash_tells_vocabularies_apart_by_content_not_width(bpe):
    assert tokenizer_hash(char_tokenizer(["abc"])) == tokenizer_hash(char_tokenizer(["cba", "a"]))
    assert tokenizer_hash(char_tokenizer(["abc"])) != tokenizer_hash(char_tokenizer(["abd"]))
    assert tokenizer_hash(bpe) == tokenizer_hash(bpe_tokenizer([TEXT * 20], 300))


def test_a_length_limit_saved_with_a_tokenizer_does_not_cut_texts(tmp_path):
    words = char_tokenizer([TEXT])
    words.backend_tokenizer.enable_truncation(4)
    words.backend_tokenizer.enable_padding(length=4)
    words.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]
    assert len(encode(load_tokenizer(tmp_path), [TEXT])[0]) == len(TEXT)


def test_bad_tokenizers_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected a folder with tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="at least 258"):
        bpe_tokenizer([TEXT], 100)
    words = char_tokenizer([TEXT])
    words.eos_token = None
    with pytest.raises(UserError, match="end-of-text"):
        end_of_text(words)
