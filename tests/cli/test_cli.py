import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from firstorder.cli.main import run
from firstorder.core.settings.toml import shipped
from firstorder.sim.trials import runs

ROOT = Path(__file__).parents[2]
TINY = ["--set", "sim.vocab=3", "--set", "sim.horizon=2", "--set", "sim.prompts=2", "--set", "sim.width=4"]
KEYS = {
    *("j_seq", "j_mu", "j_token", "value_error", "gradient_error", "gradient_error_raw", "update_scale"),
    *("gradient_error_natural", "cosine", "cosine_natural", "replay_bias", "kl_mu_old", "kl_mu_old_replayed"),
    *("entropy", "flip_rate", "tokens_flipped", "nodes", "seconds"),
}

WRONG = {
    "unknown recipe": (["measure", "minirl-r4"], "did you mean 'minirl-r"),
    "unknown claim": (["validate", "--only", "table-2"], "did you mean 'table-1'?"),
    "unknown section": (["measure", "minirl", "--set", "clipp.kind=ppo"], "did you mean 'clip'?"),
    "unknown key": (["measure", "minirl", "--set", "sim.vocabulary=4"], "did you mean 'vocab'?"),
    "a setting of the engines": (
        ["measure", "minirl", "--set", "vllm.dtype=float16"],
        "'vllm.dtype' is a setting of the real engines",
    ),
    "unknown nested key": (["measure", "minirl", "--set", "sim.numerics.scal=1"], "did you mean 'scale'?"),
    "unknown choice": (["measure", "minirl", "--set", "sim.numerics.kind=fp4"], "sim.numerics.kind"),
    "unknown option": (["measure", "minirl", "--jsn", "x"], "--jsn"),
    "no equals sign": (["measure", "minirl", "--set", "sim.seed"], "an override is a.b=value"),
    "section as value": (["measure", "minirl", "--set", "sim=3"], "'sim' must be a section"),
    "value as section": (["measure", "minirl", "--set", "clip.kind.x=3"], "is a value, not a section"),
    "negative": (["measure", "minirl", "--set", "sim.numerics.scale=-0.1"], "got -0.1"),
    "not a number": (["measure", "minirl", "--set", "sim.numerics.scale=nan"], "got nan"),
    "infinite": (["measure", "minirl", "--set", "sim.lr=inf"], "got inf"),
    "a fraction of a token": (["measure", "minirl", "--set", "sim.vocab=3.5"], "got 3.5"),
    "more nodes than memory": (["measure", "minirl", "--set", "sim.horizon=30"], "lower sim.horizon to"),
    "more chosen than experts": (["measure", "minirl", "--set", "sim.top_k=9"], "lower top_k"),
    "more prompts than exist": (["measure", "minirl", "--set", "sim.prompts=99"], "raise sim.prompt_length"),
    "replay on a dense model": (["measure", "minirl-r3", "--set", "sim.top_k=8"], "can never act"),
    "contradiction": (["measure", "gspo", "--set", "ratio.span=token"], "set ratio.span = geometric"),
    "a method that does not fit": (["measure", "pr2"], "cannot be run"),
    "no folder for the result": (["measure", "minirl", "--json", "nowhere/a.json"], "create it first"),
    "no record": (["validate", "--expect", "nothing.json"], "cannot be read"),
    "no shipped recipe": (["recipes", "minirl.toml"], "did you mean 'minirl"),
    "missing recipe": (["measure"], "recipe"),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_and_writes_nothing(name, capsys, tmp_path):
    arguments, remedy = WRONG[name]
    target = [] if "--json" in arguments or arguments[0] == "recipes" else ["--json", "out.json"]
    assert run([*arguments, *target]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert remedy in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_toml_is_named(capsys, tmp_path):
    (tmp_path / "broken.toml").write_text("[clip\n")
    assert run(["measure", "broken.toml"]) == 2
    assert "broken.toml is not valid TOML" in capsys.readouterr().err


def test_measure_writes_what_it_promises(tmp_path):
    assert run(["measure", "minirl-r3", *TINY, "--json", "out.json"]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["schema"] == "firstorder.measure/1"
    assert set(document) >= {"schema", "version", "seconds", "result"}
    assert set(document["result"]) >= KEYS
    assert document["sim"]["vocab"] == 3


def test_json_to_stdout_is_nothing_but_json(capsys):
    assert run(["measure", "minirl", *TINY, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["recipe"]["about"]["name"] == "minirl"
    assert err == ""


def test_the_same_command_gives_the_same_numbers(tmp_path):
    for name in ("a", "b"):
        assert run(["measure", "minirl-r2", *TINY, "--set", "sim.staleness=1", "--json", name]) == 0
    first, second = (json.loads((tmp_path / name).read_text())["result"] for name in ("a", "b"))
    first.pop("seconds"), second.pop("seconds")
    assert first == second


def test_an_inert_part_is_named_once(capsys):
    assert run(["measure", "minirl-r2", *TINY]) == 0
    out = capsys.readouterr().out
    assert out.count("inert: router_replay.mode = R2") == 1


SMALL_RUN = ["--set", "schedule.steps=1", "--set", "schedule.prompts=4", "--set", "schedule.group_size=4"]
EXACT = ["--set", "sim.numerics.kind=exact"]
STRICT = {
    "a clip at N = 1": (
        ["train", "minirl-r3", *TINY, *SMALL_RUN],
        "--strict: clip.kind = minirl: theta equals theta_old",
    ),
    "R2 at N = 1": (
        ["train", "minirl-r2", *TINY, *SMALL_RUN],
        "; router_replay.mode = R2: theta equals theta_old, its own experts; change the recipe or its schedule",
    ),
    "R2 measured at staleness 0": (
        ["measure", "minirl-r2", *TINY],
        "; router_replay.mode = R2: theta equals theta_old",
    ),
    "replay between engines that agree": (
        ["measure", "minirl-r3", *TINY, *EXACT],
        "; router_replay.mode = R3: the engines agree and theta equals theta_old",
    ),
    "engines that differ in a setting that they do not read": (
        ["train", "tis", *TINY, *SMALL_RUN, *EXACT, "--set", "sim.numerics.scale=0.5"],
        "correction.kind = truncate: the engines agree, its ratio is 1",
    ),
    "a cell of a sweep": (
        ["sweep", "minirl-r2", *TINY, *SMALL_RUN, "--grid", "schedule.minibatches=2,1"],
        "--strict: cell 0001 (schedule.minibatches = 1): clip.kind = minirl",
    ),
}


@pytest.mark.parametrize("name", STRICT)
def test_strict_refuses_a_part_that_cannot_act_and_writes_nothing(name, capsys, tmp_path):
    arguments, said = STRICT[name]
    assert run([*arguments, "--strict"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["measure", "minirl-r2", *TINY, "--set", "sim.staleness=1", "--set", "sim.lr=1.0"],
        ["train", "minirl-r2", *TINY, *SMALL_RUN, "--set", "schedule.minibatches=2", "--set", "sim.evaluate_every=0"],
        ["train", "minirl-tis", *TINY, *SMALL_RUN, "--set", "clip.kind=none", "--set", "correction.high=1e9"],
    ],
    ids=["stale", "several updates", "a truncation that is never reached"],
)
def test_strict_lets_pass_what_can_act(arguments):
    assert run([*arguments, "--strict"]) == 0


def test_what_cannot_act_is_named_once_at_the_start_and_recorded(tmp_path, capsys):
    assert run(["train", "minirl-r2", *TINY, *SMALL_RUN, "--set", "schedule.steps=2", "--out", "run"]) == 0
    assert capsys.readouterr().err.count("inert: router_replay.mode = R2") == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "receipts.jsonl").read_text().splitlines()]
    assert [(each["inert/router_replay"], each["inert/clip"], each["inert/ratio"]) for each in lines] == [(1, 1, 0)] * 2
    assert [(each["replay/rows_replayed"], each["replay/rows_changed"]) for each in lines] == [(1, 0)] * 2


def test_the_table_of_a_measurement_shows_what_replay_did(capsys, tmp_path):
    wide = ["--set", "sim.numerics.scale=0.5"]
    assert run(["measure", "minirl-r3", *TINY, *wide, "--json", "out.json"]) == 0
    rows = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines() if " rows_" in line)
    found = json.loads((tmp_path / "out.json").read_text())["result"]["replay"]
    assert {name: float(value) for name, value in rows.items()} == pytest.approx(
        {name: found[name] for name in ("rows_replayed", "rows_changed")}, rel=1e-5
    )
    assert found["rows_changed"] > 0


def test_every_shipped_recipe_is_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in shipped())


def test_validate_settles_one_claim_and_compares_it_with_a_record(capsys, tmp_path):
    chosen = ["validate", "--quick", "--only", "group-mean", "--only", "table-1"]
    assert run([*chosen, "--json", "first.json"]) == 0
    document = json.loads((tmp_path / "first.json").read_text())
    assert [claim["verdict"] for claim in document["claims"]] == ["holds", "holds"]
    assert all({"id", "statement", "source", "kind", "verdict", "measured"} <= set(c) for c in document["claims"])
    assert run([*chosen, "--expect", "first.json"]) == 0
    document["claims"][0]["verdict"] = "fails"
    (tmp_path / "changed.json").write_text(json.dumps(document))
    capsys.readouterr()
    assert run([*chosen, "--expect", "changed.json"]) == 1
    assert f"{document['claims'][0]['id']}: holds, recorded fails" in capsys.readouterr().out


def test_a_theorem_that_fails_is_exit_code_one(monkeypatch, capsys):
    from firstorder.sim.claims import identities

    monkeypatch.setattr(identities, "ratios", lambda scene, mode: scene.responses.mask[None] * 1.01 + 0.0)
    assert run(["validate", "--quick", "--only", "value-identity"]) == 1
    assert "fails" in capsys.readouterr().out


def test_version_and_help(capsys):
    assert run(["--version"]) == 0
    assert run(["--help"]) == 0
    assert run(["measure", "--help"]) == 0


def test_an_interruption_is_quiet(monkeypatch, capsys):
    from firstorder.sim.exact import measure

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", interrupt)
    assert run(["measure", "minirl", *TINY]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_example_recipe_measures():
    assert run(["measure", str(ROOT / "docs/examples/leave-one-out.toml")]) == 0


def test_the_example_script_prints_the_orders_that_the_readme_shows():
    script = ROOT / "docs/examples/slopes.py"
    done = subprocess.run([sys.executable, str(script), "7"], capture_output=True, text=True, check=True)
    found = {words[0]: [float(words[4]), float(words[8])] for words in map(str.split, done.stdout.splitlines())}
    shown = re.findall(r"([\d.]+) and ([\d.]+) for `(minirl[\w-]*)`", (ROOT / "README.md").read_text())
    assert found == {name: pytest.approx([float(value), float(gradient)], abs=0.011) for value, gradient, name in shown}
    assert found["minirl-r3"] == [pytest.approx(2.0, abs=0.3), pytest.approx(1.0, abs=0.15)]


def test_runs_are_kept_for_training_claims_only(tmp_path, capsys):
    assert run(["validate", "--only", "baseline", "--out", str(tmp_path / "runs")]) == 2
    assert "--out keeps the runs of --training; give both or neither" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_other_training_claims_is_refused(tmp_path, capsys):
    (tmp_path / "claims.toml").write_text("[claims]\nseeds = 3\n")
    command = ["validate", "--training", "--quick", "--out", str(tmp_path)]
    assert run(command) == 2
    assert "was run with claims.seeds = 3" in capsys.readouterr().err


def test_runs_of_other_settings_are_not_taken_for_these(tmp_path, monkeypatch, capsys):
    place = runs.Condition(discrepancy="wide", updates=1, lr=0.003)
    monkeypatch.setattr(runs, "conditions", lambda *, quick: {place: ("minirl",)})
    monkeypatch.setattr(runs, "UPDATES", {True: 2})
    command = ["validate", "--training", "--quick", "--only", "training-discrepancy", "--out", str(tmp_path / "kept")]
    assert run(command) == 0
    monkeypatch.setattr(runs, "UPDATES", {True: 3})
    assert run(command) == 2
    assert "schedule.steps = 2, got 3" in capsys.readouterr().err


def test_a_claim_about_training_is_looked_for_among_those(capsys):
    assert run(["validate", "--training", "--only", "training-no-si"]) == 2
    assert "did you mean 'training-no-is'?" in capsys.readouterr().err


def test_the_discrepancy_is_settled_without_training_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "conditions", lambda *, quick: {})
    target = tmp_path / "found.json"
    assert run(["validate", "--training", "--only", "training-discrepancy", "--json", str(target)]) == 0
    (claim,) = json.loads(target.read_text())["claims"]
    assert claim["verdict"] == "not reproduced"
    assert claim["measured"]["flip_rate"] < claim["measured"]["wanted_flip_rate"]
