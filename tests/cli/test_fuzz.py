"""Ten thousand command lines through parsing and validation, and a hundred to their end: none meets a fault of ours."""

import os
import webbrowser
from types import SimpleNamespace

import fuzz
import pytest
import typer.main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstorder.backends import probe as engines
from firstorder.backends.peers import environment
from firstorder.cli import progress
from firstorder.cli.api import doctor, follow, recommend, selftest, watch
from firstorder.cli.report import explorer, files
from firstorder.core import memory
from firstorder.core.formats import registry
from firstorder.core.runs.folder import RunFolder
from firstorder.sim.claims import settle
from firstorder.sim.config import Numerics
from firstorder.sim.exact import measure
from firstorder.sim.sweep import plan
from firstorder.sim.training import session as training
from firstorder.sim.trials import runs

MEMORY = 1 << 27  # bytes that are said to be free: what fits is enumerated in milliseconds
PLAIN = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.fixture
def furnished(tmp_path_factory):
    """A folder to run in, with the work of every command but the cheap ones replaced by `Worked`."""
    folder = tmp_path_factory.mktemp("fuzz")
    kept = fuzz.furnish(folder)

    def start(recipes, sim, out, config, *, resume, changeable):
        RunFolder(out, config, resume=resume, changeable=changeable)
        raise fuzz.Worked

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(os, "fsync", lambda descriptor: None)  # half of the time
        patch.setattr(typer.main, "get_command", lambda app: fuzz.TABLE)  # which typer makes anew for every call
        patch.setattr(memory, "available", lambda: MEMORY)
        patch.setattr(measure, "_scene", fuzz.work)
        patch.setattr(training, "start", start)
        patch.setattr(plan, "train", fuzz.work)
        patch.setattr(settle, "settle", fuzz.work)
        patch.setattr(settle, "here", fuzz.work)
        patch.setattr(runs, "publish", lambda budget: SimpleNamespace(numerics=Numerics()))
        patch.setattr(runs, "conditions", lambda *, quick: {})
        patch.setattr(files, "run_report", fuzz.work)
        patch.setattr(files, "sweep_report", fuzz.work)
        patch.setattr(explorer, "page", fuzz.work)
        patch.setattr(doctor, "machine", fuzz.work)
        patch.setattr(engines, "measure_all", fuzz.work)
        patch.setattr(progress, "PATIENCE", 3600.0)  # seconds; a slow machine says how long it takes
        patch.setattr(follow, "follow", fuzz.work)
        patch.setattr(watch, "_sizes", fuzz.work)  # of a run that goes on for ever, it waits for ever
        patch.setattr(webbrowser, "open", lambda address: True)
        patch.setattr(recommend, "_exact", fuzz.work)
        patch.setattr(recommend, "answered", fuzz.work)
        patch.setattr(selftest, "self_test", fuzz.work)
        patch.setattr(registry, "MOST", 200)  # files of a folder such as /
        patch.setattr(environment, "build", fuzz.work)
        patch.setattr(environment, "answers", fuzz.work)
        yield folder, kept


@settings(max_examples=10_000, **PLAIN)
@given(line=fuzz.lines())
def test_no_command_line_meets_a_fault_of_ours(furnished, line):
    folder, kept = furnished
    fuzz.check(line)
    fuzz.clean(folder, kept)
    assert os.getcwd() == str(folder)


SMALL = ("sim.vocab=3", "sim.horizon=2", "sim.prompts=2", "sim.width=4", "sim.expert_width=4", "sim.coldstart_steps=2")
SHORT = ("schedule.steps=2", "schedule.prompts=4", "schedule.group_size=4", "schedule.minibatches=2", "sim.draws=2")
TO_THE_END = fuzz.computed({assignment.partition("=")[0] for assignment in (*SMALL, *SHORT)})


@settings(max_examples=100, **PLAIN)
@given(
    command=st.sampled_from(("measure", "measure", "train")),
    recipe=st.sampled_from(fuzz.RUN),
    more=st.lists(st.sampled_from(TO_THE_END), max_size=2),
)
def test_a_command_that_is_done_has_only_numbers_to_show(tmp_path_factory, command, recipe, more):
    folder = tmp_path_factory.mktemp("end")
    chosen = [word for each in (*SMALL, *SHORT, *more) for word in ("--set", each)]
    where = ["--json", str(folder / "found.json")] if command == "measure" else ["--out", str(folder / "run")]
    code, out = fuzz.check([command, recipe, *chosen, *where])
    assert code in (0, 2)
    if code == 0:
        assert not fuzz.NO_NUMBER.search(out), out
        assert any(folder.iterdir())
