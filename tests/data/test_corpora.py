import gzip
import json

import pytest

from limbeck.data.corpora import corpus_file, read_documents, read_pairs
from limbeck.errors import UserError


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path


def test_plain_and_compressed_text_are_the_same(tmp_path):
    words = "Zwölf Boxkämpfer\r\njagen Viktor\n"
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.gz"
    plain.write_bytes(words.encode())
    packed.write_bytes(gzip.compress(words.encode()))
    assert read_documents(plain) == read_documents(packed) == [words]


def test_json_lines_keep_order_and_skip_blank_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n\n{"body": "two\\u2028line"}\n', encoding="utf8")
    assert read_documents(path, "body") == ["one", "two\u2028line"]


def test_pairs(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"q": "1+1", "a": "2"}, {"q": "2+2", "a": "4"}])
    assert read_pairs(path, "q", "a") == [("1+1", "2"), ("2+2", "4")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"texts": "y"}\n', "line 2: no text in field 'text'; the line has texts"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: no text in field 'text'"),
        ("a.jsonl", b"{text}\n", "line 1: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: expected an object"),
        ("a.txt", b"\xff\xfe\xfa", "UTF-8"),
        ("a.txt.gz", b"not gzip", "cannot be read"),
        ("a.pdf", b"x", r"\.txt, \.txt\.gz, \.jsonl"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_documents(path)


def test_a_missing_file_and_a_missing_corpus_say_where_they_were_expected(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such file"):
        read_documents(tmp_path / "no.txt")
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    with pytest.raises(UserError, match="set LIMBECK_DATA to the folder that holds text/tiny"):
        corpus_file("shakespeare", "text/tiny_shakespeare.txt.gz")
