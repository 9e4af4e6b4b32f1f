import pytest

from limbeck.export.words import bibtex, citation, licence_fields, one_line, pipeline_tag, table, without_paths


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC BY-SA 4.0", {"license": "cc-by-sa-4.0"}),
        ("MIT License", {"license": "mit"}),
        (None, {"license": "unknown"}),
        ("not stated", {"license": "unknown"}),
        ("public domain", {"license": "other", "license_name": "public-domain"}),
        ("ACME Internal v2 (ask!)", {"license": "other", "license_name": "acme-internal-v2-ask"}),
        ("©", {"license": "other", "license_name": "custom"}),
    ],
)
def test_a_licence_is_spelt_as_hubs_accept_it(licence, fields):
    assert licence_fields(licence) == fields


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("transformers(path=/home/ann/models/gpt2, task=auto)", "transformers(path=gpt2, task=auto)"),
        ("~/models/gpt2/ is used", "gpt2 is used"),
        (r"C:\Users\ann\models\gpt2", "gpt2"),
        ("see https://arxiv.org/abs/2203.08679", "see https://arxiv.org/abs/2203.08679"),
        ("samples/s and/or mean/std", "samples/s and/or mean/std"),
        ("hub=org/name", "hub=org/name"),
    ],
)
def test_places_on_a_machine_are_not_told(text, clean):
    assert without_paths(text) == clean


def test_text_from_a_recipe_cannot_break_the_layout():
    assert one_line("a\n---\n# b\t c") == "a --- # b c"
    assert table([["x", "y"], ["a|b", "c\nd"]]) == "| x | y |\n|---|---|\n| a\\|b | c d |"


def test_bibtex_is_one_entry_that_latex_reads():
    entry = bibtex({"title": "Fast & {Small}\\ nets_100%", "arxiv": "2203.08679", "year": 2022})
    assert entry.startswith("@misc{arxiv2203.08679,\n") and entry.endswith("}")
    assert r"title = {{Fast \& Small nets\_100\%}}" in entry and "eprint = {2203.08679}" in entry
    assert entry.count("{") == entry.count("}")


def test_a_paper_without_arxiv_is_cited_by_its_address():
    paper = {"title": "Old", "year": 1999, "venue": "NeurIPS", "url": "https://example.org/x"}
    assert citation(paper) == "*Old*, NeurIPS, 1999 ([link](https://example.org/x))"
    assert "@misc{old," in bibtex(paper) and "archivePrefix" not in bibtex(paper)


def test_tasks_have_the_words_of_hubs():
    assert pipeline_tag("classification", (3, 32, 32), "logits") == "image-classification"
    assert pipeline_tag("classification", (30,), "logits") == "tabular-classification"
    assert pipeline_tag("language", (64,), "logits") == "text-generation"
    assert pipeline_tag("generation", (2,), "samples") is None
