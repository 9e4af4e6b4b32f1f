import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data import load_data
from limbeck.data.features import Category, Quantity
from limbeck.data.table import read_csv
from limbeck.errors import UserError
from limbeck.registry import Block

REAL = os.environ.get("LIMBECK_DATA")
HEADER = "age,city,income,bought"


def lines(n=20):
    return [f"{20 + i},{'Rome' if i % 3 else 'Oslo'},{1000.5 * i},{'yes' if i % 2 else 'no'}" for i in range(n)]


def csv(tmp_path, rows, header=HEADER, name="t.csv", **arguments):
    path = tmp_path / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf8")
    return load_data(Block("csv", {"path": path, "target": "bought", **arguments}))


def everything(source):
    return source.batch(torch.arange(len(source)))


def test_numbers_are_standardised_by_the_train_rows_alone(tmp_path):
    data = csv(tmp_path, lines(), test_fraction=0.25)
    assert (len(data.train), len(data.test)) == (15, 5)
    assert data.extra["features"] == ["age", "city=Oslo", "city=Rome", "income"]
    assert data.spec.shape == (4,) and data.spec.class_names == ("no", "yes")
    train = everything(data.train)["input"]
    for column in (0, 3):
        assert train[:, column].mean().abs() < 1e-6
        assert (train[:, column].std(unbiased=False) - 1).abs() < 1e-5
    test = everything(data.test)["input"]
    assert test[:, 0].mean().abs() > 1e-4
    ratio = (train[1, 3] - train[0, 3]) / (train[1, 0] - train[0, 0])
    assert ((test[1, 3] - test[0, 3]) / (test[1, 0] - test[0, 0]) - ratio).abs() < 1e-4, "the same scale"
    assert set(map(tuple, train[:, 1:3].tolist())) == {(0.0, 1.0), (1.0, 0.0)}


def test_missing_values_are_flagged_and_unknown_texts_are_zero(tmp_path):
    train = ["1,a,0", "3,b,1", "?,NA,0", "5,a,1", ",b,1"]
    test = ["3,c,0", "nan,a,1"]
    (tmp_path / "test.csv").write_text("\n".join(["x,c,bought", *test]))
    data = csv(tmp_path, train, "x,c,bought", test_path=tmp_path / "test.csv")
    assert data.extra["features"] == ["x", "x missing", "c=a", "c=b", "c=missing"]
    got = {y["id"].item(): y["input"][0].tolist() for y in (data.train.batch(torch.tensor([i])) for i in range(5))}
    expected = [[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 1, 0]]
    assert sorted(v[1:] for v in got.values()) == sorted(expected)
    assert sorted(round(v[0], 4) for v in got.values()) == [-1.2247, 0.0, 0.0, 0.0, 1.2247]
    assert everything(data.test)["input"].tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_the_delimiter_is_found(tmp_path, delimiter):
    rows = [line.replace(",", delimiter) for line in lines()]
    assert csv(tmp_path, rows, HEADER.replace(",", delimiter)).spec.shape == (4,)


def test_quotes_byte_marks_and_gzip(tmp_path):
    text = '\ufeff"a","b, c",bought\n1,"x, y",no\n2,"z\nw",yes\n3,"x, y",no\n4,"x, y",yes\n5,"x, y",yes\n'
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    data = load_data(Block("csv", {"path": path, "target": "bought"}))
    assert data.extra["features"][0] == "a" and "b, c=x, y" in data.extra["features"]


def test_codes_can_be_named_categories_and_columns_chosen(tmp_path):
    rows = [f"{i % 3},{i},{i % 2}" for i in range(12)]
    data = csv(tmp_path, rows, "code,id,bought", categorical=["code"], drop=["id"])
    assert data.extra["features"] == ["code=0", "code=1", "code=2"]
    assert csv(tmp_path, rows, "code,id,bought", columns=["id"]).extra["features"] == ["id"]


def test_a_class_called_none_is_a_class(tmp_path):
    data = csv(tmp_path, [f"{i},{'none' if i % 2 else 'some'}" for i in range(10)], "x,bought")
    assert data.spec.class_names == ("none", "some")


@pytest.mark.parametrize(
    ("rows", "header", "arguments", "says"),
    [
        (lines(), HEADER, {"target": "bougth"}, "no column 'bougth'; did you mean 'bought'"),
        (lines(), HEADER, {"columns": ["agee"]}, "did you mean 'age'"),
        (lines(), HEADER, {"columns": ["age", "bought"]}, "predicted from itself"),
        (lines(), HEADER, {"drop": ["age", "city", "income"]}, "no column left"),
        (lines(), HEADER, {"test_fraction": 1.5}, "sum below 1"),
        ([], HEADER, {}, "has no rows"),
        ([], "", {}, "has no rows"),
        (["1,2,3"], HEADER, {}, "line 2: 3 cells, but the header has 4"),
        (lines(), "age,age,income,bought", {}, "more than one column called 'age'"),
        (["1,a,2,yes"] * 4, HEADER, {}, "every label of the train split is 'yes'"),
        ([*lines(), "1,a,2,"], HEADER, {}, "line 22: the target 'bought' is missing"),
        ([*lines(30), "old,a,2,yes"], HEADER, {}, "column 'age' is numeric, but line 32 has 'old'"),
        ([*lines(30), "inf,a,2,yes"], HEADER, {}, "column 'age' is infinite in line 32"),
        ([f"a{i},b,1,{i % 2}" for i in range(150)], HEADER, {}, "has 120 different texts"),
        ([f"1,b,1,{i + 0.5}" for i in range(20)], HEADER, {}, "is the quantity 0.5"),
        ([f"1,b,1,k{i}" for i in range(1200)], HEADER, {}, "1200 different values"),
    ],
)
def test_a_bad_table_gives_one_clear_error(tmp_path, rows, header, arguments, says):
    with pytest.raises(UserError, match=says):
        csv(tmp_path, rows, header, **arguments)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "people.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(UserError, match=r"did you mean '.*people.csv'"):
        read_csv(tmp_path / "peple.csv")
    with pytest.raises(UserError, match="as UTF-8"):
        read_csv(tmp_path / "people.csv")
    (tmp_path / "bad.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        read_csv(tmp_path / "bad.csv.gz")
    (tmp_path / "nul.csv").write_text("a,b\n" + "x" * 200000 + ",1\n")
    with pytest.raises(UserError, match="line 2 cannot be read"):
        read_csv(tmp_path / "nul.csv")


def test_json_lines(tmp_path):
    rows = [
        {"x": i, "ok": i % 3 == 0, "kind": "a" if i % 2 else None, "y": "p\u2028q" if i % 2 else "n"} for i in range(10)
    ]
    del rows[4]["x"]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n", encoding="utf8")
    data = load_data(Block("jsonl", {"path": path, "target": "y", "test_fraction": 0.2}))
    assert data.spec.classes == 2 and (len(data.train), len(data.test)) == (8, 2)
    assert data.extra["features"][-2:] == ["kind=a", "kind=missing"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"x": 1, "y": 0}\n{"x": 1,\n', "line 2 is not JSON"),
        ("[1, 2]\n", "line 1: expected an object"),
        ('{"x": [1], "y": 0}\n', "'x' holds a list"),
        ("\n\n", "has no rows"),
    ],
)
def test_bad_json_lines(tmp_path, text, says):
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        load_data(Block("jsonl", {"path": path, "target": "y"}))


def test_the_fingerprint_follows_the_cells(tmp_path):
    base = csv(tmp_path, lines()).train.fingerprint
    assert csv(tmp_path, lines()).train.fingerprint == base
    assert csv(tmp_path, [*lines()[:-1], "39,Rome,0,yes"]).train.fingerprint != base


def test_encoders_by_hand():
    quantity = Quantity.fit("q", np.array([1.0, 3.0, np.nan]))
    assert (quantity.mean, quantity.std) == (2.0, 1.0)
    np.testing.assert_allclose(quantity.encode(np.array([5.0, np.nan])), [[3.0, 0.0], [0.0, 1.0]])
    assert Quantity.fit("q", np.array([2.0, 2.0])).encode(np.array([2.0])).tolist() == [[0.0]], (
        "a constant column divides by 1"
    )
    assert Quantity.fit("q", np.array([np.nan])).encode(np.array([np.nan])).tolist() == [[0.0, 1.0]]
    category = Category.fit("c", ["b", "a", None, 3.0], 10)
    assert category.levels == ("3", "a", "b", None)
    assert category.encode(["a", None, "z"]).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


@pytest.mark.skipif(not REAL, reason="LIMBECK_DATA is not set")
def test_real_credit_table():
    path = Path(REAL) / "tabular" / "german_credit.csv.gz"
    data = load_data(Block("csv", {"path": path, "target": "class-label"}))
    assert len(data.train) + len(data.test) == 1000 and data.spec.classes == 2
