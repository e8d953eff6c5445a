"""`firstorder resume`: a run goes on from its folder alone, a finished one is made longer, and its end says what became
of it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import firstorder as fo
from firstorder.cli.api.ended import ended
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.runs.logs import LOGS, TIMINGS, history
from firstorder.core.settings.toml import dump

SIZES = {"vocab": 3, "horizon": 2, "prompts": 2, "width": 4, "evaluate_every": 2, "checkpoint_every": 3, "members": 2}
SCHEDULE = {"prompts": 4, "group_size": 4, "minibatches": 2}


def train(out, steps, **more):
    return fo.train("minirl-r3", out=out, schedule=SCHEDULE | {"steps": steps}, **SIZES, **more)


def logs(folder):
    return [(folder / f"{name}.jsonl").read_bytes() for name in LOGS]


def test_a_finished_run_is_made_longer_and_is_the_run_that_was_longer_from_the_start(tmp_path):
    whole, made = train(tmp_path / "whole", 6), train(tmp_path / "made", 4)
    assert made.ended.steps == 4
    longer = fo.resume(tmp_path / "made", {"schedule.steps": 6})
    assert logs(tmp_path / "made") == logs(tmp_path / "whole")
    assert longer.ended.steps == whole.ended.steps == 6
    assert (tmp_path / "made/config.toml").read_bytes() == (tmp_path / "whole/config.toml").read_bytes()
    files = [sorted(each.name for each in (tmp_path / name / "checkpoints").iterdir()) for name in ("made", "whole")]
    assert "step-0000006.pt" in files[0]
    assert "step-0000006.pt" in files[1]


def test_a_run_with_nothing_left_to_do_says_so_and_stays_as_it_is(tmp_path, caplog):
    train(tmp_path / "run", 2)
    before = logs(tmp_path / "run")
    with caplog.at_level("INFO", logger="firstorder"):
        fo.resume(tmp_path / "run")
    assert "has all its 2 steps; --set schedule.steps=N makes it longer" in caplog.text
    assert logs(tmp_path / "run") == before


@pytest.mark.parametrize("form", ["neutral", "prime-rl"])
def test_what_was_dumped_still_is(form, tmp_path):
    train(tmp_path / "run", 2, dump=form)
    fo.resume(tmp_path / "run", {"schedule.steps": 3})
    last = f"step_{2:06d}.parquet" if form == "neutral" else "step_2"
    assert len(list((tmp_path / "run/dump").rglob(last))) == SIZES["members"]


def test_a_run_whose_alarms_were_watched_is_watched_on(tmp_path, monkeypatch):
    train(tmp_path / "run", 2)
    (tmp_path / "run/alarms.jsonl").write_text("")
    asked = []
    monkeypatch.setattr("firstorder.cli.api.train._table", lambda alarm: asked.append(alarm))
    fo.resume(tmp_path / "run")
    assert asked == ["watch"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("clip.high=0.5", "was run with clip.high = 0.27, got 0.5; resume with the same"),
        ("schedule.steps=1", "was run with schedule.steps = 2, got 1; a run can only be made longer"),
        ("sim.vocb=3", "did you mean 'vocab'"),
        ("vllm.top_p=0.5", "is a setting of the real engines"),
    ],
)
def test_another_setting_is_refused_by_name(setting, said, tmp_path, capsys):
    train(tmp_path / "run", 2)
    before = logs(tmp_path / "run"), (tmp_path / "run/config.toml").read_bytes()
    assert run(["resume", str(tmp_path / "run"), "--set", setting]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert (logs(tmp_path / "run"), (tmp_path / "run/config.toml").read_bytes()) == before


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run to resume"):
        fo.resume(tmp_path)
    (tmp_path / "config.toml").write_text("[study]\nquick = true\n")
    with pytest.raises(ConfigError, match="holds no run of `firstorder train`"):
        fo.resume(tmp_path)


def test_a_run_that_its_warm_up_was_cut_to_is_not_made_longer(tmp_path):
    tables = {"schedule": {"steps": 4, "minibatches": 2}, "torchtitan": {"warmup_steps": 9}}
    (tmp_path / "config.toml").write_text(dump(tables))
    with pytest.raises(ConfigError, match="has warmed up over all its updates"):
        fo.resume(tmp_path, {"schedule.steps": 8})


def test_every_setting_that_was_forgotten_is_named(tmp_path, capsys):
    train(tmp_path / "run", 2)
    words = [w for key, value in SIZES.items() if key != "width" for w in ("--set", f"sim.{key}={value}")]
    words += [w for key, value in SCHEDULE.items() for w in ("--set", f"schedule.{key}={value}")]
    assert run(["train", "minirl-r3", *words, "--resume", "--out", str(tmp_path / "run")]) == 2
    assert "was run with schedule.steps = 2, got 100; with sim.width = 4, got 16; resume" in capsys.readouterr().err


def test_each_step_says_what_it_took(tmp_path):
    done = train(tmp_path / "run", 2)
    timed = [json.loads(line) for line in (tmp_path / "run" / TIMINGS).read_text().splitlines()]
    assert [line["step"] for line in timed] == [0, 1]
    for line, step in zip(timed, done.steps, strict=True):
        responses = SCHEDULE["prompts"] * SCHEDULE["group_size"]
        assert line["tokens"] == pytest.approx(sum(step["response_length"]) * responses)
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["seconds"])
    assert done.ended.tokens == sum(line["tokens"] for line in timed)
    (tmp_path / "run" / TIMINGS).unlink()
    old = ended(tmp_path / "run", list(history(tmp_path / "run")), done.to_dict()["settings"])
    assert (old.tokens, next(old.lines())) == (None, f"{tmp_path / 'run'}: 2 steps")


def test_the_end_names_the_seeds_that_collapsed_and_the_alarms_that_nobody_watched(tmp_path):
    steps = [{"step": k, "exact/j_pi": [0.5 + 0.05 * k, j]} for k, j in enumerate([0.1, 0.5, 0.9, 0.4, 0.3, 0.2])]
    settings = {"schedule": {"minibatches": 4, "steps": 6}, "sim": {"seed": 40}}
    found = ended(tmp_path, steps, settings)
    assert found.seeds == (41,)
    assert "collapsed seeds: 41" in list(found.lines())
    assert found.document()["outcome"]["members"] == {"collapsed": 1, "learned": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_the_run_goes_on_as_if_there_had_been_none(number, tmp_path):
    sizes = [w for key, value in SIZES.items() for w in ("--set", f"sim.{key}={value}")]
    words = [*sizes, *(w for key, value in SCHEDULE.items() for w in ("--set", f"schedule.{key}={value}"))]
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "firstorder.cli.entry",
        "train",
        "minirl-r3",
        *words,
        "--set",
        "schedule.steps=4000",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--out", str(folder)], stderr=subprocess.PIPE, text=True, env=env)
    log = folder / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (log.is_file() and log.read_bytes().count(b"\n") >= 4) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert f"go on with `firstorder resume {folder}`" in err
    done = log.read_bytes().count(b"\n")
    assert f"step-{done:07d}.pt" in {each.name for each in (folder / "checkpoints").iterdir()}
