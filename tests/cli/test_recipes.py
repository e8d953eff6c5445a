"""`firstorder recipes`, and recipes with a base wherever a recipe is taken."""

import subprocess
import sys
import tomllib

import pytest

from firstorder.cli.api.compose import compose, grid
from firstorder.cli.api.recipes import CORRECTED, FAMILIES, MU, NOT_RUN, OLD, diff, resolve, table
from firstorder.cli.main import run
from firstorder.core.method.recipe import Recipe, fingerprint
from firstorder.core.settings.toml import build, read, shipped

MINE = 'base = "minirl-r3"\n[clip]\nhigh = 0.5\n[sim]\nvocab = 3\nhorizon = 2\nprompts = 2\nwidth = 4\nmembers = 1\n'
SHORT = ["schedule.steps=1", "schedule.prompts=4", "schedule.group_size=4"]


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(MINE)


@pytest.mark.parametrize("name", shipped())
def test_what_is_printed_reads_back_to_the_same_recipe(name, capsys, tmp_path):
    assert run(["recipes", name]) == 0
    (tmp_path / "copy.toml").write_text(capsys.readouterr().out)
    assert build(Recipe, read("copy.toml")) == build(Recipe, read(name))
    assert diff("copy.toml", name) == {}


def test_a_file_is_printed_with_its_base_and_the_sections_of_a_backend(capsys):
    assert run(["recipes", "mine.toml"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    assert printed["sim"] == tomllib.loads(MINE)["sim"]
    assert (printed["clip"]["kind"], printed["clip"]["high"], printed["about"]["name"]) == ("minirl", 0.5, "custom")
    assert "base" not in printed


def test_two_recipes_are_compared_setting_by_setting(capsys):
    assert run(["recipes", "minirl", "--diff", "mine.toml"]) == 0
    heads, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heads == ["key", "minirl", "mine.toml"]
    assert rows == [
        ["about.scope", '"group"', "unset"],
        ["clip.high", "0.27", "0.5"],
        ["router_replay.mode", '"disabled"', '"R3"'],
        *([f"sim.{key}", "unset", str(value)] for key, value in tomllib.loads(MINE)["sim"].items()),
    ]
    assert run(["recipes", "keep-routing", "--diff", "minirl-r3"]) == 0
    assert capsys.readouterr().out == "keep-routing and minirl-r3 have the same settings\n"


def test_two_files_of_one_name_have_a_column_each(tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.toml").write_text(MINE.replace("0.5", "0.6"))
    assert run(["recipes", "mine.toml", "--diff", "other/mine.toml"]) == 0
    assert capsys.readouterr().out.split() == ["key", "mine.toml", "other/mine.toml", "clip.high", "0.5", "0.6"]


def lines(capsys):
    assert run(["recipes"]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_recipe_is_listed_in_one_line_under_its_family(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    printed, families = lines(capsys), {}
    for line in printed:
        if line.strip() in FAMILIES:
            families[heading := line.strip()] = []
        elif line.split()[:1] and line.split()[0] in shipped():
            families[heading].append(line)
    assert list(families) == list(FAMILIES)
    named = {line.split()[0]: heading for heading, each in families.items() for line in each}
    assert len(named) == sum(map(len, families.values())) == len(shipped())
    for row in table():
        assert named[row.name] == row.family
        assert any(line.split()[0] == row.name and line.rstrip().endswith(row.summary) for line in families[row.family])


def test_a_narrow_terminal_cuts_the_summary_and_says_so(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    printed = lines(capsys)
    assert max(map(len, printed)) <= 70
    assert {line.split()[0] for line in printed if line.strip()} >= set(shipped())
    (gspo,) = (line for line in printed if line.startswith("gspo "))
    assert gspo.rstrip().endswith("…")


@pytest.mark.parametrize(
    ("name", "heading"),
    [("reinforce", "no ratio"), ("vespo", MU), ("minirl-tis", MU), ("tis", CORRECTED), ("dapo", OLD), ("pr2", NOT_RUN)],
)
def test_a_family_is_what_weighs_a_token(name, heading):
    assert {row.name: row.family for row in table()}[name] == heading


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["minirl", "--diff", "grpoo"], "no recipe or file 'grpoo'; did you mean 'grpo'"),
        (["--diff", "grpo"], "--diff compares two recipes, got one"),
        (["wrong.toml"], "unknown key 'clip.hihg'"),
        (["lost.toml"], "base of lost.toml: no recipe or file 'minrl'; did you mean 'minirl'"),
    ],
)
def test_a_recipe_that_is_none_is_refused_in_one_line(arguments, message, tmp_path, capsys):
    (tmp_path / "wrong.toml").write_text("[clip]\nhihg = 1\n")
    (tmp_path / "lost.toml").write_text('base = "minrl"\n')
    assert run(["recipes", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_the_table_holds_every_shipped_recipe_with_its_scopes():
    rows = {row.name: row for row in table()}
    assert list(rows) == shipped()
    assert (rows["gspo"].scope, rows["gspo"].weight_scope) == ("group", "sequence")
    assert rows["pr2"].scope is None


def test_a_recipe_with_a_base_is_taken_wherever_a_recipe_is(capsys):
    composed = compose("mine.toml", ["sim.seed=3"])
    recipe, sim = composed.recipe, composed.sim
    assert (recipe.router_replay.mode, recipe.clip.high, sim.vocab, sim.seed) == ("R3", 0.5, 3, 3)
    _, (cell,) = grid("minirl", ["sim.members=1"], ["recipe=mine.toml"])
    assert fingerprint(cell.recipe) == fingerprint(recipe)
    assert run(["measure", "mine.toml", "--json", "-"]) == 0
    assert '"vocab": 3' in capsys.readouterr().out


def test_a_run_folder_holds_the_resolved_recipe(tmp_path):
    settings = [word for each in SHORT for word in ("--set", each)]
    assert run(["train", "mine.toml", *settings, "--out", "run"]) == 0
    config = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert "base" not in config
    recipe = build(Recipe, {key: value for key, value in config.items() if key != "sim"})
    assert (recipe.router_replay.mode, recipe.clip.kind, recipe.clip.high) == ("R3", "minirl", 0.5)
    assert resolve("run/config.toml") == config | recipe.model_dump()


def test_listing_and_printing_need_no_torch():
    script = (
        "import sys; from firstorder.cli.main import run; run(['recipes']); run(['recipes', 'tis', '--diff', 'dapo']); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
