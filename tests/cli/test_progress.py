"""Whatever is asked, there is an answer at once: a refusal, or how far the work has come; and it can be interrupted."""

import signal
import time

import pytest

from firstorder.backends.vllm import client
from firstorder.cli import progress
from firstorder.cli.main import run
from firstorder.core.progress import tell, watched

TINY = ("sim.vocab=3", "sim.horizon=2", "sim.prompts=2", "sim.width=4", "sim.expert_width=4")
PROMOTE = ["promote", "minirl-r3-n2", "--world", "8", "--out", "bundle", "--set", "task.kind=reasoning-gym"]
LONG = {
    "staleness": (["measure", "minirl", "--set", "sim.staleness=10000"], "staleness"),
    "draws": (
        ["measure", "minirl", "--set", "sim.numerics.kind=batch", "--set", "sim.draws=2000"],
        "jackknife",
    ),
    "a cold start": (
        ["train", "minirl", "--set", "sim.coldstart=terse", "--set", "sim.coldstart_steps=1000000", "--out", "run"],
        "cold start",
    ),
    "steps": (["train", "minirl", "--set", "schedule.steps=1000000", "--out", "run"], "train"),
    "a grid": (
        ["sweep", "minirl", "--grid", f"sim.seed={','.join(map(str, range(9000)))}", "--out", "sweep"],
        "cells checked",
    ),
}
REFUSED = {
    "a horizon beyond count": (["measure", "minirl", "--set", "sim.horizon=10000000000000"], "sim.horizon"),
    "members beyond memory": (["train", "minirl", "--set", "sim.members=100000", "--out", "run"], "GiB"),
    "no model to rehearse on": ([*PROMOTE, "--rehearse", "nope"], "--rehearse nope: cannot read nope/config.json"),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", LONG)
def test_long_work_says_how_far_it_is_and_ends_when_it_is_told_to(name, capsys, monkeypatch):
    arguments, what = LONG[name]
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    monkeypatch.setattr(progress, "LONGEST", 0.2)
    lines = []
    monkeypatch.setattr(progress, "print", lambda line, **_: lines.append(line), raising=False)

    def interrupt(*_):
        if any(f"{what} " in line for line in lines):
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        code = run([*arguments, *(word for each in TINY for word in ("--set", each))])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert code == 130
    assert capsys.readouterr().out == ""
    assert any(f"{what} " in line and " of " in line for line in lines)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_take_for_ever_or_fail_late_is_refused_at_once(name, capsys, tmp_path):
    arguments, why = REFUSED[name]
    started = time.perf_counter()
    assert run(arguments) == 2
    assert time.perf_counter() - started < 10  # on a machine at work; what is refused is not begun
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert why in err
    assert list(tmp_path.iterdir()) == []


def test_short_work_shows_nothing_where_there_is_no_terminal(capsys):
    with progress.shown("work"):
        tell("steps", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_lines_come_at_growing_intervals(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.02)
    with progress.shown("work"):
        tell("steps", 1, 1000, "loss 3")
        tell("pieces", 2, 2)
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "firstorder: work: 00:00:00; steps 1 of 1,000, loss 3"
    assert 2 <= len(lines) <= 4  # after 0.02, 0.06, 0.14 and 0.3 s


def test_a_quiet_rank_shows_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    with progress.shown("work", quiet=True):
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_bars_at_once(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress.shown("work"):
        tell("steps [of]", 3, 7, "loss [3]")
        time.sleep(0.2)
        tell("steps [of]", 7, 7)
    out, err = capsys.readouterr()
    assert out == ""
    assert all(word in err for word in ("work", "steps [of]", "3/7", "loss [3]"))


def test_a_server_that_does_not_answer_is_named_while_it_is_waited_for():
    heard = set()
    with pytest.raises(client.ServerError, match="does not answer"), watched(lambda what, *_: heard.add(what)):
        client.ask("http://127.0.0.1:9", "/health", 0.3)
    assert heard == {"waiting for http://127.0.0.1:9"}
