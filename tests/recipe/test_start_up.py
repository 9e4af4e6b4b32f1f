"""Checking a recipe needs no torch; how long the whole process takes is measured in benchmarks/startup.py."""

from __future__ import annotations

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


def test_a_bad_recipe_is_refused_without_torch(write: Callable[..., Path]) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(write(BAD))], capture_output=True, text=True, check=True)
    count, loaded = done.stdout.split("\n", 1)
    assert int(count) >= 6
    assert loaded.strip() == "False False"


def test_the_schema_needs_no_torch_either() -> None:
    program = "import sys; from limbeck.recipe import recipe_schema; recipe_schema(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
