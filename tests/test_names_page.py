"""docs/names.md: what is called checked is checked, what is read has its source, and keys of this package exist."""

import re
from pathlib import Path

import pytest

import naming
import tables
from firstorder.backends.peers.rows import ROWS
from firstorder.core.training import diagnostics

PAGE = (Path(__file__).parents[1] / "docs/names.md").read_text()


@pytest.mark.parametrize("name", naming.NAMES)
def test_a_name_has_its_section_and_its_table(name):
    assert f"{{#{name}}}\n" in PAGE
    assert f"<!-- table: named {name} -->" in PAGE


@pytest.mark.parametrize("name", naming.NAMES)
def test_what_is_called_checked_is_a_row_that_calls_the_framework_and_what_is_read_has_a_source(name):
    told = naming.NAMES[name]
    for peer, meaning in told.checked.items():
        assert meaning.row in {row.name for row in ROWS[peer]}
    assert set(told.terms) <= set(naming.KNOWN)
    assert set(told.read) <= set(naming.READ)
    assert not set(told.read) & set(told.checked)


@pytest.mark.parametrize("name", naming.NAMES)
def test_the_keys_of_this_package_are_keys(name):
    here = naming.NAMES[name].here
    keys = [word.split(".") for word in re.findall(r"`(\w+\.\w+)", here)]
    assert all(key in tables.SECTIONS[section].model_fields for section, key in keys)
    for section, key, value in re.findall(r'`(\w+)\.(\w+) = "(\w+)"`', here):
        assert f"`{value}`" in tables.takes(tables.SECTIONS[section].model_fields[key])
    logged = [word for word in re.findall(r"`(\w+)`", here) if word in diagnostics.QUANTITIES]
    assert keys or logged or name == "logs"
