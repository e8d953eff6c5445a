"""`firstorder keys`: every setting is listed, explained and taken as its example has it."""

import json
import shlex
import subprocess
import sys

import pytest

import firstorder as fo
from firstorder.cli.api.compose import ENGINES, SIM, check_read
from firstorder.cli.api.keys import every, keys, sections
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.settings.described import Setting, default, kind, settings
from firstorder.core.settings.section import Section, within
from firstorder.core.settings.toml import assign, assignment, build, flat

ALL = list(keys())
BESIDE = {"task.files": ["task.kind=math"]}  # what a key is refused without


def test_every_key_of_every_section_is_listed_once():
    models = {name: section.model_dump() for name, section in sections().items()}
    dotted = set(flat(models)) | {"task.options"}  # an empty table has no keys
    assert sorted(row.key for row in ALL) == sorted(dotted)
    assert all(row.meaning for row in ALL)


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.key)
def test_the_example_of_a_key_is_taken(row):
    tree = assign({}, [assignment(text) for text in (*shlex.split(row.example), *BESIDE.get(row.key, ()))])
    ((name, table),) = tree.items()
    built = build(type(sections()[name]), table, name)
    if row.default not in (None, "", (), {}):
        assert built == type(built)() or name == "sim"  # a default changes nothing, but where a section has its own
        assert flat({name: built.model_dump()})[row.key] == row.default


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.key)
def test_a_key_is_read_where_it_is_said_to_act(row):
    for reader, own in (("simulator", SIM), ("engines", ENGINES)):
        if row.acts in (reader, "both"):
            check_read([row.key], own)
        else:
            with pytest.raises(ConfigError, match="is a setting of"):
                check_read([row.key], own)


@pytest.mark.parametrize("row", [row for row in ALL if row.values], ids=lambda row: row.key)
def test_the_values_of_a_key_are_all_that_its_type_takes(row):
    field = {setting.key: setting.field for setting in every()}[row.key]
    model = next(type(section) for name, section in sections().items() if name == row.key.split(".")[0])
    table = assign({}, [(row.key.partition(".")[2], "no such value")])
    with pytest.raises(ConfigError, match=row.key):
        build(model, table, row.key.split(".")[0])
    assert kind(field) == row.takes


@pytest.mark.parametrize(
    ("prefix", "found"),
    [("clip", 6), ("clip.", 6), ("clip.high", 1), ("sim.numerics", 11), ("sim.coldstart", 1), ("sim.coldstart_", 4)],
)
def test_a_prefix_is_a_section_a_key_or_how_keys_begin(prefix, found):
    assert len(keys(prefix)) == found
    assert all(name.startswith(prefix) for name in keys(prefix).names)


@pytest.mark.parametrize(
    ("prefix", "hint"),
    [("clip.hihg", "'clip.high'"), ("clipp", "'clip'"), ("staleness", "'sim.staleness'"), ("vlm", "'vllm'")],
)
def test_a_key_that_is_none_is_refused_with_the_nearest(prefix, hint, capsys):
    assert run(["keys", prefix]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"did you mean {hint}?" in err


def test_one_key_is_explained_with_an_example(capsys):
    assert run(["keys", "clip.high"]) == 0
    said = capsys.readouterr().out
    assert "--set clip.high=0.27" in said
    assert "number in (0, 10^6]: a wider clip never acts" in said
    assert "the simulator and the real engines; read by measure, train, sweep" in said


def test_what_stands_in_brackets_is_no_style(capsys):
    assert run(["keys", "correction"]) == 0
    assert "as of `[ratio]`" in capsys.readouterr().out


def test_json_is_what_python_gives(capsys):
    assert run(["keys", "vllm", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == fo.keys("vllm").to_dict()
    assert document["schema"] == "firstorder.keys/1"
    assert [each["key"] for each in document["keys"]] == fo.keys("vllm").names


def test_keys_need_no_torch():
    script = "import sys; from firstorder.cli.main import run; run(['keys']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


class Inner(Section):
    """A section within another."""

    size: float = within(0.5, "(0, 1)", "it is a share", "how much")
    least: float | None = within(None, "(0, 1)", "it is a share", "unset: none")
    most: float | None = within(None, "(0, 4]", "no more fit", "unset: none")
    name: str | None = None


class Outer(Section):
    """One with another inside, whose defaults are its own."""

    inner: Inner = Inner(size=0.25)
    on: bool = False


def test_a_section_within_another_has_the_defaults_it_has_there():
    found = {each.key: each for each in settings(Outer(), "a.")}
    assert [each.example for each in found.values()] == [
        "a.inner.size=0.25",
        "a.inner.least=0.5",
        "a.inner.most=4",
        "a.inner.name=text",
        "a.on=false",
    ]
    assert isinstance(found["a.on"], Setting)
    assert found["a.on"].choices == [True, False]
    assert [default(value) for value in (None, "", (), "x", (1, 2), False)] == [
        *("unset", "none", "none", "`x`", "[1, 2]", "false")
    ]
