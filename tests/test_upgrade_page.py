"""docs/upgrade.md: what is said to be there now is there, what is said to be gone is gone, and old recipes are read."""

import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import firstorder
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe, fingerprint
from firstorder.core.settings.toml import build, overlay, read

PAGE = (Path(__file__).parents[1] / "docs/upgrade.md").read_text()
NAME = r"`firstorder\.([\w.]+)`"
MOVED = re.findall(rf"^\| {NAME}[^|]*\| {NAME} \|$", PAGE, flags=re.MULTILINE)
BEFORE, AFTER = (tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL))


def test_the_page_is_of_this_version():
    assert PAGE.startswith(f"# Upgrade from 0.1.0 to {firstorder.__version__}\n")
    assert len(MOVED) > 60


@pytest.mark.parametrize(("was", "now"), MOVED)
def test_a_module_or_name_that_moved_is_where_the_page_says_and_no_longer_where_it_was(was, now):
    pkgutil.resolve_name(f"firstorder.{now}")
    with pytest.raises((ImportError, AttributeError)):
        pkgutil.resolve_name(f"firstorder.{was}")


def recipe(tables):
    return build(Recipe, overlay(read("minirl"), tables))


def test_the_old_spelling_of_a_rejection_is_the_new_one():
    assert fingerprint(recipe(BEFORE)) == fingerprint(recipe(AFTER))
    assert "rejection" not in BEFORE
    assert "correction" not in AFTER


@pytest.mark.parametrize("old", ["sequence_mask", "geometric_mask", "max_kl", "mean_kl"])
def test_old_kinds_of_a_correction_are_read_as_rejections(old):
    given = {"ratio": {"of": "theta/mu"}, "clip": {"kind": "none"}, "correction": {"kind": old, "high": 2.0}}
    found = recipe(given)
    assert (found.correction.kind, found.rejection.high) == ("none", 2.0)
    assert found.rejection.kind != "none"


@pytest.mark.parametrize(("section", "kind"), [("clip", "second_moment"), ("correction", "router_shift")])
def test_kinds_that_are_gone_are_refused(section, kind):
    with pytest.raises(ConfigError, match=kind):
        recipe({section: {"kind": kind}})
