from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from limbeck.report.palette import CATEGORICAL, COLOURS, ROLES, contrast, sentinel, styles

TEXT = ["ink", "muted", "link", "good", "bad", "teacher", "student", "alone", *CATEGORICAL]
# Machado, Oliveira and Fernandes, IEEE TVCG 2009, severity 1.0, on linear RGB
SEEN = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour: str, seen: str | None) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour, as somebody with that colour vision sees it."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    if seen:
        linear = (np.array(SEEN[seen]) @ linear).clip(0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("background", ["paper", "raised", "tint"])
def test_text_can_be_read_on_every_background(background: str, dark: bool) -> None:
    low = {name: contrast(COLOURS[name][dark], COLOURS[background][dark]) for name in TEXT}
    assert {name: round(c, 2) for name, c in low.items() if c < 4.5} == {}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("seen", [None, *SEEN])
def test_teacher_student_and_alone_are_told_apart_by_everybody(seen: str | None, dark: bool) -> None:
    for first, second in combinations(ROLES, 2):
        distance = np.linalg.norm(lab(COLOURS[first][dark], seen) - lab(COLOURS[second][dark], seen))
        assert distance > 15, (first, second, distance)


def test_contrast_is_that_of_the_guidelines() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_sentinels_are_distinct_and_no_real_colour() -> None:
    found = [sentinel(name) for name in COLOURS]
    real = {c for pair in COLOURS.values() for c in pair}
    assert len(set(found)) == len(found)
    assert not real & set(found)


def test_arms_differ_in_colour_or_marker() -> None:
    worn = styles(["teacher", "student", "alone", *(f"arm{i}" for i in range(6))])
    assert len({(s.colour, s.marker) for s in worn.values()}) == len(worn)
    assert worn["teacher"] == ROLES["teacher"]
