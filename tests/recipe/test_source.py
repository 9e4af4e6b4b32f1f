"""Files become trees that know their lines; everything that is no recipe gets one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from limbeck.recipe import RecipeError, load_recipe
from limbeck.recipe.source import SHALLOW, Where, from_plain, parse, read_scalar

HERE = Where("x.yaml")


def tree(text):
    mistakes = []
    node = parse(text, HERE, mistakes)
    assert not mistakes
    return node.plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-3", 0.002), ("1e-4", 1e-4), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5", 0.5), ("3.", 3.0), ("1_000", 1000),
        ("0x10", 16), ("0o17", 15), ("017", 17), ("+3", 3), ("1e400", float("inf")), (".inf", float("inf")),
        ("-.inf", -float("inf")), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
    ],
)  # fmt: skip
def test_scalars_are_read_as_people_mean_them(text, value):
    read = tree(f"a: {text}")["a"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "No", "y", "2024-01-01", "1:30", "12e", "0x", "1.2.3", "e5", "1e"]
)
def test_words_that_yaml_1_1_turns_into_something_else_stay_text(text):
    assert tree(f"a: {text}") == {"a": text}


def test_nan_is_read_as_a_number_so_that_it_can_be_refused():
    assert np.isnan(tree("a: .nan")["a"])


def test_a_reference_is_read_as_the_value_it_spells():
    assert read_scalar("2e-3") == 0.002
    assert read_scalar(" 7 ") == 7
    assert read_scalar("true") is True
    assert read_scalar("word") == "word"
    assert read_scalar("'1'") == "'1'"


def test_every_value_knows_its_line():
    node = parse("a: 1\nb:\n  c: 2\n  d:\n  - 3\n  - {e: 4}\n", HERE, [])
    lines = {".".join(map(str, trail)): n.where.line for trail, n in node.walk()}
    assert lines == {"": 1, "a": 1, "b": 2, "b.c": 3, "b.d": 4, "b.d.0": 5, "b.d.1": 6, "b.d.1.e": 6}


def test_anchors_and_merge_keys_work():
    text = "base: &b {x: 1, y: 2}\nown: {<<: *b, y: 3}\nboth:\n  <<: [{x: 7}, *b]\n  z: *b\n"
    read = tree(text)
    assert read["own"] == {"x": 1, "y": 3}
    assert read["both"] == {"x": 7, "y": 2, "z": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"title: a\n\tb: 1\n", 2, "tab"),
        (b"a:\n\t- 1\n", 2, "tab"),
        (b"a: [1, 2\nb: 3\n", 2, "not YAML"),
        (b"a: 'open\n", 2, "not YAML"),
        (b"title: \xff\xfe\n", 1, "UTF-8"),
        (b"title: a\nb: \xe9\n", 2, "UTF-8"),
        ("a: 1".encode("utf-16"), 1, "UTF-8"),
        (b"", 1, "empty"),
        (b"# only a comment\n", 1, "empty"),
        (b"- 1\n- 2\n", 1, "no map"),
        (b"hello\n", 1, "no map"),
        (b"a: 1\n---\nb: 2\n", 2, "more than one"),
        (b"a: \x00\n", 1, "character"),
        (b"a: &x [*x]\n", 1, "contains itself"),
        (b"a: *nowhere\n", 1, "not YAML"),
        (b"a: " + b"[" * 200_000, 0, "nested"),
        (b"a: " + b"[" * 350 + b"]" * 350, 1, "nested"),
        (b"- " * 20_000 + b"a", 0, "nested"),
        (b"- " * 3_000 + b"a", 1, "nested"),
        (b"a: " + b"[" * 60 + b"]" * 60, 1, "nested"),
        (b'a: "\\UFFFFFFFF"\n', 0, "not YAML"),
        (b"a: %s" % (b"x" * 1_100_000), 0, "larger"),
    ],
)
def test_what_is_no_recipe_gets_one_line(wrong, content, line, says):
    (mistake,) = wrong(content)
    assert mistake.file == "toy.yaml"
    assert mistake.line == line
    assert says in mistake.message
    assert len(str(mistake).splitlines()) == 1


@pytest.mark.parametrize("text", ["a: {b: [1, 2e-3]} # c\nd: &x 'q'\ne: *x", "a:\n- |\n  two\n  lines\n- off\n- 010"])
def test_a_long_text_is_read_like_a_short_one(text):
    assert len(text) < SHALLOW
    assert tree(text + "\n" + "#" * SHALLOW) == tree(text)


def test_many_aliases_of_aliases_are_refused_and_not_expanded(wrong):
    rows = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (mistake,) = wrong("\n".join(rows))
    assert "values" in mistake.message


def test_duplicate_keys_and_tags_are_told_with_all_other_mistakes(wrong):
    found = wrong(
        """\
        title: a
        title: b
        seed: !!python/object/apply:os.system [ls]
        seeed: 1
        data: {name: toy_data, rows: !!int x}
        student: {name: toy_net, width: 1, width: 2}
        method: {name: toy_plain}
        ? [1, 2]
        : 3
        """
    )
    says = {(m.line, m.path): m.message for m in found}
    assert "twice" in says[2, "title"]
    assert "twice" in says[6, "student.width"]
    assert "valid int" in says[5, "data.rows"]
    assert "no 'seeed'" in says[4, "seeed"]
    assert any("a key must be a word" in m for m in says.values())


def test_tags_make_no_objects(wrong):
    (mistake,) = [m for m in wrong("seed: !!python/name:os.system\n") if m.path == "seed"]
    assert "not allowed" in mistake.message


def test_a_missing_file_is_named_with_the_nearest_one(write):
    write(name="distil.yaml")
    with pytest.raises(RecipeError, match=r"^distill\.yaml: there is no such file; did you mean 'distil\.yaml'\?$"):
        load_recipe("distill.yaml")
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe("nowhere/at/all.yaml")


def test_a_folder_is_no_recipe(write, tmp_path):
    write()
    with pytest.raises(RecipeError, match="folder"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError):
        load_recipe("bad\0name.yaml")


def test_a_byte_order_mark_and_windows_line_ends_are_fine(load):
    text = """title: A toy
data: {name: toy_data}
student: {name: toy_net, width: 8}
method: toy_plain
"""
    assert load(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()).title == "A toy"


def test_mappings_take_plain_values_of_python_and_numpy():
    mistakes = []
    given = {"a": np.float32(0.5), "b": np.int64(3), 1: (1, 2), "p": Path("x"), "n": None}
    assert from_plain(given, HERE, mistakes).plain() == {"a": 0.5, "b": 3, "1": [1, 2], "p": "x", "n": None}
    assert not mistakes


def test_what_is_no_plain_value_is_named():
    mistakes = []
    from_plain({"a": {"b": object()}, "c": "\ud800"}, HERE, mistakes)
    assert [(m.path, m.message.split(":")[0]) for m in mistakes] == [
        ("a.b", "a object is not a plain value"),
        ("c", "is not valid text"),
    ]


def test_a_mapping_that_contains_itself_is_refused():
    given = {"title": "x"}
    given["data"] = given
    with pytest.raises(RecipeError, match="nested"):
        load_recipe(given)
