import re

from limbeck.data.grammar import RULES, generate


def test_every_symbol_is_defined_and_reachable():
    used = {slot for options in RULES.values() for option in options for slot in re.findall(r"\{(\w+)\}", option)}
    assert used | {"text"} == set(RULES)


def test_text_is_the_same_on_every_machine():
    assert generate(60) == '"the five badgers hide every night," said henry. "six less f'
    assert generate(500, seed=1) != generate(500, seed=2)


def test_length_is_exact_and_nothing_is_left_unexpanded():
    text = generate(20_000)
    assert len(text) == 20_000
    assert "{" not in text and "}" not in text
    assert len(set(text)) < 40


def test_verbs_agree_with_their_subject():
    """What makes the corpus worth learning: a model that ignores number is measurably wrong."""
    text = generate(20_000)
    one, many = "|".join(RULES["beast"]), "|".join(RULES["beasts"])
    assert re.search(rf"the ({one}) sleeps", text) and re.search(rf"the ({many}) sleep\b", text)
    assert not re.search(rf"the ({many}) sleeps", text) and not re.search(rf"the ({one}) sleep\b", text)


def test_sums_are_right():
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    for rule in RULES["sum"]:
        a, word, b, _, c = rule.split()
        left = names.index(a) + names.index(b) if word == "and" else names.index(a) - names.index(b)
        assert left == names.index(c)
