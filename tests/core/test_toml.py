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
    file.write_text(toml.source("minirl"), encoding="utf-8")
    assert toml.read(str(file)) == toml.read("minirl")
    assert toml.shipped() == sorted(toml.shipped())


def test_a_misspelt_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="no recipe or file 'minirll'; did you mean 'minirl'"):
        toml.read("minirll")


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return lambda name: toml.read(str(folder / f"{name}.toml"))


def test_a_child_says_what_differs_from_its_base_and_from_the_base_of_that(tmp_path):
    (tmp_path / "lab").mkdir()
    write(tmp_path, ours='base = "minirl-r3"\n[clip]\nhigh = 0.5\n[sim]\nvocab = 4\n[sim.numerics]\nkind = "fp8"')
    child = write(tmp_path / "lab", mine='base = "../ours.toml"\n[clip]\nlow = 0.1\n[sim.numerics]\nscale = 0.2')(
        "mine"
    )
    assert child["sim"] == {"vocab": 4, "numerics": {"kind": "fp8", "scale": 0.2}}
    assert child["clip"] == {"kind": "minirl", "low": 0.1, "high": 0.5}
    assert child["router_replay"] == {"mode": "R3"}
    assert "base" not in child


def test_a_child_has_its_own_description_and_is_as_unsupported_as_its_base(tmp_path):
    read = write(
        tmp_path, mine='base = "minirl"\n[about]\nsummary = "mine"', other='base = "pr2"', bare='base="mine.toml"'
    )
    assert read("mine")["about"] == {"summary": "mine"}
    assert "about" not in read("bare")
    assert read("other")["about"] == {"unsupported": toml.read("pr2")["about"]["unsupported"]}


def test_a_mistake_in_a_base_is_refused_where_the_child_is_built(tmp_path):
    read = write(
        tmp_path, a="about = 3\n[clip]\nhihg = 1", b='base = "a.toml"\n[about]\nname = "b"', c='base = "a.toml"'
    )
    with pytest.raises(ConfigError, match=r"unknown key 'clip\.hihg'"):
        toml.build(Recipe, read("b"))
    with pytest.raises(ConfigError, match=r"about: .* got 3"):
        toml.build(Recipe, read("c"))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ('"minrl"', r"base of .*mine\.toml: no recipe or file 'minrl'; did you mean 'minirl'"),
        ('"lab"', r"base of .*mine\.toml: '.*lab' is a folder and a recipe is a file"),
        ('"broken.toml"', r"broken\.toml is not valid TOML"),
        ("3", r"base of .*mine\.toml must be the name of a shipped recipe or of a file, got 3"),
        ('"mine.toml"', r"the bases of .*mine\.toml go round in a circle, .*mine\.toml -> .*mine\.toml; drop one"),
        ('"lab/back.toml"', r"go round in a circle, .*mine\.toml -> .*back\.toml -> .*mine\.toml; drop one"),
    ],
)
def test_a_base_that_is_none_is_refused_in_one_line(tmp_path, base, message):
    (tmp_path / "lab").mkdir()
    write(tmp_path / "lab", back='base = "../mine.toml"')
    with pytest.raises(ConfigError, match=message) as caught:
        write(tmp_path, broken="a = ", mine=f"base = {base}")("mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", toml.shipped())
def test_a_shipped_recipe_stands_on_shipped_ones_and_repeats_nothing_of_them(name):
    own = tomllib.loads(toml.source(name))
    if "base" not in own:
        return
    assert own["base"] in toml.shipped()
    base = toml.flat(toml.read(own.pop("base")))
    repeated = {key for key, value in toml.flat(own).items() if base.get(key) == value}
    assert {key for key in repeated if not key.startswith("about.")} == set()


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
    with pytest.raises(
        ConfigError, match=r"unknown key 'recipe\.clip\.hi'; .*valid keys: budget, cap, high, kind, low"
    ):
        toml.build(Recipe, {"clip": {"hi": 1}}, section="recipe")


def test_an_error_is_one_line():
    with pytest.raises(ConfigError) as caught:
        toml.build(Recipe, {"clip": {"kind": "no", "low": -1}, "extra": 1})
    assert "\n" not in str(caught.value)


def test_a_word_near_nothing_has_no_suggestion():
    assert toml.nearest("zzzz", ["clip", "ratio"]) == ""
