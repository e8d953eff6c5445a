import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), TEXT)
VALUES = st.one_of(SCALARS, st.lists(st.integers(-9, 9), max_size=4))
KEYS = st.text("abcdefgh_", min_size=1, max_size=6) | TEXT
TREES = st.recursive(st.dictionaries(KEYS, VALUES, max_size=4), lambda t: st.dictionaries(KEYS, t | VALUES, max_size=4))


@settings(max_examples=100, deadline=None)
@given(tree=TREES)
def test_what_is_written_is_read_back(tree):
    # a table without a key leaves no trace unless it is the last of its path
    assert prune(tomllib.loads(toml.dump(tree))) == prune(tree)


def prune(tree):
    pruned = {k: prune(v) if isinstance(v, dict) else v for k, v in tree.items()}
    return {k: v for k, v in pruned.items() if v != {}}


def test_a_control_character_is_escaped():
    assert tomllib.loads(toml.dump({"a": "x\x7f\n\x00"})) == {"a": "x\x7f\n\x00"}


def test_none_is_left_out_and_infinity_is_kept():
    assert tomllib.loads(toml.dump({"a": None, "b": float("inf"), "c": {"d": None, "e": -float("inf")}})) == {
        "b": float("inf"),
        "c": {"e": -float("inf")},
    }


def test_a_shipped_recipe_is_read_by_name_and_a_file_by_path(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(toml.source("grpo"), encoding="utf-8")
    assert toml.read(str(file)) == toml.read("grpo")
    assert toml.shipped() == sorted(toml.shipped())


def test_a_misspelt_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="no recipe or file 'minirll'; did you mean 'minirl'"):
        toml.read("minirll")


@pytest.mark.parametrize("content", [b"a = ", b"[a\n", b"a = '\xff'"])
def test_a_file_that_is_not_toml_is_named(tmp_path, content):
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        toml.read(str(file))


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("a.b=1", {"a": {"b": 1}}),
        ("a.b = 1e-6 ", {"a": {"b": 1e-6}}),
        ("a=true", {"a": True}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ("a=theta/old", {"a": "theta/old"}),
        ('a="1"', {"a": "1"}),
        ("a=x=y", {"a": "x=y"}),
        ("a=", {"a": ""}),
    ],
)
def test_an_override_is_a_toml_value_or_a_bare_string(assignment, expected):
    assert toml.override({}, [assignment]) == expected


def test_overrides_lie_over_a_tree_and_leave_it_alone():
    tree = {"a": {"b": 1, "c": 2}}
    assert toml.override(tree, ["a.b=3", "a.b=4"]) == {"a": {"b": 4, "c": 2}}
    assert tree == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize("assignment", ["a.b", "=1", "a..b=1", ".a=1"])
def test_an_override_without_a_key_or_a_value_is_refused(assignment):
    with pytest.raises(ConfigError, match=r"an override is a\.b=value"):
        toml.override({}, [assignment])


def test_an_override_below_a_value_is_refused():
    with pytest.raises(ConfigError, match="reaches into 'a', which is a value"):
        toml.override({"a": 1}, ["a.b=2"])


def test_an_error_carries_the_section_it_was_found_in():
    with pytest.raises(ConfigError, match=r"unknown key 'recipe\.clip\.hi'; .*valid keys: budget, high, kind, low"):
        toml.build(Recipe, {"clip": {"hi": 1}}, section="recipe")


def test_an_error_is_one_line():
    with pytest.raises(ConfigError) as caught:
        toml.build(Recipe, {"clip": {"kind": "no", "low": -1}, "extra": 1})
    assert "\n" not in str(caught.value)


def test_a_word_near_nothing_has_no_suggestion():
    assert toml.nearest("zzzz", ["clip", "ratio"]) == ""
