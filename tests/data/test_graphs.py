import numpy as np
import pytest
import torch

from limbeck.data.graph_nodes import graph_nodes
from limbeck.data.graphs import Blocks, Graph, Prompts, named_graph
from limbeck.errors import MissingDataError, UserError

SIZES = {"nodes": 400, "classes": 3, "degree": 6.0, "words": 5, "length": 10}


@pytest.fixture
def path():
    """0 - 1 - 2 - 3, and 0 - 4."""
    edges = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 4]])
    parts = torch.tensor([0, 1, 2]), torch.tensor([3]), torch.tensor([4])
    texts = ((0, 1), (2, 2), (3,), (0,), (1, 3))
    return Graph(edges, texts, ("a", "b", "c", "d"), torch.tensor([0, 1, 0, 1, -100]), ("x", "y"), *parts)


def cora(folder, **changed):
    arrays = {
        "edges": np.array([[0, 1, 2], [1, 2, 3]]),
        "x_indptr": np.array([0, 2, 3, 3, 4]),
        "x_indices": np.array([0, 4, 1, 3]),
        "x_shape": np.array([4, 5]),
        "y": np.array([1, 0, -1, 1]),
        "train_idx": np.array([1]),
        "val_idx": np.array([2]),
        "test_idx": np.array([0]),
    }
    (folder / "graphs").mkdir(exist_ok=True)
    np.savez(folder / "graphs" / "cora.npz", **{k: v for k, v in (arrays | changed).items() if v is not None})


def test_rings_are_the_nodes_at_each_distance(path):
    assert path.rings(0, 3) == [[0], [1, 4], [2], [3]]
    assert path.rings(3, 1) == [[3], [2]]


def test_bags_have_each_word_of_a_node_once(path):
    nodes, words = path.bags
    assert list(zip(nodes.tolist(), words.tolist(), strict=True)) == [
        (0, 0), (0, 1), (1, 2), (2, 3), (3, 0), (4, 1), (4, 3)
    ]  # fmt: skip


def test_known_are_the_first_nodes_of_each_class(path):
    assert path.known(1).tolist() == [0, 1]
    assert path.known(0).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="class 'y' has 1 nodes to train on: per_class 2"):
        path.known(2)


def test_a_prompt_tells_of_every_distance_and_asks(path):
    prompts = Prompts(path, near=2, quoted=1, seed=0)
    assert prompts.text(0, 0) == "a b so it is about"
    told = prompts.text(0, 2)
    assert told in (
        "a b near_1 c / b / near_2 d / so it is about",
        "a b near_1 b / c / near_2 d / so it is about",
    )
    assert prompts.answer(1) == "y"
    assert set(told.split()) <= set(prompts.vocabulary(2))


def test_a_prompt_quotes_no_more_than_it_may():
    graph = Blocks(**SIZES, homophily=0.5, clarity=0.5).graph(0, 100, 0)
    told = Prompts(graph, near=2, quoted=3, seed=0).text(7, 1).split()
    quotes = told[told.index("near_1") + 1 : -4]
    assert quotes.count("/") == min(2, len(graph.neighbours[7]))
    assert len(quotes) == 4 * quotes.count("/")


@pytest.mark.parametrize(("homophily", "same"), [(1.0, 1.0), (0.4, 0.4 + 0.6 / 3)])
def test_blocks_have_the_share_of_edges_within_a_class(homophily, same):
    graph = Blocks(**SIZES, homophily=homophily, clarity=1.0).graph(10, 100, 3)
    a, b = graph.edges
    assert float((graph.label[a] == graph.label[b]).float().mean()) == pytest.approx(same, abs=0.05)
    assert graph.edges.shape[1] == pytest.approx(1200, rel=0.05)
    assert (a < b).all()
    assert len(torch.unique(graph.edges, dim=1).T) == graph.edges.shape[1]
    assert [len(part) for part in (graph.train, graph.val, graph.test)] == [290, 10, 100]


def test_a_clear_text_has_words_of_its_class_alone():
    graph = Blocks(**SIZES, homophily=0.5, clarity=1.0).graph(0, 100, 3)
    for text, label in zip(graph.texts, graph.label.tolist(), strict=True):
        assert {graph.words[word].split("_")[0] for word in text} == {f"w{label}"}


def test_a_seed_is_one_graph():
    one, same, other = (Blocks(**SIZES, homophily=0.5, clarity=0.5).graph(0, 50, seed) for seed in (1, 1, 2))
    assert one.texts == same.texts
    assert torch.equal(one.edges, same.edges)
    assert one.texts != other.texts


def test_a_file_is_read_as_the_paper_cut_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    cora(tmp_path)
    graph = named_graph("cora")
    assert graph.texts == ((0, 4), (1,), (), (3,))
    assert graph.label.tolist() == [1, 0, -100, 1]
    assert graph.train.tolist() == [1, 3]  # after the paper's, those of no part
    assert (graph.val.tolist(), graph.test.tolist()) == ([2], [0])
    assert graph.rings(3, 2) == [[3], [2], [1]]


def test_a_file_that_is_no_graph_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match=r"corpus 'citeseer': no file .*citeseer\.npz"):
        named_graph("citeseer")
    cora(tmp_path, edges=None)
    with pytest.raises(UserError, match="no graph with words: there is no array 'edges'"):
        named_graph("cora")
    cora(tmp_path, y=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="without pickle"):
        named_graph("cora")


def test_rows_are_numbers_and_labels_beyond_the_known_are_hidden():
    data = graph_nodes(per_class=2, nodes=60, test_size=20, val_size=5, classes=3)
    batch = data.train.batch(torch.tensor([4, 0]))
    assert batch["input"].tolist() == batch["id"].tolist() == [4, 0]
    assert int((data.train.label >= 0).sum()) == 6
    assert (data.test.label >= 0).all()
    assert (len(data.train), len(data.val), len(data.test)) == (35, 5, 20)
    assert len(graph_nodes(per_class=2, nodes=60, test_size=20, classes=3, unlabelled=False).train) == 6


def test_prompts_are_rows_for_a_language_model():
    data = graph_nodes(form="prompts", per_class=2, nodes=60, test_size=20, classes=3, hops=1)
    words, batch = data.train.tokenizer, data.train.batch(torch.arange(12))
    assert len(data.train) == 12  # six nodes, alone and with their neighbours
    assert len(data.test) == 20
    prompts = Prompts(data.extra["graph"], near=3, quoted=4, seed=0)
    for row, ids in enumerate(batch["input_ids"]):
        node = data.extra["graph"].known(2).tolist()[row // 2]
        whole = f"{prompts.text(node, row % 2)} {prompts.answer(node)} <eos>"
        assert words.decode(ids[batch["attention_mask"][row].bool()]) == whole
        learnt = batch["labels"][row]
        assert words.decode(learnt[learnt >= 0]) == f"{prompts.answer(node)} <eos>"


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="a prompt with its answer has 46 tokens: say context"):
        graph_nodes(form="prompts", context=20)
    with pytest.raises(UserError, match="shares, between 0 and 1"):
        graph_nodes(homophily=1.5)
    with pytest.raises(UserError, match="test_size 700 of 600 nodes"):
        graph_nodes(test_size=700)
    with pytest.raises(UserError, match="must not be negative"):
        graph_nodes(hops=-1)
    with pytest.raises(UserError, match="two classes"):
        graph_nodes(classes=1)
