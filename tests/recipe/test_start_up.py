"""Checking a recipe answers at once: no torch, and less than half a second for the whole process."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BAD = """\
title: x
data: {name: digitz}
student: {name: cnnn, widht: 3}
teacher: {name: mlp}
method: {name: dkd, temprature: 4}
train: {optimizer: {name: adamv}, epoch: 3}
evaluate: [acuracy]
"""

PROGRAM = """\
import sys
from limbeck.recipe import RecipeError, load_recipe
try:
    load_recipe(sys.argv[1])
except RecipeError as error:
    print(len(error.mistakes))
print('torch' in sys.modules, 'pydantic' in sys.modules)
"""


def test_a_bad_recipe_is_refused_fast_and_without_torch(write: Callable[..., Path]) -> None:
    command = [sys.executable, "-c", PROGRAM, str(write(BAD))]
    seconds = []
    for _ in range(3):  # processor time, and the best of three: other processes share the machine
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        count, loaded = done.stdout.split("\n", 1)
        assert int(count) >= 6
        assert loaded.strip() == "False False"
    assert min(seconds) < 0.5


def test_the_schema_needs_no_torch_either() -> None:
    program = "import sys; from limbeck.recipe import recipe_schema; recipe_schema(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
