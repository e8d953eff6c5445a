"""Reports: the numbers of the logs, every run and figure named, and nothing left behind by a mistake."""

import csv
import json
import re
import shutil
import sys
from html import escape

import numpy as np
import pytest

from firstorder.cli.main import run
from firstorder.cli.report.curves import estimate
from firstorder.cli.report.panels import TOGETHER
from firstorder.cli.report.runs import labels
from firstorder.core.method.value import QUANTITIES as CRITIC
from firstorder.core.training.diagnostics import QUANTITIES
from firstorder.sim.trials.statistics import middle_mean

TINY = [
    *("sim.vocab=3", "sim.horizon=2", "sim.prompts=2", "sim.width=4", "sim.expert_width=4", "sim.experts=4"),
    *("sim.evaluate_every=2", "schedule.steps=3", "schedule.prompts=2", "schedule.group_size=4"),
]
FIGURES = (
    *("reward", "errors", "remainder", "kl", "ratios", "entropy", "flips", "receipts", "replay", "gradient", "bias"),
)


def trained(path, recipe, *more):
    settings = [word for each in (*TINY, *more) for word in ("--set", each)]
    assert run(["train", recipe, *settings, "--out", str(path)]) == 0


def table(file):
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def log(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    trained(folder / "one", "grpo")
    trained(folder / "many", "minirl-r3-n2", "sim.members=5")
    return folder


@pytest.fixture(scope="module")
def report(runs):
    out = runs.parent / "reports" / "first"
    assert run(["report", str(runs / "one"), str(runs / "many"), "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(runs, tmp_path):
    """A run folder to spoil."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.toml", "metrics.jsonl", "receipts.jsonl"):
        (folder / name).write_bytes((runs / "one" / name).read_bytes())
    return folder


def test_every_figure_is_there_with_its_data(report):
    expected = {f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg", "csv")}
    assert {file.name for file in report.iterdir()} == expected | {"report.html", "summary.csv", "layers.csv"}
    for name in FIGURES:
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (report / f"{name}.svg").read_bytes()
    assert [path.name for path in report.parent.iterdir()] == ["first"]


@pytest.mark.parametrize("name", FIGURES)
def test_the_data_of_a_figure_are_the_numbers_of_the_log(name, report, runs):
    rows = table(report / f"{name}.csv")
    assert {row["run"] for row in rows} == {"one", "many"}
    for row in rows:
        lines = log(runs / row["run"], "receipts" if name in ("receipts", "replay") else "metrics")
        logged = lines[int(row["step"])][row["quantity"]]
        if row["run"] == "one":
            assert (float(row["value"]), row["low"], row["high"]) == (logged, "", "")
        else:
            assert [float(value) for value in row["each"].split()] == logged
            assert float(row["value"]) == middle_mean(np.array(logged))
            assert min(logged) <= float(row["low"]) <= float(row["high"]) <= max(logged)


def test_no_logged_step_is_left_out(report, runs):
    for name in ("one", "many"):
        steps = [int(r["step"]) for r in table(report / "kl.csv") if (r["run"], r["quantity"]) == (name, "kl")]
        assert steps == [line["step"] for line in log(runs / name)]


def test_exact_values_stand_at_the_steps_that_their_weights_have_behind_them(report):
    done = {(r["quantity"], int(r["step"]), int(r["steps_done"])) for r in table(report / "reward.csv")}
    assert {(q, d) for q, _, d in done if q == "exact/j_pi"} == {("exact/j_pi", 2), ("exact/j_pi", 3)}
    assert all(step == after for quantity, step, after in done if quantity == "reward")


def test_the_page_names_every_run_figure_and_quantity_and_fetches_nothing(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert all(word in page for word in ("one", "many", "grpo", "minirl-r3-n2"))
    assert all(f'<h2 id="{name}">' in page for name in FIGURES)
    assert page.count('src="data:image/svg+xml;base64,') == len(FIGURES)
    assert QUANTITIES["kl"].formula in page
    assert all(row["quantity"] in page for name in FIGURES for row in table(report / f"{name}.csv"))
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) or (report / link).is_file() for link in links)
    assert all(f'id="{link[1:]}"' in page for link in links if link.startswith("#"))


def test_a_level_of_danger_is_a_line_in_the_figure_of_its_quantity_alone(report):
    alarms = {key: q.alarm for key, q in QUANTITIES.items() if q.alarm is not None}
    page = (report / "report.html").read_text(encoding="utf-8")
    drawn = {name: set(re.findall(r'id="alarm ([^"]+)"', (report / f"{name}.svg").read_text())) for name in FIGURES}
    assert drawn == {name: set(alarms) if name == "ratios" else set() for name in FIGURES}
    for key, level in alarms.items():
        assert f"{QUANTITIES[key].source}; alarm above {level:g} there" in page
    assert page.count("; alarm above ") == len(alarms)


def test_the_meaning_of_a_panel_is_that_of_the_run_folder(report, runs):
    known = json.loads((runs / "one" / "quantities.json").read_text())
    page = (report / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r"<code>([^<]+)</code></dt><dd>(.*?)</dd>", page)
    assert len(shown) > 20
    for key, text in shown:
        assert text.startswith(escape(f"{known[key]['formula']} [{known[key]['unit']}]; {known[key]['source']}"))


def test_only_settings_that_differ_are_listed(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert all(f"<code>{key}</code>" in page for key in ("sim.members", "router_replay.mode"))
    assert not any(f"<code>{key}</code>" in page for key in ("sim.vocab", "schedule.steps", "about.name"))


def test_the_table_holds_the_last_values(report, runs):
    one, many = table(report / "summary.csv")
    last = log(runs / "one")[-1]
    assert (one["run"], one["recipe"], one["steps"], one["members"]) == ("one", "grpo", "3", "1")
    assert float(one["final J of π [reward]"]) == last["exact/j_pi"]
    assert float(one["final kl (k1) [nats/token]"]) == last["kl"]
    assert one["final J of π [reward] low"] == ""
    low, value, high = (float(many[f"final J of μ [reward]{end}"]) for end in (" low", "", " high"))
    assert low <= value == middle_mean(np.array(log(runs / "many")[-1]["exact/j_mu"])) <= high
    assert many["final J of μ [reward] step"] == "3"
    page = (report / "report.html").read_text(encoding="utf-8")
    assert f"<td class='number'>{last['exact/j_pi']:.4g}</td>" in page
    assert f"<td class='number'>{value:.4g} [{low:.4g}, {high:.4g}]</td>" in page


def test_the_same_runs_give_the_same_report(report, runs, tmp_path):
    assert run(["report", str(runs / "one"), str(runs / "many"), "--out", str(tmp_path / "again")]) == 0
    for file in report.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_many_runs_are_drawn_side_by_side(copy, tmp_path):
    paths = [tmp_path / f"{i}" / "<run> $x$ & _" for i in range(TOGETHER + 1)]
    for path in paths:
        path.mkdir(parents=True)
        for file in copy.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
    (paths[0] / "receipts.jsonl").unlink()
    assert run(["report", *map(str, paths), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "6/&lt;run&gt; $x$ &amp; _" in page
    assert "<run>" not in page
    assert "the same configuration" in page


def test_a_critic_has_a_figure_where_one_was_trained(runs, report, tmp_path):
    trained(tmp_path / "critic", "minirl-critic", "critic.lr=0.05")
    assert run(["report", str(runs / "one"), str(tmp_path / "critic"), "--out", str(tmp_path / "out")]) == 0
    rows = table(tmp_path / "out/critic.csv")
    assert {(row["run"], row["quantity"]) for row in rows} == {("critic", name) for name in CRITIC}
    lines = log(tmp_path / "critic")
    assert all(float(row["value"]) == lines[int(row["step"])][row["quantity"]] for row in rows)
    assert not (report / "critic.csv").exists()


def test_what_replay_did_is_shown_by_layer_and_what_could_not_act_is_named(report, runs):
    page = (report / "report.html").read_text(encoding="utf-8")
    rows = table(report / "layers.csv")
    assert [(row["run"], row["MoE layer"]) for row in rows] == [
        ("one", "0"),
        ("one", "1"),
        ("many", "0"),
        ("many", "1"),
    ]
    for row in rows:
        for title, name in (("rows replayed", "rows_replayed"), ("rows changed by replay", "rows_changed")):
            lines = log(runs / row["run"], "receipts")
            logged = [line[f"replay/{name}_layer_{row['MoE layer']}"] for line in lines]
            assert float(row[f"{title} [share of tokens]"]) == np.mean(logged)
            assert (float(row[f"{title} [share of tokens]"]) > 0) == (row["run"] == "many")
    assert "Could not act in the schedule: one ratio, clip." in page
    assert '<h2 id="layers">' in page
    receipts = {row["quantity"] for row in table(report / "receipts.csv")}
    assert "clip_upper" in receipts
    assert not any(name.startswith(("replay/", "inert/")) for name in receipts)


def test_a_half_written_last_line_is_left_out(copy, tmp_path, capsys):
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "kl": 0.0')
    assert run(["report", str(copy), "--out", str(tmp_path / "out")]) == 0
    assert {row["step"] for row in table(tmp_path / "out/kl.csv")} == {"0", "1", "2"}


def test_an_unfinished_run_without_evaluations_says_so(copy, tmp_path):
    for name in ("metrics", "receipts"):
        first = (copy / f"{name}.jsonl").read_text().splitlines()[0]
        (copy / f"{name}.jsonl").write_text(first + "\n")
    assert run(["report", str(copy), "--out", str(tmp_path / "out")]) == 0
    (row,) = table(tmp_path / "out/summary.csv")
    assert (row["steps"], row["final J of π [reward]"]) == ("1 of 3", "not logged")


def spoiled_line(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:50], lines[2]]) + "\n")


WRONG = {
    "no such run": (lambda f: (f / "config.toml").unlink(), "is not a run folder"),
    "broken config": (lambda f: (f / "config.toml").write_text("[sim\n"), "is not valid TOML"),
    "no metrics file": (lambda f: (f / "metrics.jsonl").unlink(), "holds no metrics yet"),
    "no whole line": (lambda f: (f / "metrics.jsonl").write_text('{"step": 0'), "is damaged, it holds no whole line"),
    "a spoiled line": (spoiled_line, "is damaged, line 2 is damaged"),
    "a step twice": (
        lambda f: (f / "metrics.jsonl").write_text('{"step": 0, "kl": 1}\n{"step": 0, "kl": 1}\n'),
        "is damaged, line 2 goes back to step 0",
    ),
    "other members": (
        lambda f: (f / "metrics.jsonl").write_text('{"step": 0, "kl": 1}\n{"step": 1, "kl": [1, 2]}\n'),
        "is damaged, line 2 changes the members of kl",
    ),
}


def refused(arguments, remedy, capsys, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert run(["report", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert remedy in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_cannot_be_read_is_one_line(name, copy, tmp_path, capsys):
    spoil, remedy = WRONG[name]
    spoil(copy)
    refused([copy, "--out", tmp_path / "out"], remedy, capsys, tmp_path)


def test_a_place_that_is_taken_is_refused(copy, tmp_path, capsys):
    refused([copy, "--out", copy / "config.toml"], "is a file", capsys, tmp_path)
    refused([copy, "--out", copy], "is not empty", capsys, tmp_path)
    refused([copy, "--out", copy / "config.toml" / "out"], "cannot write --out", capsys, tmp_path)
    refused([copy, copy, "--out", tmp_path / "out"], "given twice", capsys, tmp_path)
    refused([copy], "--out", capsys, tmp_path)


def test_an_empty_folder_is_filled(copy, tmp_path):
    (tmp_path / "out").mkdir()
    assert run(["report", str(copy), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_interruption_leaves_nothing(copy, tmp_path, monkeypatch, capsys):
    from firstorder.cli.report import files

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "page", interrupt)
    assert run(["report", str(copy), "--out", str(tmp_path / "out")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_matplotlib_the_extra_is_named(copy, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused([copy, "--out", tmp_path / "out"], "pip install 'firstorder[report]'", capsys, tmp_path)


def test_the_interval_is_that_of_each_step_alone():
    values = np.random.default_rng(1).normal(size=(3, 8))
    together = estimate(values)
    for i in range(3):
        alone = estimate(values[i : i + 1])
        np.testing.assert_allclose([x[i] for x in together], [x[0] for x in alone], rtol=1e-14)


def test_a_step_at_which_a_member_has_no_value_has_none():
    values = np.array([[1.0, np.nan, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    value, low, high = estimate(values)
    assert np.isnan([value[0], low[0], high[0]]).all()
    assert value[1] == 2.5
    assert 1.0 <= low[1] < 2.5 < high[1] <= 4.0


def test_labels_tell_runs_apart(tmp_path):
    assert labels([tmp_path / "a/x/run", tmp_path / "b/x/run", tmp_path / "c"])[:2] == ["a/x/run", "b/x/run"]


def claims_folder(runs, folder):
    """What `validate --training --out` leaves: a run folder a cell, named by its condition and recipe."""
    for condition, name in (("published-n1", "one"), ("wide-n2", "many"), ("wide-n4", "many")):
        cell = folder / "cells" / f"{condition}-minirl"
        shutil.copytree(runs / name, cell)
        config = (cell / "config.toml").read_text()
        (cell / "config.toml").write_text(re.sub(r'(?m)^name = ".*"', 'name = "minirl"', config, count=1))
    (folder / "claims.toml").write_text("[claims]\n")
    return folder


def test_the_runs_of_the_training_claims_are_drawn_by_condition(runs, tmp_path, capsys):
    folder = claims_folder(runs, tmp_path / "claims")
    assert run(["report", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "3 conditions" in capsys.readouterr().out
    for name in ("exact-j_pi", "kl", "update-entropy", "route-flip_rate", "exact-gradient_error_natural"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = table(tmp_path / "out" / "exact-j_pi.csv")
    assert {row["run"] for row in rows} == {path.name for path in (folder / "cells").iterdir()}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Training claims" in page
    assert page.count("<figure>") == 7


def test_claims_without_a_finished_run_are_refused(tmp_path, capsys):
    (tmp_path / "claims.toml").write_text("[claims]\n")
    assert run(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no finished run yet" in capsys.readouterr().err
