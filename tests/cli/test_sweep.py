"""`firstorder sweep` from the command line: tables, resuming, killed workers, Ray, refusals and the figures."""

import csv
import json
import os
import re
import signal
import sys
import threading
import time
import tomllib
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from firstorder.cli.main import run
from firstorder.cli.report.runs import read_runs
from firstorder.cli.report.sweeps import OUTCOMES
from firstorder.core.errors import DataError
from firstorder.core.runs.logs import LOGS
from firstorder.sim import optimizer
from firstorder.sim.sweep import pool
from firstorder.sim.trials.statistics import middle_mean

ROOT = Path(__file__).parents[2]
TINY = [
    *("sim.vocab=3", "sim.horizon=2", "sim.prompts=2", "sim.width=4", "sim.expert_width=4", "sim.experts=4"),
    *("sim.evaluate_every=2", "schedule.steps=3", "schedule.prompts=2", "schedule.group_size=4", "sim.seed=5"),
]
GRID = ("recipe=minirl,minirl-r3", "optimizer.lr=0.01,0.1")


def command(out, *more, grid=GRID, settings=("sim.members=4",), recipe="minirl"):
    chosen = [word for each in (*TINY, *settings) for word in ("--set", each)]
    return ["sweep", recipe, *chosen, *(w for axis in grid for w in ("--grid", axis)), "--out", str(out), *more]


class Here:
    """An executor without processes."""

    needs = ("joblib", "sweep")
    lost = (EOFError,)
    cores, memory = 2, 64 << 30

    def start(self, workers):
        pass

    def submit(self, job):
        future = Future()
        try:
            future.set_result(job.run(1))
        except DataError as error:
            future.set_exception(error)
        return future

    def close(self):
        pass


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setitem(pool.EXECUTORS, "local", Here)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep of four cells, four seeds each."""
    out = tmp_path_factory.mktemp("sweeps") / "four"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pool.EXECUTORS, "local", Here)
        assert run(command(out)) == 0
    return out


@pytest.fixture(scope="module")
def report(swept):
    out = swept.parent / "report"
    assert run(["report", str(swept), "--out", str(out)]) == 0
    return out


def log(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def table(file):
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def agree(one, other):
    """Two sweeps hold the same cells and numbers, to floating-point tolerance."""
    names = sorted(path.name for path in (one / "cells").iterdir())
    assert names == sorted(path.name for path in (other / "cells").iterdir())
    for name in names:
        for file in LOGS:
            for a, b in zip(log(one / "cells" / name, file), log(other / "cells" / name, file), strict=True):
                assert a.keys() == b.keys()
                assert all(value == pytest.approx(b[key], rel=1e-8, abs=1e-10) for key, value in a.items())


@pytest.mark.parametrize("place", range(4))
def test_a_cell_holds_what_train_alone_makes_of_its_settings(place, swept, tmp_path):
    recipe, lr = [(r, lr) for r in ("minirl", "minirl-r3") for lr in (0.01, 0.1)][place]
    chosen = [word for each in (*TINY, "sim.members=4", f"optimizer.lr={lr}") for word in ("--set", each)]
    assert run(["train", recipe, *chosen, "--out", str(tmp_path / "alone")]) == 0
    cell = swept / "cells" / f"{place:04d}"
    assert (cell / "config.toml").read_bytes() == (tmp_path / "alone" / "config.toml").read_bytes()
    for name in LOGS:
        for a, b in zip(log(cell, name), log(tmp_path / "alone", name), strict=True):
            assert a.keys() == b.keys()
            assert all(value == pytest.approx(b[key], rel=1e-8, abs=1e-10) for key, value in a.items())


def test_the_table_holds_every_number_of_every_cell_seed_and_step(swept):
    rows = parquet.read_table(swept / "sweep.parquet").to_pylist()
    assert [(r["cell"], r["seed"], r["step"]) for r in rows] == [
        (cell, seed, step) for cell in range(4) for seed in (5, 6, 7, 8) for step in range(3)
    ]
    for row in rows:
        cell = swept / "cells" / f"{row['cell']:04d}"
        config = tomllib.loads((cell / "config.toml").read_text())
        assert (row["recipe"], row["optimizer.lr"]) == (config["about"]["name"], config["optimizer"]["lr"])
        for name in LOGS:
            entry = log(cell, name)[row["step"]]
            entry.pop("step")
            assert {key: row[key] for key in entry} == {key: v[row["seed"] - 5] for key, v in entry.items()}
    assert {r["step"] for r in rows if r["exact/j_pi"] is not None} == {1, 2}


def test_the_summary_holds_every_outcome_of_every_seed(swept):
    steps = parquet.read_table(swept / "sweep.parquet").to_pylist()
    for row in parquet.read_table(swept / "summary.parquet").to_pylist():
        mine = [s for s in steps if (s["cell"], s["seed"]) == (row["cell"], row["seed"])]
        j = [s["exact/j_pi"] for s in mine if s["exact/j_pi"] is not None]
        expected = (j[-1], max(j), max(j) - j[-1], mine[-1]["kl"], mine[-1]["update/entropy"])
        assert tuple(row[each.key] for each in OUTCOMES) == expected
        assert (row["steps"], row["stopped"]) == (3, None)


def test_a_finished_sweep_is_not_trained_again(swept, monkeypatch, capsys):
    monkeypatch.setitem(pool.EXECUTORS, "local", None)  # whatever opened it would fail
    monkeypatch.setattr(pool, "check_executor", lambda name: None)
    before = {file: file.stat().st_mtime_ns for file in (swept / "cells").rglob("*")}
    (swept / "sweep.parquet").unlink()
    assert run(command(swept, "--resume")) == 0
    assert "4 cells, 0 of them trained now" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (swept / "cells").rglob("*")} == before
    assert parquet.read_table(swept / "sweep.parquet").num_rows == 48


def test_only_what_is_missing_is_trained(here, swept, tmp_path, monkeypatch, capsys):
    out = tmp_path / "again"
    assert run(command(out)) == 0
    for name in ("0001", "0002"):
        for file in (out / "cells" / name).iterdir():
            file.unlink()
        (out / "cells" / name).rmdir()
    kept = (out / "cells" / "0000" / "metrics.jsonl").stat().st_mtime_ns
    assert run(command(out, "--resume")) == 0
    assert "4 cells, 2 of them trained now" in capsys.readouterr().out
    assert (out / "cells" / "0000" / "metrics.jsonl").stat().st_mtime_ns == kept
    agree(out, swept)


def test_another_grid_or_other_settings_are_not_resumed(swept, capsys):
    other = [
        (command(swept, "--resume", grid=("recipe=minirl,minirl-r3", "optimizer.lr=0.01,0.2")), "grid.optimizer.lr"),
        (command(swept, "--resume", settings=("sim.members=5",)), "first.minirl-r3.sim.members = 4, got 5"),
        (command(swept), "is not an empty folder"),
        (command(swept / "nothing", "--resume"), "no grid.toml"),
    ]
    for arguments, remedy in other:
        assert run(arguments) == 2
        err = capsys.readouterr().err
        assert remedy in err
        assert err.count("\n") == 1


def test_two_sweeps_do_not_share_a_folder(here, swept, capsys, monkeypatch):
    second = []

    def also(self):
        second.append(run(command(swept, "--resume")))

    monkeypatch.setattr("firstorder.cli.report.tables.write_tables", lambda sweep, out: also(out))
    assert run(command(swept, "--resume")) == 0
    assert second == [2]
    assert "is in use by process" in capsys.readouterr().err


def kill_one_worker(out, killed):
    """SIGKILL the first process that has done a few steps of an ensemble."""
    for _ in range(6000):  # two minutes: a cluster may start slowly
        for lock in (out / "ensembles").glob("*.lock"):
            words = lock.read_text().split()
            if len(words) == 2 and int(words[1]) >= 3 and int(words[0]) != os.getpid():
                os.kill(int(words[0]), signal.SIGKILL)
                killed.append((lock.stem, int(words[1])))
                return
        time.sleep(0.02)


@pytest.mark.parametrize(("executor", "axis"), [("local", "sim.top_k=1,2"), ("ray", "clip.low=0.1,0.2")])
def test_a_killed_worker_costs_nothing_but_its_own_time(executor, axis, tmp_path, monkeypatch, capsys):
    out, killed = tmp_path / "killed", []
    grid, settings = ("clip.high=0.2,0.3", axis), ("schedule.steps=20", "sim.checkpoint_every=2")
    killer = threading.Thread(target=kill_one_worker, args=(out, killed))
    killer.start()
    assert run(command(out, "--executor", executor, grid=grid, settings=settings)) == 0
    killer.join()
    assert len(killed) == 1
    assert "4 cells, 4 of them trained now" in capsys.readouterr().out
    monkeypatch.setitem(pool.EXECUTORS, "local", Here)
    assert run(command(tmp_path / "whole", grid=grid, settings=settings)) == 0
    agree(out, tmp_path / "whole")
    assert not (out / "ensembles").exists()


def test_a_worker_ends_with_its_sweep(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    pool._obey(os.getppid())
    assert not ended.wait(2 * pool.POLL)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert ended.wait(20 * pool.POLL)


def test_a_cell_that_stops_early_is_named_and_stops_no_other(here, tmp_path, monkeypatch, capsys):
    out, real = tmp_path / "wild", optimizer.step

    def wild(parameters, gradient, state, s):
        found, state = real(parameters, gradient, state, s)
        return torch.where(s.lr == 100, torch.inf, found), state

    monkeypatch.setattr(optimizer, "step", wild)
    assert run(command(out, grid=("optimizer.lr=0.01,100",), settings=("sim.members=1",))) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 2 cells stopped early, the first of them 0001 (optimizer.lr = 100.0): " in err
    summary = parquet.read_table(out / "summary.parquet").to_pylist()
    assert [row["final_j"] is None for row in summary] == [False, True]
    assert summary[1]["stopped"] in err
    assert run(["report", str(out), "--out", str(tmp_path / "report")]) == 0
    rows = table(tmp_path / "report" / "final_j.csv")
    assert [row["value"] == "" for row in rows] == [False, True]
    assert "stopped" in (tmp_path / "report" / "final_j.svg").read_text()


def test_an_interruption_says_how_to_go_on(here, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Here, "submit", interrupt)
        assert run(command(tmp_path / "a")) == 130
    assert f"{tmp_path / 'a'}: go on with --resume" in capsys.readouterr().err
    assert run(command(tmp_path / "a", "--resume")) == 0


WRONG = {
    "unknown key": ({"grid": ("clip.hihg=0.2",)}, "cell 0 (clip.hihg = 0.2): unknown key 'clip.hihg'; did you mean"),
    "unknown section": ({"grid": ("clipp.high=0.2",)}, "did you mean 'clip'?"),
    "a section": ({"grid": ("clip=0.2",)}, "'clip' must be a section"),
    "wrong type": ({"grid": ("optimizer.lr=0.1,fast",)}, "cell 1 (optimizer.lr = fast): optimizer.lr: input should be"),
    "no values": ({"grid": ("clip.high=",)}, "axis 'clip.high' has no values"),
    "axis twice": ({"grid": ("clip.high=0.2", "clip.high=0.3")}, "axis 'clip.high' is given twice"),
    "value twice": ({"grid": ("clip.high=1,1.0",)}, "axis 'clip.high' holds 1.0 twice"),
    "axis of the engines": ({"grid": ("vllm.seed=1,2",)}, "'vllm.seed' is a setting of the real engines"),
    "set and axis": ({"grid": ("sim.members=1,2",)}, "'sim.members' is both set and an axis"),
    "unknown recipe": ({"grid": ("recipe=minirl,minirl-r9",)}, "no recipe or file 'minirl-r9'; did you mean"),
    "unknown base": ({"recipe": "minirl-r9"}, "no recipe or file 'minirl-r9'"),
    "a refused cell": (
        {"grid": ("advantage.baseline=group_mean,none", "advantage.std=false,true")},
        "cell 3 (advantage.baseline = none, advantage.std = True): advantage.std needs a group baseline",
    ),
    "a cell that cannot be trained": ({"grid": ("recipe=minirl,trm",)}, "cell 1 (recipe = trm): rejection.kind"),
    "a cell too large": (
        {"grid": ("sim.members=2,999999999",), "settings": ()},
        "cell 1 (sim.members = 999999999): sim.members: must lie in",
    ),
    "replay on a dense model": ({"grid": ("sim.top_k=2,4",), "recipe": "minirl-r3"}, "cell 1 (sim.top_k = 4): "),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_and_writes_nothing(name, tmp_path, capsys):
    chosen, remedy = WRONG[name]
    refused(command(tmp_path / "out", **chosen), remedy, tmp_path, capsys)


def refused(arguments, remedy, tmp_path, capsys):
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert remedy in err
    assert list(tmp_path.iterdir()) == []


def test_an_executor_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    refused(command(tmp_path / "out", "--executor", "rai"), "did you mean 'ray'?", tmp_path, capsys)
    for module, extra, more in (
        ("ray", "ray", ["--executor", "ray"]),
        ("joblib", "sweep", []),
        ("pyarrow.parquet", "sweep", []),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        refused(command(tmp_path / "out", *more), f"pip install 'firstorder[{extra}]'", tmp_path, capsys)
        monkeypatch.undo()


def test_a_recipe_of_an_axis_brings_its_method_and_keeps_the_experiment(here, tmp_path):
    (tmp_path / "mine.toml").write_text(
        "[ratio]\nof = 'none'\n[schedule]\nsteps = 2\nprompts = 8\ngroup_size = 2\n[sim]\nvocab = 3\nhorizon = 2\n"
        "prompts = 2\nevaluate_every = 0\n"
    )
    grid = ["--grid", "recipe=grpo,minirl-r3-n4"]
    arguments = ["sweep", str(tmp_path / "mine.toml"), *grid, "--set", "schedule.prompts=4"]
    assert run([*arguments, "--out", str(tmp_path / "out")]) == 0
    grpo, n4 = (
        tomllib.loads((tmp_path / f"out/cells/{n:04d}/config.toml").read_text(encoding="utf-8")) for n in range(2)
    )
    assert (grpo["about"]["name"], grpo["ratio"]["of"], grpo["aggregation"]["kind"]) == ("grpo", "theta/old", "length")
    assert (n4["router_replay"]["mode"], n4["schedule"]["minibatches"], n4["schedule"]["group_size"]) == ("R3", 4, 16)
    assert (grpo["schedule"]["steps"], grpo["schedule"]["group_size"], grpo["schedule"]["prompts"]) == (2, 2, 4)
    assert n4["sim"] == grpo["sim"]
    assert n4["sim"]["vocab"] == 3


def test_parts_that_cannot_act_are_named_once(here, tmp_path, capsys):
    assert run(command(tmp_path / "out", grid=("recipe=minirl,minirl-r2,grpo",))) == 0
    err = capsys.readouterr().err
    assert err.count("inert in 2 of 3 cells: clip.kind = minirl") == 1
    assert err.count("inert in 1 of 3 cells: router_replay.mode = R2") == 1


def test_the_figures_hold_the_numbers_of_the_cells(report, swept):
    names = {f"{each.key}.{suffix}" for each in OUTCOMES for suffix in ("png", "svg", "csv")}
    assert {file.name for file in report.iterdir()} == names | {"report.html", "summary.csv"}
    for row in table(report / "final_j.csv"):
        j = log(swept / "cells" / row["cell"])[-1]["exact/j_pi"]
        assert [float(value) for value in row["each"].split()] == j
        assert float(row["value"]) == middle_mean(np.array(j))
        assert min(j) <= float(row["low"]) <= float(row["high"]) <= max(j)
    written = re.findall(r"<!-- (-?[\d.e-]+) -->", (report / "final_j.svg").read_text())
    assert set(written) >= {f"{float(row['value']):.3g}" for row in table(report / "final_j.csv")}


def test_the_page_names_every_axis_cell_and_outcome_and_fetches_nothing(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert all(f'<h2 id="{each.key}">' in page and each.unit in page for each in OUTCOMES)
    assert all(word in page for word in ("recipe", "optimizer.lr", "minirl-r3", "0003", "95%"))
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith("data:") or (report / link).is_file() for link in links)


def test_the_same_sweep_gives_the_same_report(report, swept, tmp_path):
    assert run(["report", str(swept), "--out", str(tmp_path / "again")]) == 0
    for file in report.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_an_unfinished_sweep_shows_what_is_to_do(swept, tmp_path, capsys):
    part = tmp_path / "part"
    (part / "cells").mkdir(parents=True)
    (part / "grid.toml").write_bytes((swept / "grid.toml").read_bytes())
    assert run(["report", str(part), "--out", str(tmp_path / "out")]) == 2
    assert "holds no finished cell yet" in capsys.readouterr().err
    (part / "cells" / "0002").symlink_to(swept / "cells" / "0002")
    assert run(["report", str(part), "--out", str(tmp_path / "out")]) == 0
    assert [row["state"] for row in table(tmp_path / "out" / "summary.csv")] == ["to do", "to do", "finished", "to do"]
    assert "to do" in (tmp_path / "out" / "final_j.svg").read_text()


def test_a_sweep_is_reported_alone(swept, tmp_path, capsys):
    cells = [swept / "cells" / name for name in ("0000", "0001")]
    assert run(["report", str(swept), str(cells[0]), "--out", str(tmp_path / "out")]) == 2
    assert "holds many runs and is reported alone" in capsys.readouterr().err
    assert [each.members for each in read_runs(cells)] == [4, 4]


SHAPES = {
    "one value": ("clip.high=0.2",),
    "numbers": ("optimizer.lr=0.001,0.01,0.1",),
    "names": ("recipe=minirl,grpo",),
    "three axes": ("clip.high=0.2,0.3", "optimizer.lr=0.01,0.1", "advantage.std=true,false"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_grid_of_any_shape_has_its_diagram(name, here, tmp_path):
    out = tmp_path / "out"
    assert run(command(out, grid=SHAPES[name], settings=("schedule.steps=1", "sim.members=1"))) == 0
    assert run(["report", str(out), "--out", str(tmp_path / "report")]) == 0
    drawn = (tmp_path / "report" / "final_j.svg").read_text()
    axes = [axis.partition("=")[0] for axis in SHAPES[name]]
    assert all(f"<!-- {axis}" in drawn for axis in axes)
    assert len(table(tmp_path / "report" / "final_j.csv")) == np.prod([axis.count(",") + 1 for axis in SHAPES[name]])
    assert all(row["low"] == "" for row in table(tmp_path / "report" / "final_j.csv"))
