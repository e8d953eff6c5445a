"""Sweeps: which cells train together, what becomes of jobs that fail, and that a cell is the run alone."""

import json
from concurrent.futures import Future

import pytest
import torch

from firstorder.core.errors import DataError, DiskError, WorkerError
from firstorder.core.method.recipe import Recipe
from firstorder.core.runs.folder import RunFolder
from firstorder.core.runs.logs import LOGS
from firstorder.core.settings import toml
from firstorder.sim.config import Sim
from firstorder.sim.sweep import pool
from firstorder.sim.sweep.ensemble import STOPPED, Cell, Ensemble
from firstorder.sim.sweep.plan import PROCESS, ROWS, bytes_of, plan
from firstorder.sim.sweep.pool import ATTEMPTS, run_all
from firstorder.sim.training import session

SETTINGS = ["schedule.steps=4", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=0.01"]
SIM = Sim(vocab=3, horizon=3, prompts=2, pool=4, width=8, expert_width=8, evaluate_every=2, members=2, seed=5)
GIB = 1 << 30


def recipe(name, *more):
    return toml.build(Recipe, toml.override(toml.read(name), [*SETTINGS, "schedule.minibatches=2", *more]))


def cells(*pairs):
    return [
        Cell(name=f"{place:04d}", point={"place": place}, recipe=one, sim=sim) for place, (one, sim) in enumerate(pairs)
    ]


def log(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def agree(one, other):
    """Two run folders hold the same numbers to floating-point tolerance, and the same settings."""
    assert (one / "config.toml").read_bytes() == (other / "config.toml").read_bytes()
    for name in LOGS:
        for a, b in zip(log(one, name), log(other, name), strict=True):
            assert a.keys() == b.keys()
            for key, value in a.items():
                assert value == pytest.approx(b[key], rel=1e-8, abs=1e-10), key


def test_cells_that_share_simulator_and_schedule_train_together(tmp_path):
    other = SIM.model_copy(update={"top_k": 1})
    chosen = cells(
        (recipe("minirl"), SIM),
        (recipe("grpo", "clip.high=0.5"), SIM),
        (recipe("minirl"), other),
        (recipe("minirl-r3", "optimizer.lr=0.1"), SIM),
        (recipe("minirl", "schedule.steps=5"), SIM),
    )
    made = plan(chosen, tmp_path, cores=8, memory=64 * GIB)
    assert [[cell.name for cell in each.cells] for each in made.ensembles] == [
        ["0000", "0001", "0003"],
        ["0002"],
        ["0004"],
    ]
    assert made.workers == 3


def test_an_ensemble_that_would_not_fit_is_split_evenly(tmp_path):
    sixteen = cells(*[(recipe("minirl", f"clip.high={0.1 * (i + 1)}"), SIM) for i in range(16)])
    schedule = sixteen[0].recipe.schedule
    room = bytes_of(SIM, schedule, 6)
    assert bytes_of(SIM, schedule, 7) > room
    made = plan(sixteen, tmp_path, cores=1, memory=room)
    assert [len(each.cells) for each in made.ensembles] == [5, 5, 6]
    assert made.workers == 1
    assert [cell for each in made.ensembles for cell in each.cells] == sixteen


def test_workers_share_the_memory_and_a_cell_always_has_one(tmp_path):
    four = cells(*[(recipe("minirl"), SIM.model_copy(update={"seed": i})) for i in range(4)])
    one = bytes_of(SIM, four[0].recipe.schedule, 1)
    assert plan(four, tmp_path, cores=8, memory=3 * one).workers == 3
    assert plan(four, tmp_path, cores=2, memory=9 * one).workers == 2
    assert plan(four, tmp_path, cores=8, memory=one // 2).workers == 1


def test_a_batch_is_not_made_larger_than_pays(tmp_path):
    wide = SIM.model_copy(update={"members": ROWS // 8 // 3})  # 8 responses an update: three arms, not four
    made = plan(cells(*[(recipe("minirl"), wide)] * 8), tmp_path, cores=1, memory=1 << 50)
    assert [len(each.cells) for each in made.ensembles] == [2, 3, 3]


def test_the_exact_evaluation_counts_unless_it_is_off():
    deep = SIM.model_copy(update={"vocab": 6, "horizon": 7})
    schedule = recipe("minirl").schedule
    assert bytes_of(deep, schedule, 1) > 2 * bytes_of(deep.model_copy(update={"evaluate_every": 0}), schedule, 1)
    assert bytes_of(SIM, schedule, 1) > PROCESS


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four cells of one ensemble, trained together."""
    out = tmp_path_factory.mktemp("sweep")
    four = cells(*[(recipe(name, "clip.high=0.1"), SIM) for name in ("minirl", "minirl-r2", "minirl-r3", "grpo")])
    Ensemble(cells=tuple(four), out=out).run(1)
    return out, four


@pytest.mark.parametrize("place", range(4))
def test_every_cell_is_the_run_alone(place, trained, tmp_path):
    out, four = trained
    four[place].prepare(tmp_path / "alone").run()
    agree(out / "cells" / four[place].name, tmp_path / "alone")


def test_a_finished_ensemble_leaves_its_cells_and_nothing_else(trained):
    out, four = trained
    assert sorted(path.name for path in (out / "cells").iterdir()) == [cell.name for cell in four]
    assert list((out / "ensembles").iterdir()) == []
    assert log(out / "cells" / "0000")[-1]["reward"] != log(out / "cells" / "0003")[-1]["reward"]


def test_the_cells_of_one_policy_hold_numbers_not_lists(tmp_path):
    single = SIM.model_copy(update={"members": 1})
    Ensemble(cells=tuple(cells((recipe("minirl"), single), (recipe("grpo"), single))), out=tmp_path).run(1)
    assert isinstance(log(tmp_path / "cells" / "0001")[0]["reward"], float)


def test_an_ensemble_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    frequent = SIM.model_copy(update={"checkpoint_every": 1})
    job = Ensemble(cells=tuple(cells((recipe("minirl"), frequent), (recipe("grpo"), frequent))), out=tmp_path / "a")
    whole = Ensemble(cells=job.cells, out=tmp_path / "b")
    whole.run(1)
    steps, real = [], RunFolder.append

    def killed(self, entry):
        steps.append(entry.step)
        if entry.step == 2 and len(steps) == 3:
            raise KeyboardInterrupt
        real(self, entry)

    monkeypatch.setattr(RunFolder, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        job.run(1)
    assert job.progress()[1] == 2
    assert not (job.out / "cells").exists()
    job.run(1)
    assert steps == [0, 1, 2, 2, 3]
    for cell in job.cells:
        for name in LOGS:
            assert log(job.out / "cells" / cell.name, name) == log(whole.out / "cells" / cell.name, name)


def test_a_finished_cell_is_not_trained_again(trained, monkeypatch):
    out, four = trained
    monkeypatch.setattr(session, "SimBackend", None)
    Ensemble(cells=tuple(four), out=out).run(1)


class Here:
    """An executor without processes."""

    lost = (EOFError,)
    cores, memory = 1, 64 * GIB

    def start(self, workers):
        self.workers = workers

    def submit(self, job):
        future = Future()
        try:
            future.set_result(job.run(1))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self):
        pass


class Letters:
    """A job that is as good as the worst of its letters, and keeps count of its runs."""

    remedy = "write others"

    def __init__(self, letters, runs, bad, error, mends=99):
        self.title, self.runs, self.bad, self.error, self.mends = letters, runs, bad, error, mends

    def run(self, threads):
        self.runs.append(self.title)
        if set(self.bad) & set(self.title) and self.runs.count(self.title) < self.mends:
            raise self.error

    def split(self):
        half = len(self.title) // 2
        parts = (self.title[:half], self.title[half:]) if half else ()
        return [Letters(part, self.runs, self.bad, self.error, self.mends) for part in parts]


def finished(*arguments):
    runs, done = [], []
    job = Letters("abcd", runs, *arguments)
    try:
        run_all([job], Here(), lambda each, nothing: done.append(each.title))
    except Exception as error:
        return runs, done, error
    return runs, done, None


def test_a_job_whose_process_is_killed_is_run_again():
    assert finished("b", EOFError(), 2) == (["abcd", "abcd"], ["abcd"], None)


def test_a_job_that_is_always_killed_is_narrowed_down_and_named():
    runs, done, error = finished("b", EOFError())
    assert [runs.count(part) for part in ("abcd", "ab", "cd", "a", "b")] == [ATTEMPTS, ATTEMPTS, 1, 1, ATTEMPTS]
    assert sorted(done) == ["a", "cd"]
    assert isinstance(error, WorkerError)
    assert str(error).startswith("b: its process was killed 3 times")
    assert str(error).endswith(f"; {Letters.remedy}")
    assert "--resume" in Ensemble.remedy


def test_a_job_that_refuses_its_data_is_narrowed_down_at_once():
    runs, _, error = finished("b", DataError("not finite"))
    assert [runs.count(part) for part in ("abcd", "ab", "b")] == [1, 1, 1]
    assert str(error) == "not finite"


@pytest.mark.parametrize("error", [DiskError("full"), TypeError("a mistake in the code")])
def test_what_is_not_the_fault_of_a_cell_stops_the_sweep(error):
    assert finished("b", error) == (["abcd"], [], error)


def test_a_cell_that_cannot_be_trained_stops_no_other(tmp_path):
    chosen = cells(*[(recipe("minirl", f"optimizer.lr={lr}"), SIM) for lr in ("0.01", "100", "0.02")])
    done = []
    run_all([Ensemble(cells=tuple(chosen), out=tmp_path)], Here(), lambda each, nothing: done.append(each.title))
    assert len(done) == 3
    assert [(tmp_path / "cells" / cell.name / STOPPED).is_file() for cell in chosen] == [False, True, False]
    assert len(log(tmp_path / "cells" / "0001")) < 4
    for cell in (chosen[0], chosen[2]):
        cell.prepare(tmp_path / "alone" / cell.name).run()
        agree(tmp_path / "cells" / cell.name, tmp_path / "alone" / cell.name)


def test_a_full_disk_is_no_fault_of_the_cells(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    job = Ensemble(cells=tuple(cells((recipe("minirl"), SIM), (recipe("grpo"), SIM))), out=tmp_path)
    with pytest.raises(DiskError, match="No space left on device"):
        job.run(1)
    assert not (tmp_path / "cells").exists()


def test_an_unknown_executor_is_refused():
    with pytest.raises(pool.ConfigError, match="did you mean 'local'"):
        pool.open_executor("locall")
