import doctest
import importlib
import pkgutil

import pytest

import firstorder

MODULES = [
    name
    for room in ("core", "sim", "cli", "backends.tasks")
    for _, name, _ in pkgutil.walk_packages(
        [f"{firstorder.__path__[0]}/{room.replace('.', '/')}"], f"firstorder.{room}."
    )
]


@pytest.mark.parametrize("name", MODULES)
def test_every_example_in_a_docstring_runs(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_to_run():
    found = doctest.DocTestFinder(exclude_empty=True)
    examples = [t for name in MODULES for t in found.find(importlib.import_module(name)) if t.examples]
    assert len(examples) >= 3
