"""`train --alarm`: said once, written down once, and a run that stops at an alarm goes on."""

import csv
import json
import logging
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from firstorder.cli.api.train import train
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.runs import alarm_table, events
from firstorder.core.runs.alarm import fired
from firstorder.core.runs.folder import RunFolder
from firstorder.core.runs.logs import history
from firstorder.core.training.interrupt import Interrupted

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "alarms.py")))
STEPS = 10
SCHEDULE = {"steps": STEPS, "prompts": 4, "group_size": 4}
SIZES = {"vocab": 3, "horizon": 2, "prompts": 2, "width": 4, "checkpoint_every": 4}
ENTROPY = made.alarm("entropy below 10", quantity="update/entropy", constant=10.0, side="low")
GRADIENT = made.alarm("gradient", quantity="update/grad_norm", of="change", constant=1.0, window=2)
ABSENT = made.alarm("absent", quantity="exact/nothing")


@pytest.fixture
def watched(monkeypatch):
    """Puts alarms in the place of those of the package."""

    def put(*alarms, **regime):
        monkeypatch.setattr(alarm_table, "shipped", lambda: made.table(*alarms, **regime))

    return put


def go(out, alarm="watch", **more):
    return train("minirl", out=out, schedule=SCHEDULE, alarm=alarm, **SIZES, **more)


def written(folder):
    return [json.loads(line) for line in (folder / events.NAME).read_text().splitlines()]


def test_alarms_are_written_as_the_history_of_the_run_says(watched, tmp_path):
    watched(GRADIENT)
    result = go(tmp_path / "run", members=3)
    found = written(tmp_path / "run")
    starts = sorted((e["step"], m) for e in found if e["event"] == "start" for m in e["members"])
    ends = sorted((e["step"], m) for e in found if e["event"] == "end" for m in e["members"])
    alarms = fired(history(tmp_path / "run"), made.table(GRADIENT), 1)
    assert starts == sorted((each.since, each.member) for each in alarms)
    assert ends == sorted((each.until, each.member) for each in alarms if each.until is not None)
    assert starts
    assert ends
    norms = [line["update/grad_norm"] for line in result.steps]
    first = found[0]
    member = first["members"][0]
    step = first["step"]
    mean = (norms[step][member] + norms[step - 1][member]) / 2
    assert first["reading"][0] == pytest.approx(mean / (sum(n[member] for n in norms[:4]) / 4), rel=1e-12)
    assert events.read(tmp_path / "run")[0].quantity == "update/grad_norm"


def test_watching_changes_nothing_of_the_run(watched, tmp_path):
    watched(ENTROPY)
    go(tmp_path / "watched")
    go(tmp_path / "alone", alarm=None)
    for name in ("metrics.jsonl", "receipts.jsonl", "config.toml"):
        assert (tmp_path / "watched" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not (tmp_path / "alone" / events.NAME).exists()


def test_an_alarm_is_said_once_with_how_sure_it_is_and_what_to_change(watched, tmp_path, caplog):
    watched(ENTROPY, ABSENT, length=(1, 1))
    with caplog.at_level(logging.WARNING, logger="firstorder"):
        result = go(tmp_path / "run")
    said = [each for each in caplog.messages if "alarm" in each]
    assert len(said) == 3
    start = next(line for line in said if line.startswith("alarm: entropy below 10, step 3:"))
    assert "below 10; a cause; a remedy (how sure is not known here)" in start
    length = sum(line["response_length"] for line in result.steps[:4]) / 4
    assert any(f"at the beginning response_length {length:.3g} is not within 1 to 1" in line for line in said)
    assert any(line.startswith("alarms that read exact/nothing are off") for line in said)
    caplog.clear()
    watched(ENTROPY)
    with caplog.at_level(logging.WARNING, logger="firstorder"):
        go(tmp_path / "fitted")
    assert "it came before 50% [25%, 75%] of the collapses and in 5% [0%, 10%] of the runs without one" in caplog.text


def test_a_stop_is_saved_and_the_run_goes_on_past_the_same_alarm(watched, tmp_path):
    watched(ENTROPY)
    go(tmp_path / "straight")
    with pytest.raises(Interrupted, match="stopped by an alarm; step 4 follows") as stopped:
        go(tmp_path / "run", alarm="stop")
    assert stopped.value.code == 3
    assert stopped.value.__notes__ == [
        f"{tmp_path / 'run'}: an alarm after step 3, saved; go on with `firstorder resume {tmp_path / 'run'}`"
    ]
    assert [line["step"] for line in history(tmp_path / "run")] == [0, 1, 2, 3]
    go(tmp_path / "run", alarm="stop", resume=True)
    for name in ("metrics.jsonl", "receipts.jsonl", events.NAME):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_the_command_ends_with_its_own_code(watched, tmp_path, capsys):
    watched(ENTROPY)
    words = [w for k, v in SCHEDULE.items() for w in ("--set", f"schedule.{k}={v}")]
    words += [w for k, v in SIZES.items() for w in ("--set", f"sim.{k}={v}")]
    command = ["train", "minirl", *words, "--alarm", "stop", "--out", str(tmp_path / "run")]
    assert run(command) == 3
    told = capsys.readouterr().err
    assert told.count("alarm: entropy below 10") == 1
    assert "an alarm after step 3, saved; go on with `firstorder resume " in told
    assert "interrupted" not in told
    assert run([*command, "--resume"]) == 0
    assert "alarm: entropy" not in capsys.readouterr().err


def test_an_ensemble_stops_when_half_of_its_members_warn(watched, tmp_path):
    watched(GRADIENT)
    straight = go(tmp_path / "straight", members=4)
    on, steps = set(), []
    for each in written(tmp_path / "straight"):
        on = on | set(each["members"]) if each["event"] == "start" else on - set(each["members"])
        steps += [each["step"]] if len(on) >= 2 else []
    assert straight.recipe.schedule.steps > steps[0] + 1
    with pytest.raises(Interrupted) as stopped:
        go(tmp_path / "run", alarm="stop", members=4)
    assert stopped.value.step == steps[0] + 1


def test_after_a_kill_no_alarm_is_written_twice(watched, tmp_path, monkeypatch):
    watched(GRADIENT, ENTROPY)
    go(tmp_path / "straight", members=3)
    add = RunFolder.add

    def killed(self, name, line):
        add(self, name, line)
        if name == "receipts.jsonl" and line["step"] == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "run", members=3)
    go(tmp_path / "run", members=3, resume=True)
    assert (tmp_path / "run" / events.NAME).read_bytes() == (tmp_path / "straight" / events.NAME).read_bytes()


def test_a_run_that_goes_on_unwatched_keeps_the_alarms_up_to_its_checkpoint(watched, tmp_path):
    watched(ENTROPY)
    with pytest.raises(Interrupted):
        go(tmp_path / "run", alarm="stop")
    before = (tmp_path / "run" / events.NAME).read_bytes()
    with (tmp_path / "run" / events.NAME).open("a") as file:
        file.write(before.decode().replace('"step": 3', '"step": 5'))
    go(tmp_path / "run", alarm=None, resume=True)
    assert [each.step for each in events.read(tmp_path / "run")] == [3]


def test_a_word_that_is_neither_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="--alarm must be watch or stop, got 'halt'"):
        go(tmp_path / "run", alarm="halt")
    assert list(tmp_path.iterdir()) == []


def test_a_table_without_alarms_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(alarm_table, "shipped", made.table)
    assert run(["train", "minirl", "--alarm", "watch", "--out", str(tmp_path / "run")]) == 2
    assert "has nothing to watch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_of_alarms_is_refused_by_name(tmp_path):
    (tmp_path / events.NAME).write_text('{"step": 3}\n')
    with pytest.raises(ConfigError, match=r"alarms\.jsonl is damaged, line 1"):
        events.read(tmp_path)
    (tmp_path / events.NAME).write_text('{"step"')
    assert events.read(tmp_path) == []


def test_a_report_shows_the_alarms_in_a_table_and_on_the_curves(watched, tmp_path):
    watched(GRADIENT)
    result = go(tmp_path / "run", members=3, evaluate_every=1)
    go(tmp_path / "other", alarm=None)
    out = tmp_path / "report"
    assert run(["report", str(tmp_path / "run"), str(tmp_path / "other"), "--out", str(out)]) == 0
    found = written(tmp_path / "run")
    (row,) = csv.DictReader((out / "alarms.csv").read_text().splitlines())
    ever = {member for each in found for member in each["members"]}
    assert (row["run"], row["alarm"], row["quantity"]) == ("run", "gradient", "update/grad_norm")
    assert (row["since step"], row["members"]) == (str(found[0]["step"]), f"{len(ever)} of 3")
    assert '<h2 id="alarms">' in (out / "report.html").read_text()
    marks = {svg.stem: svg.read_text().count('id="warned run: gradient"') for svg in out.glob("*.svg")}
    assert {name: count for name, count in marks.items() if count} == {"reward": 3, "gradient": 1}
    assert result.steps


def test_a_report_of_runs_without_alarms_does_not_speak_of_them(tmp_path):
    go(tmp_path / "run", alarm=None)
    assert run(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report")]) == 0
    assert not (tmp_path / "report" / "alarms.csv").exists()
    assert 'id="alarms"' not in (tmp_path / "report" / "report.html").read_text()
